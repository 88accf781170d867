"""Every row is trained on once an epoch, and ranks have about the same work in each micro-step."""

import numpy as np
import pytest

from lg.data.order import micro_batches


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("num_shards", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2, 5])
def test_each_row_once_and_in_its_step(batch_size: int, num_shards: int, accumulate: int) -> None:
    costs = np.random.default_rng(0).exponential(size=101)
    dealt = micro_batches(costs, batch_size, num_shards, accumulate)
    at_once = batch_size * num_shards
    assert dealt.shape == (101 // at_once, num_shards, batch_size)
    for first in range(0, len(dealt), accumulate):
        step = dealt[first : first + accumulate]
        assert sorted(step.ravel()) == list(range(first * at_once, first * at_once + step.size))


def test_rows_stay_in_order_without_balance() -> None:
    dealt = micro_batches(np.arange(24.0), 2, 3, 2, balance=False)
    assert dealt.ravel().tolist() == list(range(24))


def test_micro_steps_and_ranks_are_alike() -> None:
    costs = np.random.default_rng(1).pareto(1.5, size=8 * 4 * 50)
    means = {}
    for balance in (False, True):
        work = costs[micro_batches(costs, 1, 4, 8, balance)][..., 0].reshape(50, 8, 4)
        # Ranks that wait in each micro-step take as long as the slowest; so do those that wait once a step.
        means[balance] = work.max(axis=2).sum(), work.sum(axis=1).max(axis=1).sum()
    assert means[True][0] < 0.7 * means[False][0]
    assert means[True][1] < means[False][1]


def test_equal_costs_keep_their_order_on_one_rank() -> None:
    assert micro_batches(np.ones(12), 2, 1, 3).ravel().tolist() == list(range(12))


def test_too_few_rows_make_no_step() -> None:
    assert micro_batches(np.ones(3), 2, 2, 1).shape == (0, 2, 2)
