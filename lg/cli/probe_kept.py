"""Whether what ``lg probe`` kept of a probe that was stopped is what it had written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def is_whole(name: str, value: Any, settings: Mapping[str, Any]) -> bool:
    """Whether a unit of this name can have this value.

    Args:
        name: the unit's.
        value: as JSON had it.
        settings: those of the probe: how many texts, questions, layers and KV heads there are.
    """
    of_heads = settings["shape"]["num_layers"], settings["shape"]["num_kv_heads"]
    kind = name.partition(":")[0].partition(" ")[0]
    if kind == "gates":
        names = "gates", "exp_avg", "exp_avg_sq"
        return (
            isinstance(value, dict)
            and type(value.get("step")) is int
            and all(_numbers(value.get(each), of_heads) for each in names)
        )
    shapes = {"mass": of_heads, "needle": (settings["questions"],), "context": (settings["texts"],)}
    return kind in shapes and _numbers(value, shapes[kind])


def _numbers(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether these are numbers in lists of this shape."""
    if not shape:
        return type(value) in (int, float)
    return isinstance(value, list) and len(value) == shape[0] and all(_numbers(each, shape[1:]) for each in value)
