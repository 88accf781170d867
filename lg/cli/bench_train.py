"""``lg bench train``: how fast a configuration trains here and in how much memory, at any lengths and schedules."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lg.cli.bench import Parser, number
from lg.cli.configuration import Config
from lg.cli.lengths import tokens_in
from lg.cli.stages import gather_stage
from lg.cli.written import file_for, write
from lg.monitor.logged import Logged

HELP = """usage: lg bench train --config FILE [--key=value ...] [--OPTION=VALUE ...]

Trains for a few steps on random tokens what the YAML describes, each case in processes of its own, and says what a
step costs: seconds, tokens a second and GPU, MFU, peak memory, and what each kind of layer fetches from other GPUs. MFU
is of useful work, as a share of what a large matrix product reaches on the device; dense-equivalent, of the work that
full attention in every layer would be. In brackets is what lg plan predicts, where it knows the GPU.

  lg bench train --config configs/hybrid.yaml                                 as it stands
  lg bench train --config configs/hybrid.yaml --lengths=32K,128K              at these lengths
  lg bench train --config run.yaml --schedules="10*local, 12*full, 10*local|32*full"

options; every other key of the YAML is one too, as in lg fit:
  --lengths A,B     tokens of a row, which is one document; by default data.init_args.row_length
  --schedules A|B   by default that of the model
  --steps N         8: optimizer steps of each case
  --warm_up N       3: of these, the first ones, which are not counted
  --json FILE       a .json for the figures
