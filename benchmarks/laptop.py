"""What `make fit` gives on a CPU: full attention, the hybrid and sparse layers only, at equal steps.

    python benchmarks/laptop.py [OUT.json]

Runs `lg fit` with configs/full.yaml, hybrid.yaml and sparse_only.yaml, one after the other with nothing else on the
machine, and reads the figures back from TensorBoard.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import parser, processor, scalars, write

HERE = Path(__file__).parent
CASES = {"full": "full", "hybrid": "hybrid", "sparse only": "sparse_only"}


def run(case: str, config: str) -> dict[str, Any]:
    """One `lg fit`, timed from the outside as well."""
    with tempfile.TemporaryDirectory() as logs:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "lg", "fit", "--config", str(HERE.parent / "configs" / f"{config}.yaml"),
             f"--trainer.logger.save_dir={logs}"],
            check=True, capture_output=True,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        board = scalars(Path(logs))
    return {
        "case": case,
        "steps": board["train/loss_nats"][-1][0] + 1,
        "bits_per_byte": round(board["val/bits_per_byte"][-1][1], 3),
        "count_model_bits_per_byte": round(board["val/count_model_bits_per_byte"][-1][1], 3),
        "step_s": round(statistics.median(value for _, value in board["speed/step_s"]), 3),
        "whole_run_s": round(seconds),
    }


def main() -> None:
    """Runs every case and writes the file."""
    args = parser(__doc__).parse_args()
    rows = []
    for case, config in CASES.items():
        rows.append(run(case, config))
        print(json.dumps(rows[-1]), flush=True)
        write(
            args.out,
            "configs/*.yaml on the Python standard library: rows of 4,096 bytes, held-out documents",
            f"{processor()}, {os.cpu_count()} cores",
            ["torch", "lightning"],
            rows,
        )


if __name__ == "__main__":
    main()
