"""How long a call takes on a device: the median of several, and how far apart they lie."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

# Calls beyond which the median says no more, and those that it needs.
_MOST, _LEAST = 25, 3
# A call as long as this, in seconds, is timed once.
_LONG = 4.0


class Times(NamedTuple):
    """Milliseconds of one call.

    Attributes:
        median: of the calls timed.
        least, most: the quickest and the slowest of them.
        calls: how many were timed.
    """

    median: float
    least: float
    most: float
    calls: int


def times(call: Callable[[], object], device: torch.device, seconds: float = 0.7) -> Times:
    """Times a call, after two that are not: they compile, allocate, and tell how many fit into ``seconds``.

    On a GPU by CUDA events around each call. Calls follow each other without a pause, as in training, so the host's
    share counts only where the GPU has to wait for it; and before each, outside of the events, as many bytes are
    written as the L2 cache holds twice, so that no call finds its inputs there. Elsewhere by the host's clock.

    Args:
        call: what is timed.
        device: where it computes.
        seconds: how long to go on, about; there are at least 3 calls, or one if it takes more than 4 seconds.
    """
    call()
    _finish(device)
    begun = time.perf_counter()
    call()
    _finish(device)
    once = time.perf_counter() - begun
    count = 1 if once > _LONG else int(min(_MOST, max(_LEAST, seconds / max(once, 1e-6))))
    taken = (_by_events if device.type == "cuda" else _by_clock)(call, device, count)
    return Times(statistics.median(taken), min(taken), max(taken), count)


def _by_events(call: Callable[[], object], device: torch.device, count: int) -> list[float]:
    cached = torch.cuda.get_device_properties(device).L2_cache_size
    flood = torch.empty(2 * cached, dtype=torch.int8, device=device)
    around = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count + 1)]  # type: ignore[no-untyped-call, unused-ignore]
    with torch.cuda.device(device):
        for start, end in around:
            flood.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
    # The first call found an idle GPU, which waited for the host.
    return [float(start.elapsed_time(end)) for start, end in around[1:]]


def _by_clock(call: Callable[[], object], device: torch.device, count: int) -> list[float]:
    taken = []
    for _ in range(count):
        begun = time.perf_counter()
        call()
        _finish(device)
        taken.append(1e3 * (time.perf_counter() - begun))
    return taken


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
