"""From tokens that come one by one to text: whole characters only, and nothing of a string that ends the text.

>>> class Letters:
...     def encode(self, text): return list(text)
...     def decode(self, ids): return bytes(ids)
>>> text = Text(Letters(), stop=["END"])
>>> [text.add(byte) for byte in "\\u00e4 E.. END!".encode()]
['', '\\xe4', ' ', '', 'E.', '.', ' ', '', '', '', '']
>>> text.stopped, text.end()
(True, '')
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

_UNKNOWN = "\ufffd"
# A character has at most four bytes, so what is longer no character is no text.
_MOST_HELD = 8


class Tokenizer(Protocol):
    """What is needed of a tokenizer; those of `lg.data` are such."""

    def encode(self, text: bytes, /) -> Sequence[int]:
        """The ids of a text."""

    def decode(self, ids: Sequence[int], /) -> bytes:
        """The text of some ids."""


class Text:
    """The text of tokens that come one by one.

    What is told is never taken back: a character that may go on is held until it is clear, and so is what may be the
    beginning of a string that ends the text.

    Args:
        tokenizer: of the tokens.
        stop: strings that end the text; what is told ends before the first of them.

    Attributes:
        stopped: whether one of them has come. Tokens that are added afterwards are ignored.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        # Tokens are decoded with those before them, since some tokenizers treat a beginning in another way.
        self._first = self._clear = 0
        self._num_told = 0
        self._held = ""

    def add(self, token: int) -> str:
        """What is clear once a token is there; often nothing."""
        if self.stopped:
            return ""
        self._ids.append(token)
        decoded = self._decoded()
        settled = len(decoded.rstrip(_UNKNOWN))
        if settled < len(decoded) and len(self._ids) - self._clear >= _MOST_HELD:
            settled = len(decoded) - 1
        new = decoded[self._num_told : settled]
        self._num_told = max(self._num_told, settled)
        if settled == len(decoded):
            self._first, self._clear = self._clear, len(self._ids)
            self._num_told = len(self._decoded())
        return self._cut(new, last=False)

    def end(self) -> str:
        """What was held, when nothing more comes."""
        return "" if self.stopped else self._cut(self._decoded()[self._num_told :], last=True)

    def _decoded(self) -> str:
        return self._tokenizer.decode(self._ids[self._first :]).decode(errors="replace")

    def _cut(self, new: str, last: bool) -> str:
        text = self._held + new
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        hold = 0 if last else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text may be the beginning of a string."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
