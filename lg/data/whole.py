"""Held-out documents as they are, not laid into rows: what a model can be asked to write on from."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lg.data.packed import PackedRows


class WholeDocuments(Dataset[Tensor]):
    """The documents that rows are made of, each whole: int64 [L], its end left out, in the order in which they are.

    Args:
        rows: of the documents.
        longer_than: only those that have more tokens.
        most: only so many of them, the first; by default all.

    Raises:
        ValueError: none is longer.
    """

    def __init__(self, rows: PackedRows, longer_than: int = 0, most: int | None = None) -> None:
        self._corpora = rows.reader.corpora
        lengths_D = np.zeros(len(rows.documents_D2), np.int64)
        for number, corpus in enumerate(self._corpora):
            own_D = rows.documents_D2[:, 0] == number
            lengths_D[own_D] = corpus.lengths[rows.documents_D2[own_D, 1]] - 1
        if longer_than >= lengths_D.max():
            raise ValueError(
                f"prompt_tokens: {longer_than} is not allowed; the longest of {len(lengths_D):,} held-out documents "
                f"has {lengths_D.max():,} tokens, and something must stand behind the prompt"
            )
        self._documents_D2: npt.NDArray[np.int64] = rows.documents_D2[lengths_D > longer_than][:most]

    def __len__(self) -> int:
        """The number of documents."""
        return len(self._documents_D2)

    def __getitem__(self, index: int) -> Tensor:
        """Document ``index``; IndexError past the end."""
        number, document = self._documents_D2[index].tolist()
        corpus = self._corpora[number]
        ids = corpus.tokens[corpus.starts[document] : corpus.starts[document + 1] - 1]
        return torch.from_numpy(ids.astype(np.int64))
