"""Pairs and tiles are counted exactly, whatever the predicate, without a list of them."""

import random
from collections.abc import Iterator

import pytest
import torch
from examples import COMPOSED, PATTERNS
from hypothesis import given, settings
from hypothesis import strategies as st
from largest import Largest
from torch import Tensor

from lg.attention import (
    Causal,
    Chunked,
    Dilated,
    Documents,
    GlobalTokens,
    Pattern,
    SinkWindow,
    Strided,
    Tiles,
    Window,
)
from lg.attention.counting import count_pairs, count_tiles
from lg.attention.tiles import TileTable
from lg.testing.patterns import brute_force


def layouts(pattern: Pattern) -> Iterator[Tiles]:
    """One document, and several with all queries and with a chunk of them."""
    draw = random.Random(0)
    for length, starts in ((1, (0,)), (300, (0,)), (411, (0, 3, 5, 130, 384))):
        attributes = {"prefix": [draw.randint(0, 60) for _ in starts]} if "prefix" in pattern.attributes else {}
        for queries in (None, (length // 3, length // 3 + 1 + length // 2))[: len(starts)]:
            yield pattern.tiles(Documents(length, starts, attributes), pattern.made_for or 3, queries)


def listed(table: TileTable) -> Tensor:
    """Tiles that a table lists for each head."""
    ends = torch.cat((torch.zeros(1, dtype=torch.int64), table.run_count.cumsum(0)))
    heads = slice(None, None, table.num_rows)
    return ends[table.run_pointer[heads]].diff() + table.partial_pointer[heads].diff()


@pytest.mark.parametrize("pattern", PATTERNS + COMPOSED, ids=str)
def test_counts_are_those_of_brute_force_and_of_the_table(pattern: Pattern) -> None:
    for tiles in layouts(pattern):
        assert count_pairs(tiles).tolist() == brute_force(tiles).sum((1, 2)).tolist()
        for blocks in ((32, 32), (128, 64), (1, 16)):
            assert count_tiles(tiles, *blocks).tolist() == listed(tiles.table(*blocks)).tolist()


SIZES = st.integers(1, 40)
PARTS = st.one_of(
    st.just(Causal()),
    st.builds(Window, SIZES),
    st.builds(SinkWindow, SIZES, SIZES),
    st.builds(GlobalTokens, SIZES),
    st.builds(Chunked, SIZES),
    st.builds(Dilated, SIZES, st.integers(1, 9)),
    st.builds(Strided, st.integers(1, 17), st.integers(1, 3), st.integers(1, 5)),
)
TREES = st.recursive(
    PARTS,
    lambda below: st.one_of(
        st.builds(lambda a, b: a & b, below, below),
        st.builds(lambda a, b: a | b, below, below),
        st.builds(lambda a: ~a, below),
    ),
    max_leaves=4,
)


@given(pattern=TREES, length=st.integers(1, 150), cut=st.integers(1, 149))
@settings(max_examples=150, deadline=None)
def test_any_composition_is_counted_exactly(pattern: Pattern, length: int, cut: int) -> None:
    tiles = pattern.tiles(Documents(length, (0, cut) if cut < length else (0,)), 2)
    assert count_pairs(tiles).tolist() == brute_force(tiles).sum((1, 2)).tolist()
    assert count_tiles(tiles, 16, 32).tolist() == listed(tiles.table(16, 32)).tolist()


def test_memory_does_not_grow_with_what_is_counted() -> None:
    tiles = Strided(block=64, local_blocks=16, stride=128, head_step=4).tiles(Documents(1_048_576), 4)
    with Largest() as largest:
        number = count_tiles(tiles, 128, 128)
    assert number.min() > 500_000
    assert largest.elements < 500_000


def test_a_million_tokens_of_a_composition() -> None:
    length = 1_048_576
    one = Documents(length)
    assert count_pairs((Causal() & Window(30)).tiles(one)).tolist() == [30 * length - 30 * 29 // 2]
    # Every other key of the last 2,048: asked along diagonals, not pair by pair.
    dilated = count_pairs((Causal() & Dilated(1024, 2)).tiles(one))
    assert dilated.tolist() == [1024 * length - 2 * (1024 * 1023 // 2)]
