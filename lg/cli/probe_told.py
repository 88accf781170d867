"""What ``lg probe`` prints: the layers that each measure proposes, and lines of YAML."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lg.attention import Causal, SinkWindow
from lg.attention.schedule import written
from lg.evaluation.probe import per_head
from lg.models.checkpoint import plain

Measures = Mapping[str, Mapping[str, Any]]
"""What was found by each measure, as the file of scores has it."""

OF_HEADS = ("gates", "mass")
"""The measures that tell of KV heads, the better one first."""

_PREFERRED = (
    "needle_adapted",
    "context_adapted",
    "needle_greedy",
    "context_greedy",
    "gates",
    "needle_one_out",
    "context_one_out",
    "mass",
)
_SIZES = (1, 2, 3, 4, 6, 8)


def table(measures: Measures) -> str:
    """The sets that each measure proposes, a line a size."""
    lines = []
    for name, found in measures.items():
        lines.append(f"{name}  ({found['unit']}; {found['seconds']:.0f} s)")
        for size in _SIZES:
            if size <= len(found["sets"]) and found["sets"][size - 1] is not None:
                layers = ", ".join(map(str, found["sets"][size - 1]))
                lines.append(f"  {size} full: {layers:<32} {found['share'][size - 1]:7.1%} of the score")
    return "\n".join(lines)


def schedule(measures: Measures, num_full: int, out: Path, local: SinkWindow, num_layers: int) -> str:
    """Lines of YAML, by the measure that looks at most."""
    measure = next((name for name in _PREFERRED if name in measures), next(iter(measures)))
    sets = measures[measure]["sets"]
    num_full = min(num_full, len(sets))
    chosen = sets[num_full - 1]
    schedule = written(["full" if layer in chosen else "local" for layer in range(num_layers)])
    return (
        "model:\n  init_args:\n    patterns:\n      full: {class_path: Causal}\n"
        f"      local: {{class_path: SinkWindow, init_args: {{window: {local.window}, sinks: {local.sinks}}}}}\n"
        "    schedule:\n      class_path: Measured\n"
        f"      init_args: {{scores: {json.dumps(str(out))}, full_layers: {num_full}, measure: {measure}}}\n"
        f"    # the same, written out: {schedule}"
    )


def heads(measures: Measures, num_full: int, local: SinkWindow) -> str:
    """Patterns and schedule with full KV heads, as YAML."""
    measure = next(name for name in OF_HEADS if name in measures)
    plan = per_head(measures[measure]["heads"], num_full, Causal(), local)
    told = {"model": {"init_args": {"patterns": plain(**plan.patterns), "schedule": plan.schedule}}}
    return yaml.safe_dump(told, sort_keys=False, width=math.inf).rstrip()
