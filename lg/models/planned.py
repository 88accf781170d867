"""What each way to keep activations would hold and take in a run, so that one of them can be chosen.

>>> from lg.attention import Causal
>>> from lg.models.devices import device
>>> from lg.models.presets import preset
>>> run = Training(1, 1, 1, "bf16-true", 1, sharded=False)
>>> planned = Planned(preset("llama-3.2-1b"), [Causal()] * 16, False, run, 1, 65536, None, device("H100"))
>>> best = taken(planned.choices())
>>> best.memory
Memory(recompute='nothing', offload=False, tile=8192)
>>> 65536 < best.longest < 262144
True
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from lg.attention import Pattern
from lg.attention.cost import AttentionCost
from lg.attention.part import GRID
from lg.models.adapters import Adapter
from lg.models.config import DecoderConfig
from lg.models.cost import scheduled
from lg.models.devices import FILLED, Device
from lg.models.footprint import PRECISIONS, Footprint, Precision, Setup, footprint, longest
from lg.models.memory import Memory
from lg.models.step_time import StepTime, Travel, Work, attention_seconds, step_time

_TILE = 8192
"""Tokens; the MLP's products are no faster with more."""


@dataclass(frozen=True)
class Training:
    """On what, and how, a model is trained.

    Attributes:
        num_devices: all of them.
        context: how many share a sequence.
        replicas: how many hold the same part of the weights.
        precision_name: as the trainer knows it.
        num_batches: batches of a step.
        sharded: whether it is `lg.parallel.HybridStrategy` that trains.
        weights_in_host: whether weights, gradients and moments wait in the host's memory.
        exchange_groups: groups of KV heads that may travel one after the other, where a sequence is shared.
    """

    num_devices: int
    context: int
    replicas: int
    precision_name: str
    num_batches: int
    sharded: bool
    weights_in_host: bool = False
    exchange_groups: int = 1

    @property
    def precision(self) -> Precision:
        """How numbers are held."""
        return PRECISIONS[self.precision_name]

    @property
    def num_shards(self) -> int | None:
        """Devices that hold the weights together; None where they are not gathered."""
        return self.num_devices // self.replicas if self.sharded else None


class Share(Protocol):
    """What a device that shares a sequence has to do with a batch, as `lg.parallel.share` tells it."""

    @property
    def num_tokens(self) -> int:
        """Tokens that it holds."""

    @property
    def imbalance(self) -> float:
        """The attention of the busiest device over the mean."""

    @property
    def received(self) -> Mapping[Pattern, int]:
        """Tokens whose keys it receives in a layer of each pattern."""

    @property
    def by_heads(self) -> Collection[Pattern]:
        """The patterns whose KV heads may travel one group after the other."""


@dataclass(frozen=True)
class Choice:
    """One way to keep activations, and what comes of it.

    Attributes:
        memory: the way.
        footprint: bytes on the device that holds most.
        time: of one step.
        longest: tokens of the longest batch with which it fits.
        fits: whether this one does.
    """

    memory: Memory
    footprint: Footprint
    time: StepTime
    longest: int
    fits: bool


