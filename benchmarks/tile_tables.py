"""How long tile tables take to build, on the host.

python benchmarks/tile_tables.py [OUT.json]
"""

from __future__ import annotations

import json
import statistics
import time

import torch
from report import parser, processor, write

from lg.attention import Causal, Documents, Pattern, SinkWindow, Strided

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
    args = parser(__doc__).parse_args()
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
    device = f"{processor()}, {torch.get_num_threads()} threads"
    write(args.out, "tile tables of 128 x 128 tokens, built on the host", device, ["torch"], rows)


if __name__ == "__main__":
    main()
