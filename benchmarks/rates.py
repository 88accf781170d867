"""Makes the table of rates that comes with lg, by which `auto` chooses, from benchmarks/results/attention.json.

python benchmarks/rates.py
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
SOURCE = HERE / "results" / "attention.json"
# The results do not tell it.
CAPABILITY = {"NVIDIA H100 80GB HBM3": [9, 0]}


def made(result: dict[str, Any]) -> dict[str, Any]:
    """The table of one result file; variants that only the benchmark knows are left out."""
    rows = [row for row in result["rows"] if row["impl"] in IMPLEMENTATIONS]
    return {
        "device": result["device"],
        "capability": CAPABILITY[result["device"]],
        "versions": result["versions"],
        "source": SOURCE.relative_to(HERE.parent).as_posix(),
        "rows": rows_of(rows),
    }


if __name__ == "__main__":
    table = made(json.loads(SOURCE.read_text()))
    name = re.sub("[^a-z0-9]+", "_", table["device"].lower())
    (Path(rates.__file__).parent / f"{name}.json").write_text(json.dumps(table, indent=1) + "\n")
