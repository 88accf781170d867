"""Plans: what a pattern needs of other ranks, and no more."""

from __future__ import annotations

import pytest
import torch

from lg.attention import Causal, Documents, SinkWindow, Strided
from lg.attention.part import GRID, Held, Split, merged
from lg.parallel.balance import split
from lg.parallel.plan import Plan


@pytest.mark.parametrize("window", [256, 1984, 4096])
def test_a_window_fetches_its_halo_and_sinks(window: int) -> None:
    """At most 1.3 times what a rank's queries see of others, counted in tokens."""
    pattern, length = SinkWindow(window=window, sinks=64), 131072
    for on in (Documents(length), Documents(length, (0, 20000, 50000, 50100, 90000))):
        shared = split(on, [pattern, Causal()], 8, 4)
        for rank in range(4):
            held = Held(shared, rank)
            seen = torch.zeros(length, dtype=torch.bool)
            for first, end in held.ranges:
                for start, after in zip(*on.bounds.tolist(), strict=True):
                    if max(first, start) < min(end, after):
                        seen[start : min(start + 64, after)] = True
                        seen[max(start, max(first, start) - window + 1) : min(end, after)] = True
            seen[held.tokens] = False
            fetched = sum(Plan(pattern.tiles(on, 8), held).received)
            assert int(seen.sum()) <= fetched <= 1.3 * int(seen.sum())


def test_ranks_agree() -> None:
    """What one receives of another is what that one sends; and a rank's keys are its own and what it receives."""
    on = Documents(1024, (0, 500, 700))
    shared = Split((0, 128, 512, 768, 1024), (1, 0, 2, 1))
    for pattern in (Causal(), SinkWindow(window=200, sinks=4), Strided(64, 1, 3)):
        plans = [Plan(pattern.tiles(on, 4), Held(shared, rank)) for rank in range(3)]
        assert all(torch.equal(plan.tokens, plans[0].tokens) for plan in plans)
        assert [plan.sent for plan in plans] == [[plan.received[rank] for plan in plans] for rank in range(3)]
        for rank, plan in enumerate(plans):
            assert merged(plan.keys) == plan.keys
            assert sum(end - first for first, end in plan.keys) == plan.num_held + sum(plan.received)
            own = Held(shared, rank).ranges
            assert all(any(low <= first and end <= high for low, high in plan.keys) for first, end in own)


def test_what_lies_on_one_rank_does_not_travel() -> None:
    on = Documents(8 * GRID, (0, 4 * GRID))
    shared = Split((0, 4 * GRID, 8 * GRID), (0, 1))
    assert not Plan(Causal().tiles(on), Held(shared, 0)).tokens.any()
    assert Plan(Causal().tiles(8 * GRID), Held(shared, 1)).received == [4 * GRID, 0]
