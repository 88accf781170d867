"""What each implementation computes is counted as it computes it: held to lists of blocks, made by hand."""

from collections.abc import Iterator

import pytest
import torch
from examples import PATTERNS
from torch import Tensor

from lg.attention import Causal, Documents, Pattern, SinkWindow, Tiles, Window
from lg.attention.attend import IMPLEMENTATIONS
from lg.attention.cost import banded_pairs
from lg.testing.patterns import brute_force


def layouts(pattern: Pattern) -> Iterator[Tiles]:
    """One document, and several with all queries and with a chunk of them."""
    for length, starts, queries in (
        (1, (0,), None), (300, (0,), None), (700, (0, 3, 5, 130, 384, 640), None), (700, (0, 3, 384), (200, 600)),
    ):  # fmt: skip
        attributes = {"prefix": [20] * len(starts)} if "prefix" in pattern.attributes else {}
        yield pattern.tiles(Documents(length, starts, attributes), pattern.made_for or 3, queries)


def met(seen: Tensor, block: int) -> Tensor:
    """Which blocks of some seen pairs [heads, Lq, L] hold any: bool [heads, rows, columns]."""
    heads, num_queries, length = seen.shape
    rows, columns = -(-num_queries // block), -(-length // block)
    padded = seen.new_zeros(heads, rows * block, columns * block)
    padded[:, :num_queries, :length] = seen
    return padded.view(heads, rows, block, columns, block).any(4).any(2)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_flex_computes_the_tiles_that_hold_a_pair(pattern: Pattern) -> None:
    for tiles in layouts(pattern):
        want = met(brute_force(tiles), 128).sum((1, 2)) * 128**2
        assert torch.equal(IMPLEMENTATIONS["flex"].executed(tiles).pairs, want)
        assert torch.equal(IMPLEMENTATIONS["flex_flash"].executed(tiles).pairs, want)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_gathering_takes_as_many_blocks_in_every_row_as_in_the_fullest(pattern: Pattern) -> None:
    for tiles in layouts(pattern):
        blocks = met(brute_force(tiles), 64)
        most = max(int(blocks.sum(2).max()), 1)
        assert (
            IMPLEMENTATIONS["gather"].executed(tiles).pairs.tolist() == [most * blocks.shape[1] * 64**2] * tiles.heads
        )


def test_dense_attention_computes_the_square_and_keeps_its_weights() -> None:
    pairs, scores_again = IMPLEMENTATIONS["dense"].executed(Causal().tiles(Documents(700, (0, 384)), 3, (200, 600)))
    assert (pairs.tolist(), scores_again) == ([400 * 700], False)


def in_documents(tiles: Tiles) -> int:
    """Tiles of 128 that hold a pair, of each document by itself, from its first query and its first key."""
    seen = brute_force(tiles)[0]
    first, last = tiles.queries
    total = 0
    for begin, end in tiles.documents.bounds.T.tolist():
        own = seen[max(begin, first) - first : max(min(end, last) - first, 0), begin:end]
        total += int(met(own[None], 128).sum()) if own.numel() else 0
    return total * 128**2


@pytest.mark.parametrize("pattern", [Causal(), Window(1), Window(100), Window(128), Window(129), Window(300)], ids=str)
def test_kernels_for_documents_skip_what_lies_outside_the_band(pattern: Pattern) -> None:
    for tiles in layouts(pattern):
        assert IMPLEMENTATIONS["flash"].executed(tiles).pairs.tolist() == [in_documents(tiles)]
    if pattern == Causal():
        tiles = pattern.tiles(Documents(700, (0, 384)))
        assert IMPLEMENTATIONS["sdpa"].executed(tiles).pairs.tolist() == [in_documents(tiles)]


def test_a_band_of_another_tile_size() -> None:
    # 10 tokens in tiles of 4: rows of 4, 4 and 2 queries; the third reaches back 5 keys, to the second tile.
    assert banded_pairs(SinkWindow(window=6, sinks=0).tiles(Documents(10)), 6, block=4).tolist() == [
        (1 + 2 + 3 - 1 + 1) * 16
    ]
