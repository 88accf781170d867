"""``lg plan``: what training would hold on each device and how long a step would take, told without a device.

No data is read and no weight made: bytes are those of `lg.models.footprint`, times those of `lg.models.step_time`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch

from lg.attention import Documents, Pattern
from lg.attention.cost import AttentionCost
from lg.attention.part import GRID, Held, Split
from lg.cli.configuration import Config
from lg.cli.lengths import tokens_in
from lg.cli.model_part import model_parser, read_model
from lg.cli.plan_table import table
from lg.cli.trainer_part import Training, training
from lg.cli.trouble import Refused
from lg.cli.written import file_for, write
from lg.models.cost import scheduled
from lg.models.devices import FILLED, Device, device
from lg.models.footprint import Footprint, Setup, footprint, longest
from lg.models.hybrid import HybridLM
from lg.models.memory import Memory
from lg.models.step_time import StepTime, Work, attention_seconds, step_time
from lg.parallel.balance import imbalance, padded_length, split
from lg.parallel.plan import Plan

_OPTIONS = {
    "device": ("H100", "what to plan for: H100, H200 or A100"),
    "devices": ("", "how many; by default those of trainer.devices and trainer.num_nodes"),
    "context": ("", "devices that share a sequence; by default the strategy's context_parallel_size"),
    "precision": ("", "32-true, bf16-true or bf16-mixed; by default trainer.precision"),
    "length": ("", "tokens of one document that is a batch; by default the rows of data, a document each"),
    "json": ("", "a file for the figures; empty for none"),
}
_TILE = 8192
"""Tokens; the MLP's products are no faster with more."""


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


class Planned:
    """A model's training on named devices.

    Args:
        model: what is trained.
        run: on how many devices, and how.
        rows: rows of a batch, a document each.
        row_length: tokens of a row.
        on: the device.

    Raises:
        ValueError: if a layer's cost is not known.
    """

    def __init__(self, model: HybridLM, run: Training, rows: int, row_length: int, on: Device) -> None:
        self.model, self.run, self.rows, self.row_length, self.device = model, run, rows, row_length, on
        self.config = model.decoder_config
        patterns = scheduled(model.schedule, model.patterns)
        for name, pattern in patterns.items():
            asked = sorted(set(pattern.attributes) - {"length"})
            if asked:
                raise ValueError(
                    f"model.init_args.patterns.{name}: {pattern} asks for doc.{asked[0]}, which each document has of "
                    "its own; a plan is made only where patterns ask for no more than doc.length"
                )
        self.layers: list[Pattern] = [patterns[name] for name in model.schedule]
        batch = rows * row_length
        self.num_tokens = (batch if run.context == 1 else padded_length(batch, run.context)) // run.context

    @property
    def limit(self) -> int:
        """Bytes that tensors may fill."""
        return int(FILLED * self.device.memory)

    def choices(self) -> list[Choice]:
        """Each way to keep activations; those that keep most come first."""
        tile = self.model.memory.tile or _TILE
        ways = (("nothing", False), ("halves", False), ("halves", True), ("blocks", False), ("blocks", True))
        return [self._choice(Memory(again, away, size)) for again, away in ways for size in (None, tile)]

    def _choice(self, memory: Memory) -> Choice:
        run = self.run
        keys = self.num_tokens + self._received[0] if run.context > 1 else 0
        setup = Setup(self.config, memory, run.precision, self.num_tokens, run.num_shards, run.num_batches, keys)
        held = footprint(setup)
        most = longest(setup, self.limit, GRID) * run.context
        return Choice(memory, held, step_time(setup, self._work, self.device), most, held.peak <= self.limit)

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
        share = self.rows * self.imbalance / self.run.context
        exchanged = self._received[1] * 2 * config.num_kv_heads * config.head_width * element
        return Work(share * sum(seconds[pattern] for pattern in self.layers), exchanged, self.model.compile_blocks)

    @cached_property
    def imbalance(self) -> float:
        """The attention of the busiest device of a context group over the mean."""
        if self.run.context == 1:
            return 1.0
        return imbalance(self._split, self._documents, self.layers, self.config.num_kv_heads)

    @cached_property
    def _documents(self) -> Documents:
        return Documents(self.num_tokens * self.run.context, range(0, self.rows * self.row_length, self.row_length))

    @cached_property
    def _split(self) -> Split:
        return split(self._documents, self.layers, self.config.num_kv_heads, self.run.context)

    @cached_property
    def _received(self) -> tuple[int, int]:
        """Tokens that a device receives, of whoever receives most: in one layer, and in all together."""
        if self.run.context == 1:
            return 0, 0
        total, most = torch.zeros(self.run.context, dtype=torch.int64), 0
        for pattern in dict.fromkeys(self.layers):
            tiles = pattern.tiles(self._documents, self.config.num_kv_heads)
            received = Plan(tiles, Held(self._split, 0)).tokens.sum(1)
            total += self.layers.count(pattern) * received
            most = max(most, int(received.max()))
        return most, int(total.max())


