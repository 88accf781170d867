"""Rows hold every token once, a target is the next token of the same document or nothing, and padding is no text."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lg.data import IGNORED, BestFit, Bytes, Cut, Document, PackedRows, Packing, Tokenizer, collate, pack
from lg.data.rows import Piece, RowShape


class Words(Tokenizer):
    """Ids far above a byte's, one for each two bytes."""

    vocab_size = 70_000
    end = 69_999

    def encode(self, text: bytes) -> np.ndarray[Any, Any]:
        return np.frombuffer(text[: len(text) // 2 * 2], dtype=np.uint16).astype(np.int64)

    def decode(self, ids: Any) -> bytes:
        return np.asarray(ids, dtype=np.uint16).tobytes()


class Numbers(Tokenizer):
    """Each document is its own number and its tokens' places: what a row holds tells where it is from."""

    vocab_size = 1_000_000
    end = 999_999

    def encode(self, text: bytes) -> np.ndarray[Any, Any]:
        document, length = (int(word) for word in text.split())
        return 1000 * document + np.arange(length)

    def decode(self, ids: Any) -> bytes:
        raise NotImplementedError


def random_documents(seed: int, lengths: Sequence[int]) -> list[Document]:
    generator = np.random.default_rng(seed)
    return [Document(f"{i}", generator.bytes(length)) for i, length in enumerate(lengths)]


def all_rows(rows: PackedRows) -> list[Any]:
    return [rows[index] for index in range(len(rows))]


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=25),
    row_length=st.sampled_from([8, 16, 40, 64]),
    align=st.sampled_from([1, 2, 8]),
    packing=st.sampled_from([Cut(), BestFit()]),
    seed=st.integers(0, 3),
)
def test_no_target_crosses_a_document(
    lengths: list[int], row_length: int, align: int, packing: Packing, seed: int
) -> None:
    documents = [Document(str(n), b"%d %d" % (n, length)) for n, length in enumerate(lengths)]
    rows = pack(documents, Numbers(), row_length, seed=seed, packing=packing, align=align)
    end = Numbers.end
    seen: list[int] = []
    for row in all_rows(rows):
        tokens, targets = row["tokens"].tolist(), row["targets"].tolist()
        bounds = [*row["document_starts"], row_length]
        assert bounds[0] == 0 and bounds == sorted(set(bounds))
        num_padding = num_align = 0
        for first, last in pairwise(bounds):
            inside, wanted = tokens[first:last], targets[first:last]
            if set(inside) == {end} and set(wanted) == {IGNORED} and (len(inside) > 1 or first % align):
                num_padding += len(inside)
                num_align += len(inside) * (last < row_length)
                continue
            if set(inside) == {end}:
                # An empty document, the last token of a cut one, or one token of padding: the counts tell.
                seen.append(-1)
                continue
            assert first % align == 0
            # One document's tokens in order, the end only last, and each target the one that follows.
            body = [token for token in inside if token != end]
            assert len({token // 1000 for token in body}) == 1
            assert body == list(range(body[0], body[0] + len(body)))
            assert inside in (body, [*body, end])
            assert wanted[:-1] == inside[1:]
            follows = body[-1] + 1 if body[-1] % 1000 + 1 < lengths[body[-1] // 1000] else end
            assert wanted[-1] == (IGNORED if inside[-1] == end else follows)
            seen += body
        assert row["num_padding"] >= num_padding and row["num_align"] >= num_align
        assert row["num_align"] <= row["num_padding"]
    whole = [1000 * n + i for n, length in enumerate(lengths) for i in range(length)]
    assert sorted(token for token in seen if token >= 0) == whole
    num_text = sum(lengths) + len(lengths)
    assert sum(row["num_padding"] for row in all_rows(rows)) == len(rows) * row_length - num_text
    assert rows.num_tokens == num_text
    assert rows.padding_share == pytest.approx(1 - num_text / (len(rows) * row_length))


@pytest.mark.parametrize("document_mask", [True, False])
def test_a_row_by_hand(document_mask: bool) -> None:
    shape = RowShape(12, padding=9, document_mask=document_mask, prefix=0.5)
    row = shape.row(
        [
            Piece(0, 3, np.array([1, 2, 9])),  # a whole document
            Piece(4, 3, np.array([3, 4, 9])),  # another, aligned
            Piece(7, 4, np.array([5, 6, 7, 8, 5])),  # one that goes on elsewhere
        ]
    )
    ignored = IGNORED
    assert row["tokens"].tolist() == [1, 2, 9, 9, 3, 4, 9, 5, 6, 7, 8, 9]
    assert (row["num_padding"], row["num_align"]) == (2, 1)
    if document_mask:
        assert row["targets"].tolist() == [2, 9, ignored, ignored, 4, 9, ignored, 6, 7, 8, 5, ignored]
        assert row["document_starts"] == [0, 3, 4, 7, 11]
        assert row["document_attributes"] == {"prefix": [1, 0, 1, 2, 0]}
    else:
        assert row["targets"].tolist() == [2, 9, ignored, ignored, 4, 9, 5, 6, 7, 8, 5, ignored]
        assert row["document_starts"] == [0]
        assert row["document_attributes"] == {"prefix": [6]}


def test_an_empty_row_is_all_padding() -> None:
    row = RowShape(4, padding=7).empty()
    assert row["tokens"].tolist() == [7] * 4
    assert row["targets"].tolist() == [IGNORED] * 4
    assert row["document_starts"] == [0]
    assert (row["num_padding"], row["num_align"]) == (4, 0)


@pytest.mark.parametrize("tokenizer", [Bytes(), Words()])
def test_each_document_and_its_end_once(tokenizer: Tokenizer) -> None:
    documents = random_documents(0, [4, 0, 10, 2, 33, 8])
    rows = pack(documents, tokenizer, row_length=5)
    expected = [[*tokenizer.encode(document.text).tolist(), tokenizer.end] for document in documents]
    assert sorted(text.tolist() for text in rows.texts()) == sorted(expected)
    assert rows[0]["tokens"].dtype == rows[0]["targets"].dtype == torch.int64


def test_bytes_per_token_counts_an_end_as_one_byte() -> None:
    documents = random_documents(0, [4, 10, 2])
    assert pack(documents, Bytes(), 4).bytes_per_token == 1.0
    rows = pack(documents, Words(), 4)
    assert rows.num_tokens == 11
    assert rows.bytes_per_token == 19 / 11


def test_the_seed_gives_the_order() -> None:
    documents = random_documents(0, range(20))
    first, again, other = (
        [row["tokens"].tolist() for row in all_rows(pack(documents, Bytes(), 8, seed=seed))] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_costs_are_squared_lengths() -> None:
    rows = pack(random_documents(0, [5, 9, 30, 2, 2, 40]), Bytes(), row_length=16, packing=BestFit(), align=4)
    for row, cost in zip(all_rows(rows), rows.costs(), strict=True):
        bounds = [*row["document_starts"], 16]
        padding = row["num_padding"]
        lengths = [b - a for a, b in pairwise(bounds)]
        # Stretches of padding are documents too, but cost so little that they are not counted.
        assert sum(n * n for n in lengths) - padding * padding <= cost <= sum(n * n for n in lengths)


def test_a_batch_is_one_packed_sequence() -> None:
    rows = pack(random_documents(3, [5, 9, 30, 2, 2, 40]), Bytes(), row_length=16, align=4)
    batch = collate([rows[0], rows[1], rows[2]])
    assert batch["tokens"].shape == batch["targets"].shape == (3, 16)
    assert torch.equal(batch["tokens"][1], rows[1]["tokens"])
    assert torch.equal(batch["targets"][2], rows[2]["targets"])
    starts = batch["document_starts"]
    assert all(type(start) is int for start in starts)
    assert starts == sorted(set(starts))
    assert starts == [16 * b + start for b in range(3) for start in rows[b]["document_starts"]]
    assert batch["num_padding"] == sum(rows[b]["num_padding"] for b in range(3))
    assert batch["num_align"] == sum(rows[b]["num_align"] for b in range(3))
    with pytest.raises(IndexError):
        rows[len(rows)]
