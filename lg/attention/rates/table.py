"""The tables of measured times: those that come with lg, and the user's own in lg's cache folder.

A table is JSON: the ``device`` by name, its ``capability``, and ``rows``:

- ``case``, ``sees``: the pattern's name and text;
- ``packed``: whether the sequence held several documents;
- ``length``, ``heads``, ``kv_heads``, ``width``, ``dtype``: the shape;
- ``date``: when it was measured;
- ``ms``: of each implementation, forward and backward milliseconds together.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lg.folder import cache_folder

log = logging.getLogger(__name__)

# Relative errors beyond this are not of rounding, in any type.
_WRONG = 0.1
_PROBLEM = ("case", "sees", "packed", "length", "heads", "kv_heads", "width", "dtype")


class Rate(NamedTuple):
    """One row, and the device that it was measured on."""

    device: str
    case: str
    sees: str
    packed: bool
    length: int
    heads: int
    kv_heads: int
    width: int
    dtype: str
    date: str
    ms: Mapping[str, float]


@cache
def rates(device: torch.device) -> Sequence[Rate]:
    """What was measured on such a device: times of the user's own in place of shipped times on the same problems.

    A device without a shipped table is served by that of another of its compute capability.
    """
    name, capability = _name(device), _capability(device)
    tables = _shipped()
    alike = [table for table in tables if table["device"] == name] or [
        table for table in tables if capability and table["capability"] == capability
    ]
    found: dict[tuple[object, ...], Rate] = {}
    for rate in (rate for table in (*alike[:1], _own(name)) for rate in _parsed(table)):
        # What the user did not measure stands as it was shipped.
        before = found.get(_problem(rate))
        found[_problem(rate)] = rate._replace(ms={**before.ms, **rate.ms}) if before else rate
    return tuple(found.values())


def shipped(device: str) -> Sequence[Rate]:
    """What comes with lg of a device by its full name, whatever device is here; empty if it was not measured."""
    return [rate for table in _shipped() if table["device"] == device for rate in _parsed(table)]


def rows_of(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a table from those of `lg.attention.bench`: one a problem, with the times of all that could be timed.

    Left out are chunks of queries, dense attention, which nobody wants to be chosen, results that are far from those of
    the others, and problems with a single time.
    """
    found: dict[tuple[object, ...], dict[str, Any]] = {}
    for row in rows:
        if "fwd_ms" not in row or row["queries"] != row["length"] or row["impl"] == "dense":
            continue
        if any(not error < _WRONG for error in (row.get("errors") or {}).values()):
            continue
        packed = row["documents"] > 1
        problem = {key: packed if key == "packed" else row[key] for key in _PROBLEM}
        one = found.setdefault(tuple(problem.values()), problem | {"date": row["date"], "ms": {}})
        one["ms"][row["impl"]] = round(row["fwd_ms"] + row["bwd_ms"], 3)
    return [row for row in found.values() if len(row["ms"]) > 1]


def updated(device: torch.device, rows: Iterable[Mapping[str, Any]]) -> tuple[Path, str]:
    """The user's own table with these rows of `rows_of` in it, in place of those on the same problems: where it belongs
    and its text. Nothing is written.
    """
    name = _name(device)
    kept = {tuple(row[key] for key in _PROBLEM): row for row in (*_own(name)["rows"], *rows)}
    table = {"device": name, "capability": _capability(device), "rows": list(kept.values())}
    return _own_file(name), json.dumps(table, indent=1) + "\n"


def _own_file(device: str) -> Path:
    return cache_folder() / "rates" / f"{re.sub('[^a-z0-9]+', '_', device.lower())}.json"


def _own(device: str) -> Any:
    """The user's own table; one without rows if there is none, or, with a warning, if it is damaged."""
    file = _own_file(device)
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        _parsed(table)
        return table
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s is not read, since it is damaged (%r); lg bench attention --update writes it anew", file, error)
    return {"device": device, "rows": []}


def _parsed(table: Any) -> list[Rate]:
    return [
        Rate(
            str(table["device"]),
            str(row["case"]),
            str(row["sees"]),
            bool(row["packed"]),
            _positive(row["length"]),
            _positive(row["heads"]),
            _positive(row["kv_heads"]),
            _positive(row["width"]),
            str(row["dtype"]),
            str(row["date"]),
            {str(name): _positive(taken) for name, taken in row["ms"].items()},
        )
        for row in table["rows"]
    ]


def _positive(value: Any) -> Any:
    if not value > 0:
        raise ValueError(f"{value!r} is not above 0")
    return value


def _problem(rate: Rate) -> tuple[object, ...]:
    return tuple(getattr(rate, key) for key in _PROBLEM)


def _shipped() -> list[Any]:
    files = (file for file in resources.files(__package__).iterdir() if file.name.endswith(".json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(files, key=lambda file: file.name)]


@cache
def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@cache
def _capability(device: torch.device) -> list[int] | None:
    return list(torch.cuda.get_device_capability(device)) if device.type == "cuda" else None
