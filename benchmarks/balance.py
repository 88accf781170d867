"""What sorting and dealing a step's micro-batches saves on documents of mixed length: two ranks, the same losses.

    python benchmarks/balance.py

Trains benchmarks/balance.yaml on two devices (processes, without a GPU) with `balance` and without it: by DDP, where
ranks wait for each other once a step, and where they wait in every micro-step. The files of the standard library are
packed whole: some rows are one document, others are many, and attention over them costs accordingly.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import torch
from report import device_name, parser, scalars, write

HERE = Path(__file__).parent
WARM_UP = 2


def run(wait: str, strategy: str, balance: bool, options: list[str]) -> dict[str, Any]:
    """One `lg fit` on two ranks."""
    with tempfile.TemporaryDirectory() as logs:
        command = [
            sys.executable, "-m", "lg", "fit", "--config", str(HERE / "balance.yaml"),
            f"--data.source.path={sysconfig.get_path('stdlib')}", f"--data.balance={str(balance).lower()}",
            f"--trainer.logger.save_dir={logs}", f"--trainer.strategy.class_path={strategy}", *options,
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            return {"ranks wait": wait, "balance": balance, "error": (done.stderr or done.stdout)[-2000:]}
        board = scalars(Path(logs))
    steps = [value for step, value in board["speed/step_s"] if step >= WARM_UP]
    return {
        "ranks wait": wait,
        "balance": balance,
        "options": options,
        "step_s": round(statistics.mean(steps), 4),
        "spread": [round(min(steps), 4), round(max(steps), 4)],
        "losses": [round(value, 5) for _, value in board["train/loss_nats"]],
    }


def main() -> None:
    """Runs the cases in turns and writes the file."""
    waits = {"in every micro-step": "every_micro_step.EveryMicroStep", "once a step": "DDPStrategy"}
    made = parser(__doc__)
    made.add_argument("--waits", nargs="*", choices=list(waits), default=list(waits), help="only these")
    args = made.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    cuda = torch.cuda.is_available()
    # On a CPU, what fits: the same rows' costs, of a smaller model.
    shape = [] if cuda else [
        "--model.preset=tiny", "--model.schedule=6*full", "--data.row_length=4096", "--trainer.precision=32-true",
        "--trainer.accelerator=cpu", "--model.compile=false",
    ]  # fmt: skip
    rows = []
    for wait, balance in itertools.product(args.waits, (False, True)):
        rows.append(run(wait, waits[wait], balance, shape))
        print(json.dumps(rows[-1]), flush=True)
    device = device_name(cuda)
    write(
        args.out,
        "two ranks, 8 micro-batches a step and rank, files of the standard library packed whole",
        f"2 x {device}" if cuda else f"{device}, {os.cpu_count()} cores",
        ["torch", "lightning"],
        rows,
    )


if __name__ == "__main__":
    main()
