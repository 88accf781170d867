"""The rows of one epoch: which tokens of which documents each holds, known without reading a token.

Shape suffixes: D documents of the epoch, P pieces of a row, R rows.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from lg.data.corpus import Corpus
from lg.data.packing import Cut, Packing, packed_apart
from lg.data.rows import Piece, Row, RowShape
from lg.data.source import Document
from lg.data.tokenizer import Tokenizer

Recipe = npt.NDArray[np.int64]
"""The pieces of a row, [P, 5]: place in the row, length, corpus, document, and where in the document it begins."""


class RowReader(Dataset[Row]):
    """Turns a recipe into a row: all that a worker process needs to know.

    Args:
        corpora: the tokenised documents.
        shape: of the rows.
    """

    def __init__(self, corpora: Sequence[Corpus], shape: RowShape) -> None:
        self.corpora = tuple(corpora)
        self.shape = shape

    def __getitem__(self, recipe: Recipe) -> Row:
        """The row that a recipe describes."""
        pieces = []
        for place, length, corpus, document, begin in recipe.tolist():
            source = self.corpora[corpus]
            first, end = source.starts[document] + begin, source.starts[document + 1]
            tokens = slice(first, min(first + length + 1, end))
            counted = None if source.counted is None else source.counted[tokens]
            pieces.append(Piece(place, length, source.tokens[tokens], counted))
        return self.shape.row(pieces)


class PackedRows(Dataset[Row]):
    """Rows that documents are packed into, numbered in an order drawn from a seed.

    Args:
        corpora: the tokenised documents.
        documents_D2: which of them to pack, in the order in which they are: corpus, and document of it.
        shape: of the rows.
        packing: how documents are laid into rows; by default `Cut`. If there is one for each corpus, documents of
            different packings are in different rows.
        align: what the place of every document is a multiple of; divides the rows' length.
        seed: of the order of the rows: that in which they were packed would make the first few, all that a short
            validation reads, come from one long document.
        most: keep only so many of them.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        documents_D2: npt.NDArray[np.int64],
        shape: RowShape,
        packing: Packing | Sequence[Packing] | None = None,
        align: int = 1,
        seed: int | Sequence[int] = 0,
        most: int | None = None,
    ) -> None:
        assert shape.length % align == 0, (shape, align)
        self.reader = RowReader(corpora, shape)
        self.documents_D2 = documents_D2
        self._lengths_D = _gathered([corpus.lengths for corpus in corpora], documents_D2)
        packings = packing if isinstance(packing, Sequence) else [packing or Cut()] * len(corpora)
        self._packed = packed_apart(self._lengths_D, documents_D2[:, 0], packings, shape.length, align)
        self._first_R = np.searchsorted(self._packed.row, np.arange(self._packed.num_rows + 1))
        self._order_R = np.random.default_rng(seed).permutation(self._packed.num_rows)[:most]

    @property
    def shape(self) -> RowShape:
        """What the rows have in common."""
        return self.reader.shape

    @property
    def num_tokens(self) -> int:
        """Tokens of documents, their ends included, padding not; each as often as it is packed."""
        return int(self._packed.length.sum())

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text that a token stands for on average, a document's end counted as one; exactly 1 for bytes."""
        num_bytes_D = _gathered([corpus.num_bytes for corpus in self.reader.corpora], self.documents_D2)
        return float(num_bytes_D.sum() / self._lengths_D.sum())

    @property
    def padding_share(self) -> float:
        """Share of the rows' tokens that are no text."""
        return 1 - self.num_tokens / (self._packed.num_rows * self.shape.length)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._order_R)

    def __getitem__(self, index: int) -> Row:
        """Row ``index``; IndexError past the end."""
        return self.reader[self.recipe(index)]

    def recipe(self, index: int) -> Recipe:
        """What row ``index`` is made of."""
        row = self._order_R[index]
        pieces = slice(self._first_R[row], self._first_R[row + 1])
        packed = self._packed
        documents = self.documents_D2[packed.item[pieces]]
        columns = (packed.place[pieces], packed.length[pieces], documents[:, 0], documents[:, 1], packed.begin[pieces])
        return np.stack(columns, axis=1)

    def costs(self) -> npt.NDArray[np.float64]:
        """What attention over each row costs, [R]: the sum of its documents' squared lengths."""
        lengths = self._packed.length.astype(np.float64)
        if not self.shape.document_mask:
            return np.full(len(self), float(self.shape.length) ** 2)
        costs_R = np.zeros(self._packed.num_rows)
        np.add.at(costs_R, self._packed.row, lengths * lengths)
        return costs_R[self._order_R]

    def texts(self) -> Iterator[npt.NDArray[np.integer[Any]]]:
        """The tokens of each document, its end included, in the order in which they were packed."""
        for corpus, document in self.documents_D2.tolist():
            source = self.reader.corpora[corpus]
            yield source.tokens[source.starts[document] : source.starts[document + 1]]


def pack(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    row_length: int,
    document_mask: bool = True,
    seed: int = 0,
    prefix: float = 0.0,
    packing: Packing | None = None,
    align: int = 1,
) -> PackedRows:
    """Rows of a few documents in memory, in an order drawn from ``seed``.

    Raises:
        ValueError: the tokenizer gives an id outside its own vocabulary.
    """
    corpus = Corpus.of(documents, tokenizer)
    numbers = np.random.default_rng(seed).permutation(len(documents))
    shape = RowShape(row_length, tokenizer.end, document_mask, prefix)
    return PackedRows([corpus], np.stack([np.zeros_like(numbers), numbers], 1), shape, packing, align, seed)


def _gathered(values: Sequence[npt.NDArray[np.int64]], documents_D2: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """What each corpus knows of each of its documents, for the documents asked for."""
    first = np.cumsum([0, *(len(value) for value in values)])
    together: npt.NDArray[np.int64] = np.concatenate([np.zeros(0, np.int64), *values])
    return together[first[documents_D2[:, 0]] + documents_D2[:, 1]]
