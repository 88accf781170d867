"""Positions are what each paper defines, are drawn again alike wherever a run goes on, and held-out rows have none."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lg.data import E2LLM, Bytes, Jsonl, LongRecipe, PoSE, Positions, RowShape, Sentences, TextData, collate
from lg.data.positions import Drawing, Places, Text
from lg.data.rows import Piece

SENTENCES = Sentences(Bytes())


def text(letters: str) -> Text:
    return Text(np.frombuffer(letters.encode(), np.uint8), SENTENCES)


def drawn(positions: Positions, letters: str, row_length: int, seed: int) -> Places:
    [places] = positions.draw([text(letters)], row_length, np.random.default_rng(seed))
    return places


LETTERS = st.text("ab.!?\n ", min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(letters=LETTERS, room=st.integers(0, 200), seed=st.integers(0, 10))
def test_longrecipe_spreads_sentences(letters: str, room: int, seed: int) -> None:
    target = len(letters) + room
    places = drawn(LongRecipe(target), letters, len(letters), seed)
    assert places.dtype == np.int64 and places[0] == 0 and places[-1] < target
    assert (np.diff(places) >= 1).all()
    bounds = [*text(letters).starts().tolist(), len(letters)]
    for first, last in pairwise(bounds):
        assert (np.diff(places[first:last]) == 1).all()


@settings(max_examples=200, deadline=None)
@given(length=st.integers(1, 60), chunks=st.integers(1, 5), room=st.integers(0, 200), seed=st.integers(0, 10))
def test_pose_skips_between_chunks(length: int, chunks: int, room: int, seed: int) -> None:
    places = drawn(PoSE(length + room, chunks), "a" * length, length, seed)
    assert places.dtype == np.int64 and places[0] == 0 and places[-1] < length + room
    steps = np.diff(places)
    assert (steps >= 1).all() and (steps > 1).sum() <= chunks - 1
    if chunks == 1:
        assert places.tolist() == list(range(length))


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(1, 60), more=st.integers(0, 20), most=st.integers(1, 9), reach=st.integers(80, 100),
    seed=st.integers(0, 20),
)  # fmt: skip
def test_e2llm_scales_and_offsets(length: int, more: int, most: int, reach: int, seed: int) -> None:
    documents = [text("a" * length), text("b" * (more + 1))]
    row_length = length + more + 1
    drawn = E2LLM(most, reach).draw(documents, row_length, np.random.default_rng(seed))
    generator = np.random.default_rng(seed)
    scale = int(generator.integers(1, most, endpoint=True))
    for document, places in zip(documents, drawn, strict=True):
        assert places.max() < reach
        times = places * scale
        np.testing.assert_allclose(times[:4], np.arange(len(document))[:4])
        offsets = times[4:] - np.arange(4, max(len(document), 4))
        assert (offsets >= -1e-9).all() and (offsets <= scale * reach - row_length + 1e-9).all()
        np.testing.assert_allclose(offsets, np.round(offsets), atol=1e-9)
        assert len(offsets) == 0 or np.ptp(offsets) < 1e-9
    # One offset for the row.
    if length > 4 and more + 1 > 4:
        np.testing.assert_allclose(drawn[0][4], drawn[1][4])


def test_draws_are_uniform() -> None:
    count = 4000
    rows = [drawn(E2LLM(4, 8), "abcdefgh", 8, seed) for seed in range(count)]
    scales = np.round(1 / np.array([row[1] for row in rows])).astype(int)
    assert (abs(np.bincount(scales, minlength=5)[1:] - count / 4) < 150).all()
    offsets = np.array([row[7] for row in rows]) * scales - 7
    assert set(np.round(offsets[scales == 2]).astype(int)) == set(range(2 * 8 - 8 + 1))
    assert offsets[scales == 3].mean() == pytest.approx(8, abs=0.6)
    # Two sentences of 2 in 10: the second begins at 2 to 8, all alike.
    seconds = np.array([drawn(LongRecipe(10), "a.b.", 4, seed)[2] for seed in range(count)])
    assert (abs(np.bincount(seconds, minlength=9)[2:] - count / 7) < 110).all()
    skips = np.array([drawn(PoSE(14), "abcd", 4, seed)[-1] - 3 for seed in range(count)])
    assert (abs(np.bincount(skips, minlength=11) - count / 11) < 90).all()


def test_sentences_end_where_text_says_so() -> None:
    letters = 'Yes. No!  "Why?"\nSo it is'
    starts = text(letters).starts().tolist()
    assert [letters[first:last] for first, last in pairwise([*starts, None])] == [
        "Yes.", " No!", '  "Why?', '"\n', "So it is",
    ]  # fmt: skip
    assert text("a...b").starts().tolist() == [0, 4]


def a_batch() -> Any:
    shape = RowShape(12)
    first = shape.row([Piece(0, 5, np.array([97, 46, 98, 98, 0])), Piece(8, 4, np.array([97, 98, 99, 100, 101]))])
    return collate([first, shape.row([Piece(0, 12, np.arange(97, 110))])])


def test_padding_keeps_its_places_and_rows_their_own_draws() -> None:
    batch = a_batch()
    placed = Drawing(E2LLM(20, 40), SENTENCES).onto(batch, [(0, 1), (0, 2)])
    assert "positions" not in batch
    positions = placed["positions"]
    assert positions.shape == (2, 12) and positions.dtype == torch.float32
    assert positions[0, 5:8].tolist() == [0, 1, 2]
    assert positions[0, 0] == positions[0, 8] == positions[1, 0] == 0
    # Different scales in one batch.
    assert positions[0, 1] != positions[1, 1] and positions[0, 1] == positions[0, 9]
    assert Drawing(PoSE(64), SENTENCES).onto(batch, [(0, 1), (0, 2)])["positions"].dtype == torch.int64


class Short(Positions):
    def draw(self, documents: Any, row_length: int, generator: np.random.Generator) -> list[Places]:
        return [np.arange(1) for _ in documents]

    def num_positions(self, row_length: int) -> int:
        return row_length


def test_what_a_class_of_ones_own_gets_wrong_is_told() -> None:
    with pytest.raises(ValueError, match=r"positions: Short draws positions of shape \[1\] for a document of 5 tokens"):
        Drawing(Short(), SENTENCES).onto(a_batch(), [(0,), (1,)])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PoSE(0), r"init_args\.target: 0 is not allowed; it must be at least 1"),
        (lambda: PoSE(chunks=0), r"init_args\.chunks: 0 "),
        (lambda: E2LLM(most=0), r"init_args\.most: 0 "),
        (lambda: E2LLM(reach=0), r"init_args\.reach: 0 "),
        (lambda: LongRecipe(0), r"init_args\.target: 0 "),
        (lambda: TextData(row_length=64, positions=PoSE(32)), r"target: 32 is not .* data.init_args.row_length, 64"),
        (lambda: TextData(row_length=64, positions=LongRecipe(32)), r"init_args\.target: 32 "),
        (lambda: TextData(row_length=64, positions=E2LLM(reach=32)), r"init_args\.reach: 32 "),
    ],
)
def test_refusals(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=r"data.init_args.positions.*" + says):
        make()


def made(path: Path, streaming: bool, workers: int, positions: Positions | None) -> TextData:
    lines = [f"document {n}. Is it? " + "It is so. " * (n % 7) for n in range(40)]
    (path / "texts.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    data = TextData(
        Jsonl(str(path / "texts.jsonl"), streaming=streaming), row_length=48, batch_size=2, held_out=0.2,
        num_workers=workers, positions=positions, cache=str(path / "cache"), block=8,
    )  # fmt: skip
    data.setup()
    return data


def taken(data: TextData, number: int, state: Any = None) -> tuple[list[Any], Any]:
    """The next batches, and the place behind them."""
    loader = data.train_dataloader()
    if state is not None:
        loader.go_to(state)
    batches: list[Any] = []
    while len(batches) < number:
        for batch in loader:
            loader.consume()
            batches.append(batch)
            if len(batches) == number:
                break
    return batches, loader.place()


@pytest.mark.parametrize("positions", [E2LLM(reach=64), PoSE(200), LongRecipe(200)])
@pytest.mark.parametrize("streaming", [False, True])
def test_draws_go_on_whatever_the_number_of_workers(positions: Positions, streaming: bool, tmp_path: Path) -> None:
    whole, _ = taken(made(tmp_path, streaming, 0, positions), 24)
    plain, _ = taken(made(tmp_path, streaming, 0, None), 24)
    before, place = taken(made(tmp_path, streaming, 0, positions), 10)
    after, _ = taken(made(tmp_path, streaming, 2, positions), 14, place)
    for one, other, without in zip(whole, [*before, *after], plain, strict=True):
        assert torch.equal(one["tokens"], other["tokens"]) and torch.equal(one["positions"], other["positions"])
        assert torch.equal(one["tokens"], without["tokens"]) and "positions" not in without
    # Rows and epochs have draws of their own.
    assert len({tuple(row.tolist()) for batch in whole for row in batch["positions"]}) > 40


def test_held_out_rows_have_none(tmp_path: Path) -> None:
    data = made(tmp_path, False, 0, PoSE(200))
    assert all("positions" not in batch for batch in data.val_dataloader())
    assert data.num_positions == 200 and made(tmp_path, False, 0, None).num_positions == 48


def test_without_document_masks_a_row_is_one_document() -> None:
    shape = RowShape(8, document_mask=False)
    batch = collate([shape.row([Piece(0, 3, np.array([97, 46, 0])), Piece(3, 3, np.array([98, 46, 0]))])])
    seeds = [Drawing(LongRecipe(100), SENTENCES).onto(batch, [(n,)])["positions"][0] for n in range(5)]
    assert any(int(row[3]) > 3 for row in seeds) and all(bool((row.diff() > 0).all()) for row in seeds)
