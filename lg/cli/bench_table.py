"""The lines that ``lg bench attention`` prints: what was measured, and of what."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import NamedTuple

import torch

from lg.attention.bench import Case, Row
from lg.cli.figures import figure

_PACKAGES = ("torch", "triton", "flash-attn-4")


class Unit(NamedTuple):
    """What rates are told in: its name, and how many make a TFLOP/s."""

    name: str
    in_tera: int


def unit_of(device: torch.device) -> Unit:
    """The one in which rates are numbers of a few digits."""
    return Unit("TFLOP/s", 1) if device.type == "cuda" else Unit("GFLOP/s", 1000)


def heading(case: Case) -> str:
    """The device, the shape, versions, and the table's head."""
    on_gpu = case.device.type == "cuda"
    device = torch.cuda.get_device_name(case.device) if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    unit = unit_of(case.device).name
    return "\n".join(
        [
            f"{device}; {', '.join(f'{name} {version}' for name, version in _versions())}",
            f"one sequence, {case.num_heads} query heads on {case.num_kv_heads} KV heads of {case.width}, "
            f"{str(case.dtype).removeprefix('torch.')}",
            "",
            f"                          ms        useful {unit}  executed {unit}    peak   as fast as    greatest",
            "               forward backward     fwd     bwd      fwd     bwd     MiB  best causal       error",
        ]
    )


def label(case: Case) -> str:
    """What stands above a case's lines."""
    documents = len(case.documents.starts)
    packed = f" in {documents:,} documents" if documents > 1 else ""
    return f"{case.name}, {case.documents.length:,} tokens{packed}: {case.pattern.text}"


def line(row: Row, causal: Sequence[Row], unit: Unit) -> str:
    """One implementation.

    Args:
        row: its figures, or why it has none.
        causal: rows of full causal attention of the same shape; may be none.
        unit: of the rates.
    """
    if row.fwd_ms is None or row.bwd_ms is None:
        return f"  {row.impl:<11} {f'refused: {row.refused}' if row.refused else f'failed: {row.failed}'}"
    fields = [
        f"{figure(row.fwd_ms):>9}",
        f"{figure(row.bwd_ms):>8}",
        *(f"{_figure(rate, unit.in_tera):>7}" for rate in (row.fwd_tflops, row.bwd_tflops)),
        "",
        *(f"{_figure(rate, unit.in_tera):>7}" for rate in (row.fwd_executed_tflops, row.bwd_executed_tflops)),
        f"{_figure(row.peak_MiB):>7}",
        f"{_gain(row, causal):>12}",
        f"{f'{max(row.errors.values()):.1e}' if row.errors else '':>11}",
        "  auto" if row.auto else "",
    ]
    return f"  {row.impl:<11} {' '.join(fields)}".rstrip()


def _gain(row: Row, causal: Sequence[Row]) -> str:
    times = [other.both_ms for other in causal if other.both_ms]
    return f"{min(times) / row.both_ms:.2f}x" if times and row.both_ms else ""


def _figure(value: float | None, times: int = 1) -> str:
    return "" if value is None else figure(times * value)


def _versions() -> list[tuple[str, str]]:
    installed = {found.metadata["Name"] for found in importlib.metadata.distributions()}
    return [(name, importlib.metadata.version(name)) for name in _PACKAGES if name in installed]
