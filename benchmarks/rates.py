"""Makes the table of rates that comes with lg, by which `auto` chooses, from benchmarks/results/attention*.json.

python benchmarks/rates.py

Times of implementations that these runs do not have stay as they were, from benchmarks/results/backends.json.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lg.attention import rates
from lg.attention.attend import IMPLEMENTATIONS
from lg.attention.rates.table import rows_of

HERE = Path(__file__).parent
# The first has most, and counts before the second.
SOURCES = [HERE / "results" / name for name in ("attention.json", "attention_flash.json", "attention_pieces.json")]
OLDER = HERE / "results" / "backends.json"
# The results do not tell it.
CAPABILITY = {"NVIDIA H100 80GB HBM3": [9, 0]}
# Of packed documents it was timed with kernels that it takes no longer: cuDNN plans for each length, and one packing,
# over and over, has few. To be dropped with the next run.
OUTDATED = "sdpa"
_PROBLEM = ("sees", "packed", "length", "heads", "kv_heads", "width", "dtype")


def made(results: list[dict[str, Any]], before: dict[str, Any]) -> dict[str, Any]:
    """The table of some results on a device; variants that only the benchmark knows are left out."""
    device = results[0]["device"]
    assert {result["device"] for result in (*results, before)} == {device}
    tables = [rows_of(row for row in result["rows"] if row["impl"] in IMPLEMENTATIONS) for result in results]
    merged: dict[tuple[object, ...], dict[str, Any]] = {}
    for row in (*(row for table in tables for row in table), *before["rows"]):
        one = merged.setdefault(tuple(row[key] for key in _PROBLEM), {**row, "ms": {}})
        one["ms"] = {**row["ms"], **one["ms"]}
    for row in merged.values():
        if row["packed"]:
            row["ms"].pop(OUTDATED, None)
    return {
        "device": device,
        "capability": CAPABILITY[device],
        "versions": {name: version for result in results for name, version in result["versions"].items()},
        "sources": [path.relative_to(HERE.parent).as_posix() for path in (*SOURCES, OLDER)],
        "rows": list(merged.values()),
    }


def main() -> None:
    """Rewrites the table in lg/attention/rates."""
    results = [json.loads(path.read_text()) for path in SOURCES]
    name = re.sub("[^a-z0-9]+", "_", results[0]["device"].lower())
    path = Path(rates.__file__).parent / f"{name}.json"
    path.write_text(json.dumps(made(results, json.loads(path.read_text())), indent=1) + "\n")


if __name__ == "__main__":
    main()
