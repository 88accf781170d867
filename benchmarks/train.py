"""What a training step of large decoders costs on GPUs, hybrid beside full, by `lg bench train`.

    python benchmarks/train.py [OUT.json] [--gpus N] [--cases A,B] [--minutes 9]

Every case is trained by processes of its own, on all GPUs unless it says one; the file is written after each, and a
second call goes on where the first was cut. `transformers` is Llama's layers as that library has them, with SDPA and
gradient checkpointing, on one GPU, beside the same layers of lg; its loss is lg's, whose logits never exist at once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import complaint, earlier, installed, parser, write

HERE = Path(__file__).parent
K = 1024
MIDDLE, FULL, FEW = "10*local, 12*full, 10*local", "32*full", "14*local, 4*full, 14*local"
SLICE = "2*local, 3*full, 3*local"
STRIDED = (
    "--model.patterns.local={class_path: Strided, init_args: {block: 64, local_blocks: 16, stride: 128, head_step: 4}}"
)
FA2 = ("--trainer.callbacks+=flash_attention_2.FlashAttention2", "--model.attention=sdpa")
SPARING = "--model.memory={recompute: blocks, offload: true, tile: 8192}"


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        name: what it is called.
        schedule: of the layers.
        length: tokens of the row.
        model: a preset.
        options: more, as to `lg fit`.
        gpus: 1, or 0 for all.
        steps, warm_up: optimizer steps, and how many of them are not counted.
    """

    name: str
    schedule: str
    length: int
    model: str = "llama-2-7b"
    options: tuple[str, ...] = ()
    gpus: int = 0
    steps: int = 4
    warm_up: int = 2


def cases() -> Iterator[Case]:
    """The most wanted first."""
    eight = ("--model.decoder={num_layers: 8}",)
    yield Case("hybrid", MIDDLE, 128 * K)
    yield Case("full", FULL, 128 * K)
    yield Case("slice_hybrid", SLICE, 128 * K, options=eight, gpus=1, steps=6)
    yield Case("slice_transformers", "8*full", 128 * K, gpus=1, steps=4)
    yield Case("hybrid_4_full", FEW, 128 * K)
    yield Case("full_fa2", FULL, 128 * K, options=FA2)
    yield Case("slice_hybrid", SLICE, 128 * K, options=eight, steps=6)
    yield Case("strided", MIDDLE, 128 * K, options=(STRIDED,))
    for length in (64 * K, 32 * K):
        yield Case("hybrid", MIDDLE, length)
        yield Case("full", FULL, length)
        yield Case("hybrid_4_full", FEW, length)
    yield Case("slice_full", "8*full", 128 * K, options=eight, gpus=1)
    yield Case("hybrid", MIDDLE, 512 * K, "llama-3-8b", (SPARING,), steps=2, warm_up=1)
    yield Case("hybrid", MIDDLE, 1024 * K, "llama-3-8b", (SPARING,), steps=2, warm_up=1)
    # Somewhat below what `lg plan --device=H100 --devices=1` calls the longest batch.
    yield Case("longest", MIDDLE, 96 * K, "llama-3-8b", (SPARING,), gpus=1, steps=2, warm_up=1)
    yield Case("longest", "5*local, 6*full, 5*local", 768 * K, "llama-3.2-1b", (SPARING,), gpus=1, steps=2, warm_up=1)


def measured(case: Case, gpus: int) -> dict[str, Any]:
    """One case, in processes of its own."""
    own = case.gpus or gpus
    told: dict[str, Any] = {"case": case.name, "model": case.model, "schedule": case.schedule, "length": case.length}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "row.json")
        if case.name == "slice_transformers":
            command = [sys.executable, __file__, str(out), "--peer", f"--steps={case.steps}"]
        else:
            sharded = [
                "--trainer.strategy=lg.parallel.HybridStrategy",
                f"--trainer.strategy.context_parallel_size={own}",
            ]
            command = [
                *(sys.executable, "-m", "lg", "bench", "train", f"--config={HERE / 'train.yaml'}"),
                *(f"--json={out}", f"--steps={case.steps}", f"--warm_up={case.warm_up}"),
                *(f"--lengths={case.length}", f"--schedules={case.schedule}", f"--model.preset={case.model}"),
                *(f"--trainer.devices={own}", *(sharded if own > 1 else []), *case.options),
            ]
        path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}
        )
        if done.returncode or not out.exists():
            return {**told, "gpus": own, "error": complaint(done.stderr or done.stdout)}
        (row,) = json.loads(out.read_text())["rows"]
    return {**told, "gpus": own, "options": list(case.options), **row}


def peer(out: Path, steps: int, length: int, layers: int, device: str) -> None:
    """Llama-2-7B's layers in transformers, and a step as lg's: AdamW, clipped gradients, bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    from lg.models.loss import LMHead

    torch.manual_seed(0)
    small = {} if device == "cuda" else {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    config = LlamaConfig(
        **{"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, **small},
        num_hidden_layers=layers, vocab_size=32000, max_position_embeddings=length, attn_implementation="sdpa",
        use_cache=False,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model, head = LlamaModel(config), LMHead(config.hidden_size, config.vocab_size)
    torch.nn.init.normal_(head.weight, std=0.02)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds = []
    for _ in range(steps):
        tokens = torch.randint(256, (1, length), device=device)
        wait()
        begun = time.perf_counter()
        loss = head(model(input_ids=tokens).last_hidden_state, tokens.roll(-1, 1)) / length
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        wait()
        seconds.append(time.perf_counter() - begun)
    step = statistics.median(seconds[2:])
    row: dict[str, Any] = {"step_s": step, "tokens_per_s_per_gpu": length / step, "loss_nats": float(loss)}
    if device == "cuda":
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    out.write_text(json.dumps({"rows": [row]}))


def key(row: dict[str, Any]) -> tuple[object, ...]:
    """Which case a row is of."""
    return row["case"], row["model"], row["length"], row["gpus"]


def main() -> None:
    """Runs what the file lacks, and writes it after each row."""
    command = parser(__doc__)
    command.add_argument("--gpus", type=int, help="all of the machine by default")
    command.add_argument("--cases", help="only these")
    command.add_argument("--minutes", type=float, default=9.0, help="nothing is begun after so long")
    command.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    command.add_argument("--steps", type=int, default=4, help=argparse.SUPPRESS)
    args = command.parse_args()
    if args.peer:
        peer(args.out, args.steps, 128 * K, 8, "cuda")
        return
    import torch

    begun = time.perf_counter()
    gpus = args.gpus or torch.cuda.device_count()
    device = f"{gpus} x {torch.cuda.get_device_name()}"
    packages = installed("torch", "triton", "lightning", "transformers", "flash-attn-4")
    rows = earlier(args.out)
    for case in cases():
        taken = time.perf_counter() - begun
        row = {"case": case.name, "model": case.model, "length": case.length, "gpus": case.gpus or gpus}
        if any(key(row) == key(done) for done in rows) or (args.cases and case.name not in args.cases.split(",")):
            continue
        if taken > 60 * args.minutes:
            print(f"not begun: {case}")
            continue
        rows.append(measured(case, gpus))
        print(f"{time.perf_counter() - begun:4.0f} s  {json.dumps(rows[-1])}", flush=True)
        write(args.out, "training steps, random weights and tokens, one row a step", device, packages, rows)


if __name__ == "__main__":
    main()
