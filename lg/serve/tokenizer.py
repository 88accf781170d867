"""What a server needs of a tokenizer, beyond what texts need: how conversations are written, and where answers end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from lg.inference.text import Tokenizer


class Turn(NamedTuple):
    """What one side of a conversation said.

    Attributes:
        role: who: "system", "user" or "assistant".
        content: what.
    """

    role: str
    content: str


class Speaker(Tokenizer, Protocol):
    """A tokenizer that knows conversations.

    Attributes:
        ends: ids that end what the model writes.
    """

    ends: frozenset[int]

    def apply(self, turns: Sequence[Turn], /) -> Sequence[int]:
        """The ids of a conversation up to where the next answer begins.

        Raises:
            ValueError: there is no template, or it does not allow such turns.
        """
