"""From pieces of documents to rows of tokens that know where each document begins, and from rows to batches.

Shape suffixes: B batch, L tokens of a row, P pieces.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

IGNORED = -100
"""The target of a position that predicts nothing; PyTorch's own default for cross-entropy."""


_STRETCH = 1024  # of padding, at most: attention over a long one would cost as much as over text


class Row(TypedDict):
    """One packed row.

    ``tokens``: int64 [L]. ``targets``: int64 [L], the next token of the same document or ``IGNORED``.
    ``document_starts``: ascending positions at which a document begins, 0 first; a stretch of padding is a document of
    its own (or several, if it is long), all of whose targets are ignored. ``document_attributes``: integers of each
    document, by name, for patterns that ask for them. ``document_padding``: which documents are padding.
    ``num_padding``: tokens that are no text; ``num_align``: those of them that stand before a document to align its
    start.
    """

    tokens: Tensor
    targets: Tensor
    document_starts: list[int]
    document_attributes: dict[str, list[int]]
    document_padding: list[bool]
    num_padding: int
    num_align: int


class _Positioned(TypedDict, total=False):
    positions: Tensor


class Batch(_Positioned):
    """Rows laid end to end: one packed sequence of B * L tokens.

    ``tokens`` and ``targets``: int64 [B, L]. ``document_starts``: as a row's, but counted along all B * L tokens; a
    list, so that it stays on the host, where tile tables are made, as do ``document_attributes`` and
    ``document_padding``, one value for each document. ``num_padding`` and ``num_align``: sums over the rows.
    ``positions``, of any number type, [B, L]: what rotary angles are computed from; where they are left out, it is
    places in the documents.
    """

    tokens: Tensor
    targets: Tensor
    document_starts: list[int]
    document_attributes: dict[str, list[int]]
    document_padding: list[bool]
    num_padding: int
    num_align: int


class Piece(NamedTuple):
    """Tokens of one document, in a row.

    Attributes:
        place: where in the row the first of them stands.
        length: how many they are.
        tokens: the tokens, and one more where the document goes on behind them, which is the last one's target.
        counted: which of ``tokens`` are targets of those before them, 1 or 0; None if all are.
    """

    place: int
    length: int
    tokens: npt.NDArray[np.integer[Any]]
    counted: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class RowShape:
    """What all rows of a run have in common.

    Attributes:
        length: tokens of a row.
        padding: the id that stands where no text is.
        document_mask: whether documents are apart. If not, a row is one document, whose targets cross from one text to
            the next (as Fu et al. train, 2024, https://arxiv.org/abs/2402.10171, section 3).
        prefix: share of each document of a row that is its prefix, for `PrefixLM`; at 0 none is told.
    """

    length: int
    padding: int = 0
    document_mask: bool = True
    prefix: float = 0.0

    def row(self, pieces: Sequence[Piece]) -> Row:
        """The row that some pieces make, in the order of their places."""
        tokens_L = np.full(self.length, self.padding, np.int64)
        targets_L = np.full(self.length, IGNORED, np.int64)
        starts: list[int] = []
        padded: list[bool] = []
        num_align = end = 0
        for place, length, tokens, counted in pieces:
            # Of each token what the one before it is to predict.
            wanted = tokens if counted is None else np.where(counted != 0, tokens.astype(np.int64), IGNORED)
            if place > end:
                num_align += place - end
                stretches = range(end, place, _STRETCH)
                starts += stretches
                padded += [True] * len(stretches)
            elif end and not self.document_mask:
                targets_L[end - 1] = wanted[0]
            starts.append(place)
            padded.append(False)
            end = place + length
            tokens_L[place:end] = tokens[:length]
            targets_L[place : place + len(tokens) - 1] = wanted[1:]
        stretches = range(end, self.length, _STRETCH)
        starts += stretches
        padded += [True] * len(stretches)
        if not self.document_mask:
            starts, padded = [0], [not pieces]
        lengths = np.diff([*starts, self.length])
        prefixes = [0 if pad else int(self.prefix * length) for pad, length in zip(padded, lengths, strict=True)]
        return Row(
            tokens=torch.from_numpy(tokens_L),
            targets=torch.from_numpy(targets_L),
            document_starts=starts,
            document_attributes={"prefix": prefixes} if self.prefix else {},
            document_padding=padded,
            num_padding=self.length - sum(piece.length for piece in pieces),
            num_align=num_align,
        )

    def empty(self) -> Row:
        """A row that is all padding, for a rank that has no other."""
        return self.row(())


def collate(rows: Sequence[Row]) -> Batch:
    """Lay rows of one length end to end; row b's document starts move on by b * L."""
    starts = []
    for index, row in enumerate(rows):
        offset = index * len(row["tokens"])
        starts += [offset + start for start in row["document_starts"]]
    return Batch(
        tokens=torch.stack([row["tokens"] for row in rows]),
        targets=torch.stack([row["targets"] for row in rows]),
        document_starts=starts,
        document_attributes={
            name: [value for row in rows for value in row["document_attributes"][name]]
            for name in rows[0]["document_attributes"]
        },
        document_padding=[pad for row in rows for pad in row["document_padding"]],
        num_padding=sum(row["num_padding"] for row in rows),
        num_align=sum(row["num_align"] for row in rows),
    )
