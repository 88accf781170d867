"""Which implementation of attention is fastest, by what was measured on such a device.

A short table comes with lg for each kind of device that was measured; ``lg bench attention --update`` measures the
user's own, which then counts first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lg.attention.constant import constant_in_graphs
from lg.attention.patterns import Causal
from lg.attention.rates.table import Rate, rates
from lg.attention.tiles import Tiles

# Kernels for the one take as long for the other.
_SAME = {"float16": "bfloat16"}

# It calls a kernel for each document, so what one takes tells nothing of many.
_BY_DOCUMENT = "sdpa"


class Choice(NamedTuple):
    """An implementation, by the name that `attend` knows it by, and why it would be taken: what was measured."""

    name: str
    reason: str


class _Problem(NamedTuple):
    """What decides which implementation is fastest; ``sees`` is the pattern's kind."""

    device: torch.device
    sees: str
    packed: bool
    length: int
    groups: int
    width: int
    dtype: str


def ranked(q: Tensor, k: Tensor, tiles: Tiles) -> Sequence[Choice]:
    """The implementations that were measured on a problem like this, the fastest first; empty where none was.

    Problems are alike on the same kind of device and in a type of as many bits. Of those measured the nearest counts:
    of a pattern with the same text but for its numbers (else of any that is not full causal, as this one must then be),
    then packed or not, then of the nearest head width, length, and query heads on a KV head. Where that leaves several,
    their mean counts. For packed documents ``sdpa`` is left out where it was measured on one document.

    Args:
        q: queries [B, H, Lq, D]; only shape, type and device matter.
        k: keys [B, G, L, D], likewise.
        tiles: what is seen.
    """
    return _choices(
        q.device,
        tiles.text,
        tiles.packed,
        tiles.documents.length,
        q.shape[1] // k.shape[1],
        q.shape[3],
        q.dtype,
    )


def forget() -> None:
    """Has the tables read anew, after one was written."""
    rates.cache_clear()
    _ranked.cache_clear()


@constant_in_graphs
def _choices(
    device: torch.device, text: str, packed: bool, length: int, groups: int, width: int, dtype: torch.dtype
) -> Sequence[Choice]:
    return _ranked(_Problem(device, kind(text), packed, length, groups, width, str(dtype).removeprefix("torch.")))


# Lengths may be many; what is kept is small.
@cache
def _ranked(problem: _Problem) -> Sequence[Choice]:
    near = _nearest(problem)
    # In times of the fastest, as logarithms: the mean is over the rows that have an implementation.
    shares: dict[str, list[float]] = {}
    for rate in near:
        times = {name: ms for name, ms in rate.ms.items() if _counts(name, rate, problem)}
        for name, taken in times.items():
            shares.setdefault(name, []).append(math.log(taken / min(times.values())))
    mean = {name: math.exp(sum(logs) / len(logs)) for name, logs in shares.items()}
    order = sorted(mean, key=lambda name: mean[name])
    return tuple(
        Choice(name, f"it was measured {_compared(mean, name, other)}, {_where(near)}")
        # The slowest is told beside the fastest.
        for name, other in zip(order, [*order[1:], *order[:1]], strict=True)
    )


def _nearest(problem: _Problem) -> list[Rate]:
    causal = Causal().text

    def distance(rate: Rate) -> tuple[float, ...]:
        return (
            kind(rate.sees) != problem.sees,
            rate.packed != problem.packed,
            _apart(rate.width, problem.width),
            _apart(rate.length, problem.length),
            _apart(rate.heads / rate.kv_heads, problem.groups),
        )

    alike = [
        rate
        for rate in rates(problem.device)
        # Full causal attention has kernels of its own.
        if _type(rate.dtype) == _type(problem.dtype) and (rate.sees == causal) == (problem.sees == causal)
    ]
    least = min(map(distance, alike), default=())
    return [rate for rate in alike if distance(rate) == least]


def _counts(name: str, rate: Rate, problem: _Problem) -> bool:
    return name != _BY_DOCUMENT or rate.packed or not problem.packed


def _compared(mean: dict[str, float], name: str, other: str) -> str:
    gain = mean[other] / mean[name]
    return f"{gain:.2f}x as fast as {other}" if name != other else "alone"


def _where(near: Sequence[Rate]) -> str:
    cases, first = ", ".join(dict.fromkeys(rate.case for rate in near)), near[0]
    tokens = f"{first.length // 1024}K" if first.length % 1024 == 0 else f"{first.length:,}"
    packed = " of packed documents" if first.packed else ""
    return (
        f"on {cases}, {tokens} tokens{packed}, head width {first.width}, {first.device}, "
        f"{max(rate.date for rate in near)}"
    )


@cache
def kind(text: str) -> str:
    """A pattern's text with every number written N: windows of any width are of one kind."""
    return re.sub(r"\d+", "N", text)


def _type(dtype: str) -> str:
    return _SAME.get(dtype, dtype)


def _apart(one: float, other: float) -> float:
    """How many times one is the other, as a distance."""
    return round(abs(math.log2(one / other)), 6)