"""

# What is logged, and what a row calls it.
_TAGS = {
    "speed/step_s": "step_s",
    "speed/tokens_per_s": "tokens_per_s",
    "speed/device_tokens_per_s": "tokens_per_s_per_gpu",
    "work/mfu_percent": "mfu_visible",
    "work/dense_equivalent_TFLOP_per_s": "dense_equivalent_TFLOP_per_s",
    "work/matmul_TFLOP_per_s": "matmul_TFLOP_per_s",
    "memory/peak_GiB": "peak_gib",
    "speed/predicted_step_s": "predicted_step_s",
    "memory/predicted_peak_GiB": "predicted_peak_gib",
    "train/loss_nats": "loss_nats",
}
_PREDICTED = (("predicted_step_s", ".2f"), ("predicted_peak_gib", ".1f"))
_CALLBACKS = ("Throughput", "Work", "Memory", "Exchange", "Predicted")
_HEAD = (
    f"{'schedule':<34} {'tokens':>9} {'step':>9} {'(plan)':>8} {'tokens/s':>10} {'MFU':>6} {'dense eq.':>9} "
    f"{'peak':>9} {'(plan)':>7}  fetched"
)


def run(words: list[str]) -> None:
    """Measures case by case, and prints a line for each.

    Args:
        words: those after "train".

    Raises:
        ValueError: when the input is at fault.
    """
    if not words or {"-h", "--help"} & set(words):
        print(HELP, end="")
        return
    parser = Parser(prog="lg bench train", allow_abbrev=False, add_help=False)
    for name, default in (("lengths", None), ("schedules", None), ("steps", "8"), ("warm_up", "3"), ("json", None)):
        parser.add_argument(f"--{name}", default=default)
    own, rest = parser.parse_known_args(words)
    steps, warm_up = (number(getattr(own, name), name, 1000) for name in ("steps", "warm_up"))
    if warm_up >= steps:
        raise ValueError(f"--warm_up: {warm_up} is not allowed; it must be below --steps, {steps}")
    figures = file_for(own.json, "--json", ".json")
    config, options = gather_stage(rest)
    lengths = [tokens_in(word, "--lengths") for word in own.lengths.split(",")] if own.lengths else [_length(config)]
    schedules = [None] if own.schedules is None else [word.strip() for word in own.schedules.split("|")]
    print(_HEAD, flush=True)
    rows: list[dict[str, Any]] = []
    for length, schedule in itertools.product(lengths, schedules):
        rows.append(_measured(config, options, length, schedule, steps, warm_up))
        print(_line(rows[-1]), flush=True)
        if figures:
            versions = {name: importlib.metadata.version(name) for name in ("torch", "lightning")}
            text = json.dumps({"versions": versions, "rows": rows}, indent=1)
            write(figures, f"{text}\n".encode(), "--json")
    if figures:
        print(f"\nwritten  {figures}")


def _measured(
    config: Config, options: list[str], length: int, schedule: str | None, steps: int, warm_up: int
) -> dict[str, Any]:
    """One case, by `lg fit` in processes of its own."""
    trainer = {
        **config.get("trainer", {}),
        "max_steps": steps,
        "limit_val_batches": 0,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "callbacks": [{"class_path": name} for name in _CALLBACKS],
    }
    before = config.get("data", {}).get("init_args", {})
    data = {"row_length": length, "batch_size": before.get("batch_size", 1)}
    made: Config = {**config, "data": {"class_path": "lg.data.RandomTokens", "init_args": data}, "trainer": trainer}
    case = {"schedule": schedule or _schedule(config), "length": length, "steps": steps - warm_up}
    with tempfile.TemporaryDirectory() as folder:
        trainer["logger"] = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": folder, "name": "bench"}}
        file = Path(folder, "case.yaml")
        file.write_text(json.dumps(made))
        command = [sys.executable, "-m", "lg", "fit", "--config", str(file), *options]
        if schedule is not None:
            command.append(f"--model.schedule={schedule}")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            told = (done.stderr or done.stdout).strip().splitlines()
            return {**case, "error": told[-1] if told else f"ended with {done.returncode}"}
        logged = Logged(next(Path(folder).rglob("events.out.tfevents.*")).parent)
    return {**case, **_figures(logged, warm_up)}


def _figures(logged: Logged, warm_up: int) -> dict[str, Any]:
    """Medians over the steps that count; memory's most."""

    def values(tag: str) -> list[float]:
        return [value for step, value in logged.points(tag) if step >= warm_up]

    row: dict[str, Any] = {}
    for tag, name in _TAGS.items():
        if found := values(tag):
            row[name] = max(found) if name == "peak_gib" else statistics.median(found)
    row["gpus"] = round(row.pop("tokens_per_s") / row["tokens_per_s_per_gpu"])
    row["context"] = int(max(values("exchange/num_ranks"), default=1))
    if "mfu_visible" in row:
        row["mfu_visible"] /= 100
        row["mfu_dense_equivalent"] = row.pop("dense_equivalent_TFLOP_per_s") / row["matmul_TFLOP_per_s"]
    layers = [tag for tag in logged.tags if tag.startswith("exchange/") and tag.endswith("_GiB")]
    row["exchange_gib_by_layer_type"] = {
        tag.removeprefix("exchange/").removesuffix("_GiB"): statistics.median(values(tag)) for tag in layers
    }
    if found := values("exchange/imbalance"):
        row["imbalance"] = statistics.median(found)
    return row


def _line(row: dict[str, Any]) -> str:
    begin = f"{row['schedule'][:34]:<34} {row['length']:>9,}"
    if "error" in row:
        return f"{begin}  failed: {row['error']}"
    share = [f"{100 * row[name]:.1f}%" if name in row else "" for name in ("mfu_visible", "mfu_dense_equivalent")]
    peak = f"{row['peak_gib']:.1f} GiB" if "peak_gib" in row else ""
    told = [f"({row[name]:{form}})" if name in row else "" for name, form in _PREDICTED]
    fetched = ", ".join(f"{name} {size:.3f} GiB" for name, size in row["exchange_gib_by_layer_type"].items())
    return (
        f"{begin} {row['step_s']:>7.2f} s {told[0]:>8} {row['tokens_per_s_per_gpu']:>10,.0f} {share[0]:>6} "
        f"{share[1]:>9} {peak:>9} {told[1]:>7}  {fetched}"
    ).rstrip()


def _schedule(config: Config) -> str:
    schedule = config.get("model", {}).get("init_args", {}).get("schedule", "")
    return schedule if isinstance(schedule, str) else str(schedule.get("class_path", schedule))


def _length(config: Config) -> int:
    length = config.get("data", {}).get("init_args", {}).get("row_length")
    if not isinstance(length, int):
        raise ValueError("--lengths: needed, such as 32K, where the YAML has no data.init_args.row_length")
    return length