def run(args: list[str]) -> None:
    """Reads the configuration, plans, prints.

    Args:
        args: "plan", and the words after it.

    Raises:
        Refused: when the input is at fault.
    """
    parser = model_parser("plan", "Predicts memory and time of training on named devices, without one.")
    for option, (default, what) in _OPTIONS.items():
        parser.add_argument(f"--{option}", type=str, default=default, help=what)
    model, options, unread = read_model(parser, args[1:], list(_OPTIONS))
    on, file = device(options.device), file_for(options.json, "json", ".json")
    how = training(unread, options.devices, options.context, options.precision)
    rows, row_length = (1, tokens_in(options.length, "length")) if options.length else _rows(unread)
    planned = Planned(model, how, rows, row_length, on)
    choices = planned.choices()
    best = taken(choices)
    print(table(planned, choices, best, options.device))
    if file:
        text = json.dumps(_plain(planned, choices, best, options.device), indent=2)
        write(file, f"{text}\n".encode(), "json")
        print(f"\nwritten  {file}")


def taken(choices: Sequence[Choice]) -> Choice | None:
    """The fastest that fits, and of equals the first; None if none fits."""
    return min((choice for choice in choices if choice.fits), key=lambda choice: choice.time.total, default=None)


def _rows(unread: Config) -> tuple[int, int]:
    """Rows of a batch, and tokens of a row, as the configuration has them."""
    data = unread.get("data")
    told = data.get("init_args") if isinstance(data, dict) else None
    arguments: Mapping[str, Any] = told if isinstance(told, dict) else {}
    found = []
    for key, default in (("batch_size", 1), ("row_length", None)):
        value = arguments.get(key, default)
        if value is None:
            raise Refused(f"data.init_args.{key}: missing; a plan needs it, or --length")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise Refused(f"data.init_args.{key}: {value!r} is not allowed; it must be an integer of at least 1")
        found.append(value)
    return found[0], found[1]


def _plain(planned: Planned, choices: Sequence[Choice], best: Choice | None, name: str) -> dict[str, Any]:
    """The figures: bytes, seconds, tokens."""
    how = planned.run
    return {
        "device": name,
        "devices": how.num_devices,
        "context": how.context,
        "precision": how.precision_name,
        "batches_a_step": how.num_batches,
        "rows": planned.rows,
        "row_length": planned.row_length,
        "tokens_on_a_device": planned.num_tokens,
        "may_fill_bytes": planned.limit,
        "attention_imbalance": planned.imbalance,
        "choices": [
            {
                "memory": asdict(choice.memory),
                "fits": choice.fits,
                "taken": choice is best,
                "bytes": asdict(choice.footprint),
                "seconds": {**asdict(choice.time), "total": choice.time.total},
                "longest": choice.longest,
            }
            for choice in choices
        ],
    }