@dataclass(frozen=True)
class Planned:
    """A decoder's training on devices that are known.

    Attributes:
        config: the decoder's shape.
        layers: what each layer sees: `plannable` ones.
        compile: whether blocks are compiled.
        run: on how many devices, and how.
        rows: rows of a batch, a document each.
        row_length: tokens of a row.
        share: what a device has of a batch; None where no sequence is shared.
        device: each of the devices.
        host_limit: bytes that a device may fill of its host's memory; None for all that it needs.
        adapter: what is trained in place of all weights.
    """

    config: DecoderConfig
    layers: Sequence[Pattern]
    compile: bool
    run: Training
    rows: int
    row_length: int
    share: Share | None
    device: Device
    host_limit: int | None = None
    adapter: Adapter | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that a device holds."""
        return self.rows * self.row_length if self.share is None else self.share.num_tokens

    @property
    def imbalance(self) -> float:
        """The attention of the busiest device of a context group over the mean."""
        return 1.0 if self.share is None else self.share.imbalance

    @property
    def limit(self) -> int:
        """Bytes that tensors may fill."""
        return int(FILLED * self.device.memory)

    def choices(self, tile: int | None = None) -> list[Choice]:
        """Each way to keep activations; those that keep most come first.

        Args:
            tile: tokens that the MLP takes at a time, where it does.
        """
        ways = (("nothing", False), ("halves", False), ("halves", True), ("blocks", False), ("blocks", True))
        return [self.choice(Memory(again, away, size)) for again, away in ways for size in (None, tile or _TILE)]

    def choice(self, memory: Memory) -> Choice:
        """What comes of one way."""
        run = self.run
        adapted = None if self.adapter is None else self.adapter.counted(self.config)
        setup = Setup(
            self.config,
            memory,
            run.precision,
            self.num_tokens,
            run.num_shards,
            run.num_batches,
            self._keys(by_heads=False),
            adapted,
            run.weights_in_host,
            self._keys(by_heads=True),
            self._heads_at_once,
        )
        held = footprint(setup)
        fits = held.peak <= self.limit and (self.host_limit is None or held.host <= self.host_limit)
        most = longest(setup, self.limit, GRID, self.host_limit) * run.context
        return Choice(memory, held, step_time(setup, self._work, self.device), most, fits)

    @property
    def _heads_at_once(self) -> int:
        """KV heads of a group, where they travel by groups."""
        heads = self.config.num_kv_heads
        return -(-heads // min(self.run.exchange_groups, heads))

    def _goes_by_heads(self, pattern: Pattern) -> bool:
        """Whether there are groups in its layers: as `lg.parallel.exchange` has it."""
        is_one = self._heads_at_once == self.config.num_kv_heads
        return self.share is not None and pattern in self.share.by_heads and not is_one

    def _keys(self, by_heads: bool) -> int:
        """As `Setup` has them, of layers that fetch in the one way or the other. What fetches nothing has no copy."""
        received = {} if self.share is None else self.share.received
        most = max((n for each, n in received.items() if self._goes_by_heads(each) == by_heads), default=0)
        return self.num_tokens + most if most else 0

    @cached_property
    def _work(self) -> Work:
        config, element = self.config, self.run.precision.element
        seconds = {
            pattern: attention_seconds(
                AttentionCost(pattern, self.row_length, config.num_heads, config.num_kv_heads, config.head_width),
                self.device,
                element,
            )
            for pattern in dict.fromkeys(self.layers)
        }
        part = self.rows * self.imbalance / self.run.context
        received = {} if self.share is None else self.share.received
        token = 2 * config.num_kv_heads * config.head_width * element
        first = self._heads_at_once / config.num_kv_heads
        layers = Counter(self.layers)
        exchanged = [
            Travel(
                layers[pattern] * count * token,
                first if self._goes_by_heads(pattern) else 1.0,
                layers[pattern] * part * seconds[pattern],
            )
            for pattern, count in received.items()
        ]
        return Work(part * sum(seconds[pattern] for pattern in self.layers), exchanged, self.compile)


def plannable(schedule: Sequence[str], patterns: Mapping[str, object]) -> list[Pattern]:
    """The patterns of a schedule's layers, where a plan can be made of them.

    Raises:
        ValueError: if a layer's cost is not known, or hangs on what each document has of its own.
    """
    known = scheduled(schedule, patterns)
    for name, pattern in known.items():
        asked = sorted(set(pattern.attributes) - {"length"})
        if asked:
            raise ValueError(
                f"model.init_args.patterns.{name}: {pattern} asks for doc.{asked[0]}, which each document has of "
                "its own; a plan is made only where patterns ask for no more than doc.length"
            )
    return [known[name] for name in schedule]


def taken(choices: Sequence[Choice]) -> Choice | None:
    """The fastest that fits, and of equals the first; None if none fits."""
    return min((choice for choice in choices if choice.fits), key=lambda choice: choice.time.total, default=None)
