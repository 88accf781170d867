"""Held-out documents, whole: those that rows are made of, and no others."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from lg.data import Bytes, Cut, Document, PackedRows, RowShape
from lg.data.corpus import Corpus
from lg.data.whole import WholeDocuments

TEXTS = [[b"a" * length for length in (5, 40, 3)], [b"b" * length for length in (7, 90)]]


def rows() -> PackedRows:
    corpora = [Corpus.of([Document(str(n), text) for n, text in enumerate(texts)], Bytes()) for texts in TEXTS]
    documents_D2 = np.array([[1, 1], [0, 0], [0, 1], [1, 0]])
    return PackedRows(corpora, documents_D2, RowShape(16), Cut(), 1)


def test_they_are_whole_and_in_order_without_their_ends() -> None:
    found = WholeDocuments(rows())
    assert [bytes(text.tolist()) for text in found] == [TEXTS[1][1], TEXTS[0][0], TEXTS[0][1], TEXTS[1][0]]
    assert all(text.dtype == torch.int64 for text in found)
    assert [len(text) for text in pickle.loads(pickle.dumps(found))] == [90, 5, 40, 7]


def test_short_ones_are_left_out_and_only_so_many_taken() -> None:
    assert [len(text) for text in WholeDocuments(rows(), longer_than=5)] == [90, 40, 7]
    assert [len(text) for text in WholeDocuments(rows(), longer_than=5, most=2)] == [90, 40]
    with pytest.raises(ValueError, match=r"prompt_tokens: 90 is not allowed; the longest of 4 held-out .* has 90"):
        WholeDocuments(rows(), longer_than=90)
