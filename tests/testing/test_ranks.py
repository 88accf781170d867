"""run_ranks: results by rank, and a failure that is told and ends the others."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from lg.testing import RankFailed, run_ranks


def total(rank: int, start: torch.Tensor) -> tuple[int, int, str]:
    number = start + rank
    dist.all_reduce(number)
    return rank, int(number), os.environ["WORLD_SIZE"]


def fail_or_wait(rank: int) -> None:
    if rank == 1:
        raise ValueError("I give up")
    dist.barrier()


def sleep(rank: int) -> None:
    time.sleep(60 if rank == 0 else 0)


def die(rank: int) -> None:
    if rank == 1:
        os._exit(7)
    dist.barrier()


def test_results_come_by_rank() -> None:
    assert run_ranks(total, 2, torch.tensor(10)) == [(0, 21, "2"), (1, 21, "2")]


def test_what_a_rank_raises_is_told_and_the_others_are_ended() -> None:
    before = time.monotonic()
    with pytest.raises(RankFailed, match=r"(?s)rank 1:.*ValueError: I give up"):
        run_ranks(fail_or_wait, 2)
    assert time.monotonic() - before < 30


def test_a_rank_that_dies_is_named() -> None:
    with pytest.raises(RankFailed, match=r"rank 1 died with code 7|rank 0:(?s:.*)onnection"):
        run_ranks(die, 2)


def test_a_rank_that_hangs_is_named() -> None:
    with pytest.raises(RankFailed, match="rank 0 did not end in time"):
        run_ranks(sleep, 2, timeout_s=4.0)
