"""The recipes' twins on a real model, from start to export, and what more context is worth before and after.

    lg import smollm2 models/smollm2
    lg data fetch austen shakespeare faq essays bible milton
    python benchmarks/recipes.py [OUT.json] [--cases longgen,e2llm] [--minutes 9] [--length 1024 --steps 1]

Each twin is trained by `lg fit`, exported by `lg export`, and loaded by transformers; logits are compared in float32.
What context is worth is asked of the Bible and of Milton, which no twin has read: the last 1,024 tokens of each piece,
given 4,096 to 31,744 tokens before them. The file is written after each twin, and a second call goes on where the first
was cut. `--length` and `--steps` make all of it small, to see that it works.
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

import torch
from report import complaint, device_name, earlier, parser, scalars, write

from lg.attention import Documents
from lg.data import Fetched, TokenizerFile
from lg.evaluation import losses_by_context, paired
from lg.evaluation.probe.texts import pieces
from lg.models.decoder import Decoder
from lg.models.hybrid import HybridLM
from lg.models.pretrained import open_pretrained

ROOT = Path(__file__).parents[1]
TWINS = ("longgen", "longgen_70b", "prolong_64k", "prolong_512k", "longrecipe", "e2llm", "longlora")
TARGETS = 1024
CONTEXTS = (4096, 8192, 16384, 31744)
PIECES = 48

# What reads a longer context with the weights of a twin, where that is not the configuration it was trained in.
AFTERWARDS = {"e2llm": 4.0}


def context(decoder: Decoder, texts: list[torch.Tensor], targets: int, contexts: tuple[int, ...]) -> dict[str, Any]:
    """Mean losses by context, and what each longer one changes against 8K, with intervals."""
    device = decoder.embedding.weight.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        losses = losses_by_context(decoder, texts, targets, contexts)
    base = contexts[min(1, len(contexts) - 1)]
    against = {str(n): vars(paired(losses[:, contexts.index(base)], losses[:, i])) for i, n in enumerate(contexts)}
    return {"texts": len(texts), "loss_nats": dict(zip(map(str, contexts), losses.mean(0).tolist(), strict=True)),
            "against": base, "difference_nats": against}  # fmt: skip


def twin(name: str, models: Path, options: list[str], texts: list[torch.Tensor], how: dict[str, Any]) -> dict[str, Any]:
    """One twin, in a folder that is gone afterwards."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}

    def lg(*words: str) -> None:
        log = folder / f"{words[0]}.log"
        print(f"lg {words[0]}, which writes {log}", file=sys.stderr, flush=True)
        with log.open("w") as file:
            command = [sys.executable, "-m", "lg", *words]
            done = subprocess.run(command, cwd=folder, env=environment, stdout=file, stderr=file, check=False)
        if done.returncode:
            raise RuntimeError(f"lg {words[0]}: {complaint(log.read_text())}")

    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        (folder / "models").symlink_to(models.resolve())
        begun = time.perf_counter()
        lg("fit", f"--config={ROOT / 'recipes' / f'smollm2_{name}.yaml'}", *options)
        seconds = time.perf_counter() - begun
        checkpoints = sorted(folder.rglob("*.ckpt"), key=lambda file: file.stat().st_mtime)
        # A run of several stages logs into a folder for each.
        stages = [stage(logs) for logs in dict.fromkeys(file.parents[1] for file in checkpoints)]
        checkpoint, last = checkpoints[-1], stages[-1]
        row: dict[str, Any] = {
            "case": name,
            "wall_s": seconds,
            "tokens": sum(one["tokens"] for one in stages),
            "tokens_per_s": last["tokens_per_s"],
            "loss_nats": [stages[0]["loss_nats"][0], last["loss_nats"][1]],
            "peak_gib": max((one["peak_gib"] for one in stages if one["peak_gib"] is not None), default=None),
        }
        if len(stages) > 1:
            row["stages"] = stages
        lg("export", str(checkpoint), "out", "--positions=32K")
        module = HybridLM.from_checkpoint(str(checkpoint)).to(device)
        row |= reloaded(folder / "out", module.model, texts[0][:2048].to(device))
        decoder = module.model
        if factor := AFTERWARDS.get(name):
            from lg.models.presets import changed
            from lg.models.rope_scaling import Linear

            decoder.config = changed(decoder.config, {"rope_scaling": Linear(factor)})
        row["context"] = context(decoder, texts, **how)
    return row


