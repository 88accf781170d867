"""Milliseconds are those of the call, and only of the call."""

from __future__ import annotations

import time

import pytest
import torch

from lg.attention.bench import times, timing

CPU = torch.device("cpu")


def test_a_call_takes_as_long_as_it_takes() -> None:
    taken = times(lambda: time.sleep(0.005), CPU, seconds=0.02)
    assert 5 <= taken.least <= taken.median <= taken.most
    assert taken.median < 50
    assert 3 <= taken.calls <= 4


def test_a_quick_call_is_not_timed_for_ever() -> None:
    assert times(lambda: None, CPU, seconds=10).calls == 25


def test_a_long_call_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_LONG", 0.001)
    called = []
    assert times(lambda: called.append(time.sleep(0.002)), CPU).calls == 1
    assert len(called) == 3


@pytest.mark.gpu
def test_what_flushes_the_cache_is_not_counted() -> None:
    device = torch.device("cuda", 0)
    x = torch.zeros(1 << 28, device=device)
    large = times(x.zero_, device, seconds=0.1)
    small = times(x[:1024].zero_, device, seconds=0.1)
    assert small.median < 0.2 < large.median < 10
