"""Training speed of a hybrid against full attention and against transformers, on one GPU, through `lg fit`.

    python benchmarks/first_light.py OUT.json

Runs 50 steps of benchmarks/first_light.yaml for each case, each in a process of its own, reads the figures back from
TensorBoard, and writes them with the device and versions. The first 20 steps are warm-up; medians are of the rest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from report import parser, scalars, write

HERE = Path(__file__).parent
WARM_UP = 20
LG_CASES = {
    "lg full": ["--model.schedule=16*full"],
    "lg hybrid, 6 of 16 layers full": [],
    "lg hybrid, FlexAttention in every layer": ["--model.attention=flex"],
    "lg hybrid, packed documents": ["--data.document_mask=true"],
}


def run_lg(name: str, options: list[str]) -> dict[str, Any]:
    """One `lg fit`."""
    with tempfile.TemporaryDirectory() as logs:
        command = [sys.executable, "-m", "lg", "fit", "--config", str(HERE / "first_light.yaml"), *options]
        done = subprocess.run(
            [*command, f"--trainer.logger.save_dir={logs}"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            return {"case": name, "error": (done.stderr or done.stdout)[-2000:]}
        board = scalars(Path(logs))
    steady = [value for step, value in board["speed/tokens_per_s"] if step >= WARM_UP]
    graphs = dict(board["compile/graphs"])
    return {
        "case": name,
        "options": options,
        "tokens_per_s": round(statistics.median(steady)),
        "spread": [round(min(steady)), round(max(steady))],
        "peak_GiB": round(max(value for _, value in board["memory/peak_GiB"]), 2),
        "loss_first_last": [round(board["train/loss_nats"][i][1], 3) for i in (0, -1)],
        "graphs_compiled": graphs[max(graphs)],
        "graphs_compiled_after_warm_up": graphs[max(graphs)] - graphs[WARM_UP],
    }


def run_transformers() -> dict[str, Any]:
    """The same shape and step in transformers: SDPA, gradient checkpointing, fused AdamW, bf16. The peer."""
    name = "transformers Llama, SDPA, gradient checkpointing"
    done = subprocess.run([sys.executable, __file__, "--peer"], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"case": name, "error": done.stderr[-2000:]}
    return {"case": name, **json.loads(done.stdout.splitlines()[-1])}


def peer() -> None:
    """The body of `run_transformers`, in a process of its own."""
    import time

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    length, steps = 32768, 30
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=16, hidden_size=2048, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
        intermediate_size=8192, vocab_size=128256, tie_word_embeddings=True, max_position_embeddings=131072,
        attn_implementation="sdpa", use_cache=False,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    seconds = []
    for _ in range(steps):
        tokens = torch.randint(256, (1, length), device="cuda")
        torch.cuda.synchronize()
        start = time.perf_counter()
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    steady = [length / s for s in seconds[10:]]
    print(
        json.dumps(
            {
                "tokens_per_s": round(statistics.median(steady)),
                "spread": [round(min(steady)), round(max(steady))],
                "peak_GiB": round(torch.cuda.max_memory_allocated() / 2**30, 2),
            }
        )
    )


def main() -> None:
    """Runs every case and writes the file."""
    command = parser(__doc__)
    command.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    args = command.parse_args()
    if args.peer:
        peer()
        return
    import torch

    rows = []
    for run in [*(lambda n=n, o=o: run_lg(n, o) for n, o in LG_CASES.items()), run_transformers]:
        rows.append(run())
        print(json.dumps(rows[-1]), flush=True)
        write(
            args.out,
            "llama-3.2-1b shape, random weights, rows of 32,768 tokens, one row a step",
            torch.cuda.get_device_name(),
            ["torch", "triton", "lightning"],
            rows,
        )


if __name__ == "__main__":
    main()
