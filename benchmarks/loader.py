"""How fast batches come, against how fast a GPU uses them up: the loader of `TextData`, and training of a small model.

    python benchmarks/loader.py

Loaders are drained as fast as they go, from the cache on disk, with and without worker processes. On a GPU the 135M
shape is trained with benchmarks/loader.yaml too, and each loader is compared with what that consumes.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from report import device_name, parser, scalars, write

from lg.data import BestFit, Cut, Stdlib, TextData

HERE = Path(__file__).parent
SECONDS = 5
WARM_UP = 20


def drained(name: str, **options: Any) -> dict[str, Any]:
    """Tokens a second of one loader, over batches of 64K tokens, its first ones left out."""
    length = options["row_length"]
    data = TextData(Stdlib(), batch_size=max(1, 65536 // length), **options)
    data.setup()

    def batches() -> Any:
        while True:
            for batch in data.train_dataloader():
                data.train_dataloader().consume()
                yield batch

    endless = batches()
    for _ in itertools.islice(endless, 2 * options["num_workers"] + 2):
        pass
    tokens, padding, start = 0, 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        batch = next(endless)
        tokens += batch["tokens"].numel()
        padding += batch["num_padding"]
    seconds = time.perf_counter() - start
    return {
        "case": name,
        "workers": options["num_workers"],
        "row_length": length,
        "tokens_per_s": round((tokens - padding) / seconds),
        "padding_percent": round(100 * padding / tokens, 2),
    }


def trained() -> dict[str, Any] | None:
    """What a GPU consumes: `lg fit` of the 135M shape."""
    if not torch.cuda.is_available():
        return None
    with tempfile.TemporaryDirectory() as logs:
        command = [sys.executable, "-m", "lg", "fit", "--config", str(HERE / "loader.yaml")]
        done = subprocess.run(
            [*command, f"--trainer.logger.save_dir={logs}"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            return {"case": "training", "error": (done.stderr or done.stdout)[-2000:]}
        board = scalars(Path(logs))
    figures = {
        tag: round(statistics.median(value for step, value in points if step >= WARM_UP), 3)
        for tag, points in board.items()
        if tag.split("/")[0] in ("speed", "work", "memory", "data")
    }
    return {"case": "training, 135M hybrid", **figures}


def main() -> None:
    """Runs every case and writes the file."""
    args = parser(__doc__).parse_args()
    os.environ["TQDM_DISABLE"] = "1"
    rows: list[dict[str, Any]] = [row for row in [trained()] if row]
    consumed = rows[0].get("speed/tokens_per_s") if rows else None
    for (name, options), workers in itertools.product(
        {
            "cut": {"row_length": 4096, "packing": Cut()},
            "best fit": {"row_length": 4096, "packing": BestFit()},
            "best fit, long rows": {"row_length": 131072 // 2, "packing": BestFit()},
        }.items(),
        (0, 4),
    ):
        row = drained(name, num_workers=workers, **options)
        if consumed:
            row["times_what_the_gpu_consumes"] = round(row["tokens_per_s"] / consumed, 1)
        rows.append(row)
        print(json.dumps(row), flush=True)
    device = device_name(torch.cuda.is_available())
    write(args.out, "tokens a second of the loader", f"{device}, {os.cpu_count()} cores", ["torch", "lightning"], rows)


if __name__ == "__main__":
    main()
