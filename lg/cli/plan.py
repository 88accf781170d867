"""``lg plan``: what training would hold on each device and how long a step would take, told without a device.

No data is read and no weight made: bytes are those of `lg.models.footprint`, times those of `lg.models.step_time`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lg.attention import Documents
from lg.cli.configuration import Config
from lg.cli.lengths import tokens_in
from lg.cli.model_part import model_parser, read_model
from lg.cli.plan_table import table
from lg.cli.trainer_part import training
from lg.cli.trouble import Refused
from lg.cli.written import file_for, write
from lg.models.devices import Device, device
from lg.models.hybrid import HybridLM
from lg.models.planned import Choice, Planned, Training, plannable, taken
from lg.parallel.share import share

_OPTIONS = {
    "device": ("H100", "what to plan for: H100, H200 or A100"),
    "devices": ("", "how many; by default those of trainer.devices and trainer.num_nodes"),
    "context": ("", "devices that share a sequence; by default the strategy's context_parallel_size"),
    "precision": ("", "32-true, bf16-true or bf16-mixed; by default trainer.precision"),
    "length": ("", "tokens of one document that is a batch; by default the rows of data, a document each"),
    "json": ("", "a file for the figures; empty for none"),
}


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
    name = options.device.upper()
    on, file = device(options.device), file_for(options.json, "json", ".json")
    how = training(unread, options.devices, options.context, options.precision)
    rows, row_length = (1, tokens_in(options.length, "length")) if options.length else _rows(unread)
    planned = _planned(model, how, rows, row_length, on)
    choices = planned.choices(model.memory.tile)
    best = taken(choices)
    print(table(model, planned, choices, best, name))
    if file:
        text = json.dumps(_plain(planned, choices, best, name), indent=2)
        write(file, f"{text}\n".encode(), "json")
        print(f"\nwritten  {file}")


def _planned(model: HybridLM, how: Training, rows: int, row_length: int, on: Device) -> Planned:
    config, layers = model.decoder_config, plannable(model.schedule, model.patterns)
    part = None
    if how.context > 1:
        documents = Documents(rows * row_length, range(0, rows * row_length, row_length))
        part = share(documents, layers, config.num_kv_heads, how.context)
    return Planned(config, layers, model.compile_blocks, how, rows, row_length, part, on, adapter=model.adapter)


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
