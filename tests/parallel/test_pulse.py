"""A rank that shows nothing any more is named, and one rank is the first to tell."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import pytest
import torch.distributed as dist

from lg.parallel.pulse import Beat, Missing, Pulse, start_pulse
from lg.parallel.strategy import HybridStrategy
from lg.parallel.watch import EVERY_S, GRACE_S

TIMEOUT_S = 2.0


@contextmanager
def pulses(num: int, num_ranks: int, steps: Sequence[int] = ()) -> Iterator[tuple[list[Pulse], dist.Store]]:
    """The first ``num`` ranks of a run, which have come as far as ``steps``, and a client of their store."""
    ports: list[int] = []

    def agree(port: int) -> int:
        ports.append(port or ports[0])
        return ports[0]

    steps = steps or [0] * num
    made = [
        start_pulse(rank, num_ranks, "127.0.0.1", TIMEOUT_S, agree, partial(steps.__getitem__, rank))
        for rank in range(num)
    ]
    found = [pulse for pulse in made if pulse is not None]
    assert len(found) == num
    try:
        yield found, dist.TCPStore("127.0.0.1", ports[0], is_master=False, wait_for_workers=False)
    finally:
        for pulse in found[1:] + found[:1]:
            pulse.stop()


def asked(pulse: Pulse, seconds: float) -> Missing | None:
    """What it tells as soon as it tells anything."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (missing := pulse.missing()) is not None:
            return missing
        time.sleep(EVERY_S)
    return None


def test_a_rank_that_is_silent_is_named_and_one_that_has_not_begun_or_has_ended_is_not() -> None:
    with pulses(3, 5) as ((first, second, third), store):
        third.stop()
        store.set("beat/3", "7\nfar\n0\n")
        assert asked(first, 1.0) is None
        missing = asked(first, 20.0)
        assert missing is not None and missing.ranks == [3]
        assert (
            missing.clause.startswith("rank 3 on far is not heard of for 2 seconds") and "timeout_s" in missing.clause
        )
        assert first.speaker(missing) == 0 and first.speaker(Missing([0, 1], "")) == 2
        assert second.missing() is None or second.missing() == missing


def test_a_rank_that_stays_behind_is_named_with_its_line() -> None:
    steps = [7, 7, 7]
    with pulses(3, 3, steps) as ((first, _, third), _):
        # All wait for something else, and nobody for another.
        assert asked(first, 4.0) is None
        steps[:2] = 8, 9
        missing = asked(third, 20.0)
        assert missing is not None and missing.ranks == [2]
        assert "rank 2 on " in missing.clause and " hangs at line " in missing.clause
        assert "in asked: the others have gone on" in missing.clause
        steps[:] = 9, 9, 9
        time.sleep(2 * EVERY_S)
        assert asked(first, 3.0) is None


def test_where_the_first_host_is_gone_a_rank_of_each_other_host_tells() -> None:
    def speaker(rank: int, *missing: int) -> int:
        pulse = Pulse(dist.HashStore(), dist.HashStore(), rank, 5, TIMEOUT_S, int)
        pulse._beats = [Beat(9, "a"), Beat(9, "a"), Beat(9, "b"), Beat(9, "b"), Beat(9, "c")]
        return pulse.speaker(Missing([*missing], ""))

    # Of the first host only rank 0, which has the store, is known to be silent.
    assert [speaker(rank, 0) for rank in range(1, 5)] == [1, 2, 2, 4]
    assert [speaker(rank, 0, 2) for rank in (1, 3, 4)] == [1, 3, 4]
    assert [speaker(rank, 2) for rank in (0, 1, 3, 4)] == [0] * 4


def test_a_rank_that_says_nothing_waits_for_the_one_that_tells() -> None:
    """It would end first otherwise, and be told of in place of the one that is silent."""
    strategy = HybridStrategy()
    pulse = strategy._pulse = Pulse(dist.HashStore(), dist.HashStore(), 0, 3, 1800.0, int)
    pulse._silent = [1700.0, 0.0, 0.0]
    told = strategy._missing()
    # Looks are 8.1 seconds apart.
    assert told is not None and told[0] == "" and told[1] > GRACE_S + 2 * 8


def test_one_rank_is_the_first_to_tell() -> None:
    with pulses(2, 2) as ((first, second), _):
        assert [second.is_first_to_tell(), first.is_first_to_tell(), second.is_first_to_tell()] == [True, False, False]


def test_a_store_that_is_out_of_reach_is_told_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert start_pulse(1, 2, "127.0.0.1", TIMEOUT_S, lambda _: 0) is None
    assert "rank 1 reaches no store at 127.0.0.1" in caplog.text
