"""What shifted groups save a step of LoRA: LongLoRA's own comparison, on layers of Llama 2 7B.

    python benchmarks/longlora.py [OUT.json] [--layers 8] [--toy]

Full attention and shifted groups of a quarter of the row, rank 8, embedding and norms trained as well, at 32,768 and
65,536 tokens, by `lg bench train`, one process each, in one run. The paper (arXiv 2309.12307) has all 32 layers, and
eight A100.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from report import complaint, device_name, parser, write

HERE = Path(__file__).parent
ADAPTER = "--model.adapter={class_path: LoRA, init_args: {rank: 8, alpha: 16, also_train: [embedding, norm]}}"


def step(name: str, length: int, layers: int, toy: bool) -> dict[str, Any]:
    """What a step costs, as `lg bench train` tells."""
    heads = 2 if toy else 32
    groups = f"{{class_path: ShiftedGroups, init_args: {{group: {length // 4}, num_kv_heads: {heads}}}}}"
    small = ["--trainer.accelerator=cpu", "--trainer.precision=32-true", "--model.compile=false", "--model.preset=tiny"]
    model = [*small, f"--model.decoder={{num_kv_heads: {heads}}}"]
    if not toy:
        model = ["--model.preset=llama-2-7b", f"--model.decoder={{num_layers: {layers}}}"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "row.json")
        command = [
            *(sys.executable, "-m", "lg", "bench", "train", f"--config={HERE / 'train.yaml'}", f"--json={out}"),
            *(f"--lengths={length}", f"--schedules={6 if toy else layers}*{name}", "--steps=6", "--warm_up=2"),
            *(*model, f"--model.patterns.groups={groups}", ADAPTER, "--trainer.devices=1"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        told: dict[str, Any] = {"case": name, "length": length, "layers": layers}
        if done.returncode or not out.exists():
            return {**told, "error": complaint(done.stderr or done.stdout)}
        (row,) = json.loads(out.read_text())["rows"]
    return {**told, **row}


def main() -> None:
    """Runs all four, and writes the file after each."""
    command = parser(__doc__)
    command.add_argument("--layers", type=int, default=8)
    command.add_argument("--toy", action="store_true", help="a tiny model at short lengths, to see that it works")
    args = command.parse_args()
    device = device_name(torch.cuda.is_available())
    rows: list[dict[str, Any]] = []
    for length in (256, 512) if args.toy else (32768, 65536):
        for name in ("full", "groups"):
            rows.append(step(name, length, args.layers, args.toy))
            print(json.dumps(rows[-1]), flush=True)
            packages = ["torch", "triton", "lightning"]
            write(args.out, "a step of LoRA, random weights and tokens", device, packages, rows)
        full, groups = rows[-2:]
        if "step_s" in full and "step_s" in groups:
            print(f"{length}: {full['step_s'] / groups['step_s']:.2f} times as fast in groups")


if __name__ == "__main__":
    main()
