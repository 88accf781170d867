"""How long a training step takes on named devices, estimated without one, and what of it is spent on what.

Work is counted exactly (`lg.models.cost`); rates are measured for attention, on one kind of device, and assumed for the
rest (`lg.models.devices`). So times tell choices apart, rather than what a clock will say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from lg.attention.bench.case import PATTERNS
from lg.attention.cost import AttentionCost
from lg.attention.pattern import Pattern
from lg.attention.patterns import Causal
from lg.attention.rates import kind
from lg.attention.rates.table import Rate, shipped
from lg.models.adapters import adapter_work
from lg.models.cost import ModelCost
from lg.models.devices import DEVICES, LINK_REACHED, MEMORY_REACHED, Device
from lg.models.footprint import Setup
from lg.models.wrap import recomputed_weights

# Bytes that elementwise operations read and write for an element of the stream, of q and k, and of the MLP: forward,
# each operation by itself, in float32 where the model says so; or compiled into few. Backward they take twice that.
_EAGER, _COMPILED = (46, 40, 10), (16, 6, 6)


class Travel(NamedTuple):
    """Keys and values that some layers fetch of other devices, for one batch.

    Attributes:
        size: bytes, fetched once.
        first: the part of them that travels before attention begins: 1 where all heads travel together.
        attention: seconds of these layers' attention, forward and backward, during which the rest travels.
    """

    size: int
    first: float
    attention: float


@dataclass(frozen=True)
class Work:
    """What one device has to do in a step besides what `Setup` tells.

    Attributes:
        attention: seconds of attention, forward and backward, for one batch.
        exchanged: what the layers fetch; each layer in one of them.
        compile: whether blocks are compiled.
    """

    attention: float
    exchanged: Sequence[Travel]
    compile: bool


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step.

    Attributes:
        linear: projections, MLPs and head.
        attention: attention.
        again: what the backward pass computes a second time.
        elementwise: norms, rotation, activations.
        exchange: keys, values and their gradients on their way, but for what travels while other heads compute.
        waiting: for weights, and for the stream from the host, where that takes longer than what it is hidden behind.
        optimizer: AdamW.
    """

    linear: float
    attention: float
    again: float
    elementwise: float
    exchange: float
    waiting: float
    optimizer: float

    @property
    def total(self) -> float:
        """All of it."""
        return (
            self.linear + self.attention + self.again + self.elementwise + self.exchange + self.waiting + self.optimizer
        )


def step_time(setup: Setup, work: Work, device: Device) -> StepTime:
    """What one step takes on the busiest device."""
    c, memory, e, n = setup.config, setup.memory, setup.precision.element, setup.num_tokens
    rate, bandwidth, link = device.matmul(e), MEMORY_REACHED * device.bandwidth, LINK_REACHED * device.link
    linear = (ModelCost(c, n, ()).training_flops + n * adapter_work(setup.adapted)) / rate
    again = 2 * recomputed_weights(c, memory, work.compile) * n / rate
    stream, heads, ffn = _COMPILED if work.compile else _EAGER
    features = stream * c.width + heads * (c.num_heads + c.num_kv_heads) * c.head_width + ffn * c.ffn_width
    forward = c.num_layers * n * features / bandwidth
    if memory.recompute == "blocks":
        # Of attention, forward is 4 of 14 operations.
        again += work.attention * 4 / 14
    if memory.recompute != "nothing":
        again += forward
    exchange = sum(_exposed(travel, link) for travel in work.exchanged)
    hidden = linear + work.attention + again + 3 * forward
    # Gathered twice; gradients are sent in float32, once a step.
    sent = (setup.num_weights * 2 * e + setup.num_trained * 4 / setup.num_batches) / link
    if setup.num_shards is None or setup.num_shards == 1:
        sent = 0.0
    # There and back.
    away = 2 * c.num_layers * n * c.width * e / (LINK_REACHED * device.host_link) if memory.offload else 0.0
    own = setup.num_trained / (setup.num_shards or 1)
    if setup.weights_in_host:
        # Brought as often as they are gathered; the gradients come back.
        brought = 2 * setup.num_weights / (setup.num_shards or 1) + own / setup.num_batches
        away += brought * setup.precision.weight / (LINK_REACHED * device.host_link)
        # The host's memory is taken to serve each device as fast as its link does.
        bandwidth = LINK_REACHED * device.host_link
    waiting = max(0.0, sent - hidden) + max(0.0, away - hidden)
    # Weight, gradient and two moments are read, all but the gradient written.
    optimizer = 7 * own * setup.precision.weight / bandwidth
    batches = setup.num_batches
    return StepTime(
        linear=batches * linear,
        attention=batches * work.attention,
        again=batches * again,
        elementwise=batches * 3 * forward,
        exchange=batches * exchange,
        waiting=batches * waiting,
        optimizer=optimizer,
    )


def _exposed(travel: Travel, link: float) -> float:
    """Seconds that are waited for: of the first group of heads all, of the others what exceeds attention's time."""
    # Forward, once more before the backward pass, and the gradients back.
    seconds = 3 * travel.size / link
    return max(travel.first * seconds, seconds - (1 - travel.first) * travel.attention)


def attention_seconds(cost: AttentionCost, device: Device, element: int) -> float:
    """Forward and backward seconds of one layer's attention on one document.

    Tiles are computed at the rate that was measured on the most similar pattern; on another device, or in float32, at
    as large a part of its rate of matrix products.
    """
    measured = DEVICES["H100"]
    groups = cost.num_heads / cost.num_kv_heads
    reached = _reached(kind(cost.pattern.text), cost.head_width, cost.length, groups, device.measured_as)
    return _executed_flops(cost) / (reached * device.matmul(element) / measured.matmul(2))


@cache
def _reached(sees: str, width: int, length: int, groups: float, name: str) -> float:
    """Operations a second of executed tiles."""

    def distance(rate: Rate) -> tuple[float, ...]:
        return (
            (rate.sees == Causal().text) != (sees == Causal().text),
            kind(rate.sees) != sees,
            abs(math.log2(rate.width / width)),
            abs(math.log2(rate.length / length)),
            abs(math.log2(rate.heads / rate.kv_heads / groups)),
        )

    found = [rate for rate in shipped(name) if rate.case in PATTERNS and not rate.packed and rate.dtype == "bfloat16"]
    least = min(map(distance, found))
    # Of several that are as near, the slowest.
    return min(_rate(rate) for rate in found if distance(rate) == least)


def _rate(rate: Rate) -> float:
    pattern: Mapping[str, Pattern] = PATTERNS
    cost = AttentionCost(pattern[rate.case], rate.length, rate.heads, rate.kv_heads, rate.width)
    return _executed_flops(cost) / (min(rate.ms.values()) / 1000)


def _executed_flops(cost: AttentionCost) -> int:
    """Seven products of executed pairs, two forward and five backward."""
    return 14 * cost.head_width * cost.executed
