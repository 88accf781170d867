"""What ``lg probe`` prints: the layers that each measure proposes, and lines of YAML."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import lg.attention
from lg.attention import Pattern, SinkWindow
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


def schedule(measures: Measures, num_full: int, out: Path, local: SinkWindow, sees: Sequence[Pattern]) -> str:
    """Lines of YAML, by the measure that looks at most.

    Args:
        measures: what was found.
        num_full: layers that are not local.
        out: the file of scores.
        local: what a restricted layer sees.
        sees: what each layer of the model sees, which is what a full one goes on to see.
    """
    measure = next((name for name in _PREFERRED if name in measures), next(iter(measures)))
    sets = measures[measure]["sets"]
    num_full = min(num_full, len(sets))
    chosen = sets[num_full - 1]
    kinds = list(dict.fromkeys(sees[layer] for layer in chosen))
    called = {pattern: "full" if number == 1 else f"full_{number}" for number, pattern in enumerate(kinds, 1)}
    schedule = written([called[pattern] if layer in chosen else "local" for layer, pattern in enumerate(sees)])
    patterns = "".join(f"      {name}: {_flow(pattern)}\n" for pattern, name in called.items())
    lines = f"model:\n  init_args:\n    patterns:\n{patterns}      local: {_flow(local)}\n"
    if len(kinds) > 1:
        return f"{lines}    schedule: {schedule}  # what layers of this model see differs, so not by Measured"
    return (
        f"{lines}    schedule:\n      class_path: Measured\n"
        f"      init_args: {{scores: {json.dumps(str(out))}, full_layers: {num_full}, measure: {measure}}}\n"
        f"    # the same, written out: {schedule}"
    )


def _flow(pattern: Pattern) -> str:
    """A pattern as YAML, in one line."""
    told = plain(it=pattern)["it"]
    if getattr(lg.attention, type(pattern).__name__, None) is type(pattern):
        told["class_path"] = type(pattern).__name__
    if not told["init_args"]:
        del told["init_args"]
    text: str = yaml.safe_dump(told, sort_keys=False, default_flow_style=True, width=math.inf)
    return text.rstrip()


def heads(measures: Measures, num_full: int, local: SinkWindow, full: Pattern) -> str:
    """Patterns and schedule with KV heads that see ``full``, as YAML."""
    measure = next(name for name in OF_HEADS if name in measures)
    plan = per_head(measures[measure]["heads"], num_full, full, local)
    told = {"model": {"init_args": {"patterns": plain(**plan.patterns), "schedule": plan.schedule}}}
    return yaml.safe_dump(told, sort_keys=False, width=math.inf).rstrip()
