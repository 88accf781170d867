"""Splits of a sequence: equal tokens, even work, and neighbours together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch

from lg.attention import Causal, Documents, Pattern, SinkWindow, Strided, Window
from lg.attention.cost import executed_pairs
from lg.attention.part import GRID, Part, Split
from lg.parallel.balance import imbalance, padded_length, split

MIX: list[Pattern] = [SinkWindow(window=4096, sinks=4)] * 2 + [Causal()]


def packed(length: int, mean: float, seed: int) -> Documents:
    """Documents of lengths as text has them: few are long."""
    make = torch.Generator().manual_seed(seed)
    starts, end = [], 0
    while end < length:
        starts.append(end)
        end += 1 + min(int(torch.empty(()).log_normal_(mean, 1.5, generator=make)), length // 2)
    return Documents(length, starts)


def held(shared: Split) -> list[int]:
    return [sum(end - first for first, end in shared.ranges(rank)) for rank in range(shared.num_ranks)]


@pytest.mark.parametrize("length", [1, 127, 128, 129, 511, 512, 513, 5000, 131072, 131073])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 8])
def test_padding_is_small_and_shares_are_equal(length: int, num_ranks: int) -> None:
    padded = padded_length(length, num_ranks)
    assert 0 <= padded - length < num_ranks * GRID
    for chunks in (1, 3, 4):
        shared = split(Documents(padded), [Causal()], 2, num_ranks, chunks)
        assert shared.length == padded
        assert held(shared) == [padded // num_ranks] * num_ranks
        assert len(shared.owners) <= 2 * chunks * num_ranks


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mean", [6.0, 8.5])
def test_work_is_even(mean: float, seed: int) -> None:
    """Where chunks that are dealt from both ends are 1.6 times the mean and more."""
    documents = packed(131072, mean, seed)
    shared = split(documents, MIX, 8, 8)
    assert imbalance(shared, documents, MIX, 8) <= 1.05
    from_both_ends = Split(tuple(range(0, 131073, 8192)), (*range(8), *reversed(range(8))))
    assert imbalance(from_both_ends, documents, MIX, 8) > 1.3


@pytest.mark.parametrize("layers", [[Causal()], MIX, [Strided(64, 4, 8)] * 3 + [Causal()], [Window(1)]])
def test_imbalance_is_what_is_executed(layers: Sequence[Pattern]) -> None:
    documents = packed(16384, 7, 0)
    shared = split(documents, layers, 4, 4)
    work = torch.zeros(4)
    for pattern in layers:
        whole = pattern.tiles(documents, 4)
        for rank in range(4):
            pairs = executed_pairs(Part(whole, shared.ranges(rank), whole.key_ranges))
            work[rank] += int(pairs.sum()) * 4 // pairs.numel()
    assert imbalance(shared, documents, layers, 4) == pytest.approx(float(work.max() / work.mean()), rel=1e-4)
    assert work.max() / work.mean() <= 1.05


def test_neighbours_stay_together() -> None:
    """All of them, where every chunk costs alike; and more than by chance, where they do not."""
    shared = split(Documents(131072), [Window(1024)], 8, 8)
    assert shared.owners == tuple(sorted(shared.owners))
    shared = split(Documents(131072), MIX, 8, 8)
    assert sum(one == other for one, other in pairwise(shared.owners)) >= 8


def test_the_same_comes_out_each_time() -> None:
    documents = packed(65536, 7, 1)
    assert split(documents, MIX, 8, 4) == split(Documents(65536, documents.starts), list(reversed(MIX)), 8, 4)


def test_a_layer_that_sees_nothing_is_no_trouble() -> None:
    documents = Documents(1024)
    nothing = Window(1) & ~Window(1)
    shared = split(documents, [nothing], 1, 2)
    assert held(shared) == [512, 512]
    assert imbalance(shared, documents, [nothing], 1) == 1.0
