"""Many documents as one tensor of tokens, cut in rows of equal length that know where each begins.

Shape suffixes: B batch, L tokens of a row, N tokens of all documents.
"""

import logging
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lg.data.source import Document
from lg.data.tokenizer import Ids, Tokenizer

IGNORED = -100
"""The target of a position that predicts nothing; PyTorch's own default for cross-entropy."""

_log = logging.getLogger(__name__)


class Row(TypedDict):
    """One packed row.

    ``tokens``: int64 [L]. ``targets``: int64 [L], the next token of the same document or
    ``IGNORED``. ``document_starts``: ascending positions at which a document begins, 0 first.
    ``document_attributes``: integers of each document, by name, for patterns that ask for them.
    """

    tokens: Tensor
    targets: Tensor
    document_starts: list[int]
    document_attributes: dict[str, list[int]]


class Batch(TypedDict):
    """Rows laid end to end: one packed sequence of B * L tokens.

    ``tokens`` and ``targets``: int64 [B, L]. ``document_starts``: as a row's, but counted along
    all B * L tokens; a list, so that it stays on the host, where tile tables are made, as do
    ``document_attributes``, one integer for each document.
    """

    tokens: Tensor
    targets: Tensor
    document_starts: list[int]
    document_attributes: dict[str, list[int]]


class PackedRows(Dataset[Row]):
    """A stream of documents cut every ``row_length`` tokens; what fills no row is dropped.

    A document that a row's edge cuts begins anew, at position 0 of the next row, but the last
    target of a row is still the document's next token.

    Args:
        tokens_N: all documents end to end, each with its end id; uint8 or int32, kept as it is.
        starts: ascending positions in ``tokens_N`` at which a document begins, 0 first.
        num_bytes: bytes of text in ``tokens_N``, the end of a document counted as one.
        row_length: tokens of a row, at least 1.
        document_mask: whether documents are apart. If not, a row is one document, whose targets
            cross from one text to the next (as Fu et al. train, 2024,
            https://arxiv.org/abs/2402.10171, section 3).
        seed: of the order in which the rows of the stream are numbered.
        prefix: share of each document of a row that is its prefix, for `PrefixLM`; at 0 none is told.
    """

    def __init__(
        self,
        tokens_N: Tensor,
        starts: npt.NDArray[np.int64],
        num_bytes: int,
        row_length: int,
        document_mask: bool = True,
        seed: int = 0,
        prefix: float = 0.0,
    ) -> None:
        assert row_length >= 1, row_length
        self.tokens_N = tokens_N
        self.starts = starts
        self.num_bytes = num_bytes
        self.row_length = row_length
        self.document_mask = document_mask
        self.prefix = prefix
        # Rows in stream order would make the first few, all that a short validation reads, come
        # from one long document.
        num_rows = len(tokens_N) // row_length
        self._order = np.random.default_rng(seed).permutation(num_rows)

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents, end ids and the dropped remainder included."""
        return len(self.tokens_N)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text a token stands for on average; exactly 1 for bytes."""
        return self.num_bytes / self.num_tokens

    def __len__(self) -> int:
        """The number of whole rows."""
        return len(self._order)

    def __getitem__(self, index: int) -> Row:
        """Row ``index``; IndexError past the end."""
        begin = int(self._order[index]) * self.row_length
        end = begin + self.row_length
        tokens_L = self.tokens_N[begin:end].long()
        targets_L = torch.full_like(tokens_L, IGNORED)
        following = self.tokens_N[begin + 1 : end + 1].long()
        targets_L[: len(following)] = following
        if not self.document_mask:
            return self._row(tokens_L, targets_L, [0])
        # The start at `end` lies in the next row, but this row's last token must not predict it.
        first, last, past = np.searchsorted(self.starts, [begin + 1, end, end + 1])
        targets_L[torch.from_numpy(self.starts[first:past] - begin - 1)] = IGNORED
        inside = (self.starts[first:last] - begin).tolist()
        return self._row(tokens_L, targets_L, [0, *inside])

    def _row(self, tokens_L: Tensor, targets_L: Tensor, starts: list[int]) -> Row:
        lengths = np.diff([*starts, self.row_length])
        attributes = {"prefix": [int(self.prefix * length) for length in lengths]} if self.prefix else {}
        return Row(tokens=tokens_L, targets=targets_L, document_starts=starts, document_attributes=attributes)


def pack(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    row_length: int,
    document_mask: bool = True,
    seed: int = 0,
    prefix: float = 0.0,
) -> PackedRows:
    """Tokenize documents, at least one, and lay them end to end in an order drawn from ``seed``.

    Raises:
        ValueError: the tokenizer gives an id outside its own vocabulary.
    """
    dtype = np.uint8 if tokenizer.vocab_size <= 256 else np.int32
    end = np.array([tokenizer.end], dtype)
    lengths, pieces = [], []
    for index in np.random.default_rng(seed).permutation(len(documents)):
        ids = tokenizer.encode(documents[index].text)
        _check_ids(ids, tokenizer, documents[index])
        lengths.append(len(ids) + 1)
        pieces += [ids.astype(dtype, copy=False), end]
    tokens_N = torch.from_numpy(np.concatenate(pieces))
    starts = np.cumsum([0, *lengths[:-1]], dtype=np.int64)
    num_bytes = sum(len(document.text) + 1 for document in documents)
    rows = PackedRows(tokens_N, starts, num_bytes, row_length, document_mask, seed, prefix)
    _log.info(
        "%d tokens (%d bytes in %d documents): %d rows of %d, a remainder of %d tokens dropped",
        rows.num_tokens,
        num_bytes,
        len(documents),
        len(rows),
        row_length,
        rows.num_tokens - len(rows) * row_length,
    )
    return rows


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
    )


def _check_ids(ids: Ids, tokenizer: Tokenizer, document: Document) -> None:
    if len(ids) and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
        raise ValueError(
            f"data.init_args.tokenizer: {type(tokenizer).__name__} turns document "
            f"{document.name!r} into ids from {ids.min()} to {ids.max()}; they must be at least 0 "
            f"and below its vocab_size of {tokenizer.vocab_size}"
        )
