"""Documents of which only some tokens are targets, and whose special tokens are known apart from what they say.

A conversation is one: a template puts special tokens between what people wrote, and only answers are to be learned.
What they wrote is never read for special tokens, so that nobody can end a turn, or begin another's, by spelling one.

Shape suffixes: N tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lg.data.source import Document
from lg.data.tokenizer import Ids, Tokenizer


class Plain(NamedTuple):
    """Text as any other.

    Attributes:
        text: what it says.
        counted: whether its tokens are targets.
    """

    text: str
    counted: bool = False


class Mark(NamedTuple):
    """A special token of the tokenizer.

    Attributes:
        token: as it is spelled.
        counted: whether it is a target.
    """

    token: str
    counted: bool = False


@dataclass(frozen=True)
class Marked(Document):
    """A document in pieces.

    Attributes:
        pieces: end to end they are the text.
    """

    pieces: tuple[Plain | Mark, ...] = ()

    @classmethod
    def of(cls, name: str, pieces: Sequence[Plain | Mark]) -> "Marked":
        """The document that some pieces make."""
        return cls(name, "".join(piece[0] for piece in pieces).encode(errors="replace"), tuple(pieces))

    def encoded(self, tokenizer: Tokenizer) -> tuple[Ids, npt.NDArray[np.uint8]]:
        """Its ids, and which of them are targets: 1 or 0, both [N].

        Text between two marks is tokenized as a whole, as a tokenizer does that finds the marks itself. A token that
        reaches from one piece into another counts if the one where it ends does.

        Raises:
            ValueError: the tokenizer has no such mark.
        """
        ids: list[Ids] = [np.zeros(0, np.int32)]
        counted = [np.zeros(0, np.uint8)]
        for is_mark, run in groupby(self.pieces, key=lambda piece: isinstance(piece, Mark)):
            pieces = list(run)
            if is_mark:
                ids.append(np.array([tokenizer.special(piece[0]) for piece in pieces], np.int32))
                which = np.arange(len(pieces))
            else:
                of_run, which = tokenizer.encode_joined([piece[0].encode(errors="replace") for piece in pieces])
                ids.append(of_run)
            counted.append(np.array([piece.counted for piece in pieces], np.uint8)[which])
        return np.concatenate(ids), np.concatenate(counted)
