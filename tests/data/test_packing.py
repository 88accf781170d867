"""Rows hold every token once, and a target is the next token of the same document or nothing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from lg.data import IGNORED, Bytes, Document, PackedRows, Row, Tokenizer, collate, pack


class Words(Tokenizer):
    """Ids far above a byte's, one for each two bytes."""

    vocab_size = 70_000
    end = 69_999

    def encode(self, text: bytes) -> np.ndarray[Any, Any]:
        return np.frombuffer(text[: len(text) // 2 * 2], dtype=np.uint16).astype(np.int64)

    def decode(self, ids: Any) -> bytes:
        return np.asarray(ids, dtype=np.uint16).tobytes()


def random_documents(seed: int, lengths: Sequence[int]) -> list[Document]:
    generator = np.random.default_rng(seed)
    return [Document(f"{i}", generator.bytes(length)) for i, length in enumerate(lengths)]


def plain(row: Row) -> tuple[list[int], list[int], list[int]]:
    return row["tokens"].tolist(), row["targets"].tolist(), row["document_starts"]


def expected_rows(rows: PackedRows) -> list[tuple[list[int], list[int], list[int]]]:
    """Each row of the stream, token by token."""
    tokens, starts, length = rows.tokens_N.tolist(), rows.starts.tolist(), rows.row_length
    document = [sum(start <= i for start in starts) for i in range(len(tokens))]
    out = []
    for begin in range(0, len(tokens) - length + 1, length):
        positions = range(begin, begin + length)
        targets = [
            tokens[i + 1] if i + 1 < len(tokens) and same(rows, document, i, i + 1) else IGNORED for i in positions
        ]
        inner = [i - begin for i in positions if i == begin or not same(rows, document, i - 1, i)]
        out.append((tokens[begin : begin + length], targets, inner))
    return out


def same(rows: PackedRows, document: list[int], i: int, j: int) -> bool:
    return not rows.document_mask or document[i] == document[j]


@pytest.mark.parametrize("document_mask", [True, False])
@pytest.mark.parametrize("row_length", [1, 2, 7, 63, 64])
def test_rows_agree_with_a_loop_over_tokens(row_length: int, document_mask: bool) -> None:
    # Row edges at, before and after document starts, empty documents, one longer than many rows.
    documents = random_documents(row_length, [0, 1, 5, 6, 7, 0, 0, 61, 62, 63, 64, 300, 2])
    rows = pack(documents, Bytes(), row_length, document_mask)
    actual = [plain(rows[index]) for index in range(len(rows))]
    assert len(rows) == rows.num_tokens // row_length
    assert sorted(actual) == sorted(expected_rows(rows))
    with pytest.raises(IndexError):
        rows[len(rows)]


@pytest.mark.parametrize("tokenizer", [Bytes(), Words()])
def test_the_stream_holds_each_document_and_its_end_once(tokenizer: Tokenizer) -> None:
    documents = random_documents(0, [4, 0, 10, 2, 33, 8])
    rows = pack(documents, tokenizer, row_length=5)
    pieces = np.split(rows.tokens_N.numpy(), rows.starts[1:])
    expected = [[*tokenizer.encode(document.text).tolist(), tokenizer.end] for document in documents]
    assert sorted(piece.tolist() for piece in pieces) == sorted(expected)
    assert rows.tokens_N.dtype == (torch.uint8 if tokenizer.vocab_size == 256 else torch.int32)
    assert rows.tokens_N.is_contiguous()
    assert rows[0]["tokens"].dtype == rows[0]["targets"].dtype == torch.int64


def test_bytes_per_token_counts_an_end_as_one_byte() -> None:
    documents = random_documents(0, [4, 10, 2])
    assert pack(documents, Bytes(), 4).bytes_per_token == 1.0
    rows = pack(documents, Words(), 4)
    assert (rows.num_bytes, rows.num_tokens) == (19, 11)
    assert rows.bytes_per_token == 19 / 11


def test_the_seed_gives_the_order() -> None:
    documents = random_documents(0, range(20))
    first, again, other = (pack(documents, Bytes(), 8, seed=seed) for seed in (1, 1, 2))
    assert [plain(row) for row in map(first.__getitem__, range(len(first)))] == [
        plain(row) for row in map(again.__getitem__, range(len(again)))
    ]
    assert first.tokens_N.tolist() != other.tokens_N.tolist()


def test_the_remainder_is_counted_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="lg.data"):
        rows = pack(random_documents(0, [9, 4]), Bytes(), row_length=4)
    assert len(rows) == 3
    assert "3 rows of 4, a remainder of 3 tokens dropped" in caplog.text


def test_an_id_outside_the_vocabulary_is_an_error() -> None:
    class Small(Words):
        vocab_size = 1000

    with pytest.raises(ValueError, match=r"Small turns document 'x' .* below its vocab_size of 1000"):
        pack([Document("x", b"\xff\xff")], Small(), row_length=1)


def test_a_batch_is_one_packed_sequence() -> None:
    rows = pack(random_documents(3, [5, 9, 30, 2, 2, 40]), Bytes(), row_length=16)
    batch = collate([rows[0], rows[1], rows[2]])
    assert batch["tokens"].shape == batch["targets"].shape == (3, 16)
    assert torch.equal(batch["tokens"][1], rows[1]["tokens"])
    assert torch.equal(batch["targets"][2], rows[2]["targets"])
    starts = batch["document_starts"]
    assert all(type(start) is int for start in starts)
    assert starts == sorted(set(starts))
    assert starts == [16 * b + start for b in range(3) for start in rows[b]["document_starts"]]


def test_packing_costs_no_loop_over_tokens() -> None:
    import time

    documents = random_documents(0, [30_000] * 1000)
    began = time.process_time()
    pack(documents, Bytes(), row_length=4096)
    assert time.process_time() - began < 1.0  # 30 MB; a Python loop takes ten times that
