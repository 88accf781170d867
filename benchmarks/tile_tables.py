"""How long tile tables take to build, on the host.

python benchmarks/tile_tables.py [OUT.json]
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from laptop import processor

from lg.attention import Causal, Documents, Pattern, SinkWindow, Strided

HERE = Path(__file__).parent
PACKED = (0, 20_000, 50_001, 77_777, 100_003)
CASES: dict[str, tuple[Pattern, Documents, int]] = {
    "sinks and window, 131,072 tokens": (SinkWindow(window=1984, sinks=64), Documents(131_072), 1),
    "sinks and window, 1,048,576 tokens": (SinkWindow(window=1984, sinks=64), Documents(1_048_576), 1),
    "causal, 1,048,576 tokens": (Causal(), Documents(1_048_576), 1),
    "strided, 32 heads that differ, packed, both directions, 131,072 tokens": (
        Strided(block=64, local_blocks=16, stride=128, head_step=4),
        Documents(131_072, PACKED),
        32,
    ),
}


def milliseconds(pattern: Pattern, documents: Documents, heads: int) -> list[float]:
    """Each of thirty builds, after ten unmeasured: the table, and where heads differ its transpose too."""
    times = []
    for _ in range(40):
        start = time.perf_counter()
        tiles = pattern.tiles(Documents(documents.length, documents.starts), heads)
        tiles.table()
        if heads > 1:
            tiles.transposed()
        times.append(1e3 * (time.perf_counter() - start))
    return times[10:]


def main() -> None:
    """Runs every case and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=HERE / "results" / "tile_tables.json")
    args = parser.parse_args()
    rows = []
    for case, (pattern, documents, heads) in CASES.items():
        times = milliseconds(pattern, documents, heads)
        table = pattern.tiles(documents, heads).table()
        rows.append(
            {
                "case": case,
                "median_ms": round(statistics.median(times), 1),
                "spread_ms": [round(min(times), 1), round(max(times), 1)],
                "rows": table.heads * table.num_rows,
                "runs": table.run_count.numel(),
                "full_tiles": table.num_full,
                "partial_tiles": table.num_partial,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    result = {
        "what": "tile tables of 128 x 128 tokens, built on the host",
        "device": f"{processor()}, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/tile_tables.py",
        "rows": rows,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
