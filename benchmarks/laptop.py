"""What `make fit` gives on a CPU: full attention, the hybrid and sparse layers only, at equal steps.

    python benchmarks/laptop.py [OUT.json]

Runs `lg fit` with configs/full.yaml, hybrid.yaml and sparse_only.yaml, one after the other with nothing else on the
machine, and reads the figures back from TensorBoard.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from board import scalars

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


def processor() -> str:
    """The processor's name, as far as the system tells."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Runs every case and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=HERE / "results" / "laptop.json")
    args = parser.parse_args()
    import lightning
    import torch

    result = {
        "what": "configs/*.yaml on the Python standard library: rows of 4,096 bytes, held-out documents",
        "device": f"{processor()}, {os.cpu_count()} cores",
        "versions": {
            "torch": torch.__version__,
            "lightning": lightning.__version__,
            "python": platform.python_version(),
        },
        "date": datetime.date.today().isoformat(),
        "command": "python benchmarks/laptop.py",
        "rows": [],
    }
    for case, config in CASES.items():
        row = run(case, config)
        result["rows"].append(row)
        print(json.dumps(row), flush=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