def stage(logs: Path) -> dict[str, Any]:
    """What a run, or one stage of it, has logged."""
    told = scalars(logs)
    return {
        "name": logs.name,
        "tokens": told["data/tokens"][-1][1],
        # The first steps compile, and are not counted.
        "tokens_per_s": median([value for _, value in told.get("speed/tokens_per_s", [])]),
        "loss_nats": [told["train/loss_nats"][0][1], told["train/loss_nats"][-1][1]],
        "peak_gib": max((value for tag in told if tag.startswith("memory/") for _, value in told[tag]), default=None),
    }


def median(values: list[float]) -> float | None:
    """Their median; None of none."""
    return statistics.median(values) if values else None


def reloaded(folder: Path, decoder: Decoder, tokens: torch.Tensor) -> dict[str, Any]:
    """What transformers makes of the folder, beside lg's logits."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).to(tokens.device)
    with torch.no_grad():
        theirs = model(tokens[None]).logits[0]
        ours = decoder.float().logits(tokens[None], Documents(len(tokens)))[0]
    return {"class": type(model).__name__, "largest_logit_difference": float((theirs - ours).abs().max())}


def main() -> None:
    """Runs what the file lacks, and writes it after each twin."""
    command = parser(__doc__)
    command.add_argument("--models", type=Path, default=Path("models"))
    command.add_argument("--cases", help="only these")
    command.add_argument("--minutes", type=float, default=9.0, help="nothing is begun after so long")
    command.add_argument("--length", type=int, help="tokens of a row and of a piece, to see that it works")
    command.add_argument("--steps", type=int)
    args = command.parse_args()
    begun = time.perf_counter()
    on_gpu = torch.cuda.is_available()
    options = ["--trainer.log_every_n_steps=4"] + (
        [] if on_gpu else ["--trainer.precision=32-true", "--model.compile=false"]
    )
    contexts, targets, count = CONTEXTS, TARGETS, PIECES
    if args.length:
        options += [f"--data.row_length={args.length}", "--trainer.accumulate_grad_batches=1"]
        options += ["--trainer.limit_val_batches=1", "--trainer.log_every_n_steps=1"]
        contexts, targets, count = (args.length // 4, args.length // 2), args.length // 8, 3
    if args.steps:
        options += [f"--trainer.max_steps={args.steps}"]
    tokenizer = TokenizerFile(str(args.models / "smollm2" / "tokenizer.json"))
    texts = pieces([Fetched("bible"), Fetched("milton")], tokenizer, max(contexts) + targets, count)
    rows = earlier(args.out)
    how = {"targets": targets, "contexts": contexts}
    device = device_name(on_gpu)

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        print(f"{time.perf_counter() - begun:4.0f} s  {json.dumps(row)}", flush=True)
        packages = ["torch", "triton", "lightning", "transformers"]
        write(args.out, "recipes' twins on SmolLM2 135M, on real texts", device, packages, rows)

    done = {row["case"] for row in rows}
    if "pretrained" not in done:
        decoder = open_pretrained(args.models / "smollm2").decoder().eval()
        add({"case": "pretrained", "context": context(decoder.to("cuda" if on_gpu else "cpu"), texts, **how)})
    for name in args.cases.split(",") if args.cases else TWINS:
        if name in done:
            continue
        if time.perf_counter() - begun > 60 * args.minutes:
            print(f"not begun: {name}")
            continue
        try:
            add(twin(name, args.models, options, texts, how))
        except RuntimeError as error:
            add({"case": name, "error": str(error)})


if __name__ == "__main__":
    main()
