"""What prefill and decode of large decoders cost on one GPU, hybrid beside full, by `lg bench prefill` and `decode`.

    python benchmarks/inference.py [OUT.json] [--cases A,B] [--minutes 9]
    python benchmarks/inference.py --toy OUT.json     tiny, on a CPU: shows that every row works, measures nothing

Every case is measured by processes of its own; the file is written after each, and a second call goes on where the
first was cut, on another GPU too: each row names its own. Weights, and in decode keys and values, are random.
`transformers` is that library's generate on the same shape in bfloat16, with SDPA and its static cache, whose steps it
compiles, or its growing one; times are taken where it chooses each token.

A step of decode, `decode_ms_per_token`, gives each sequence of the batch a token. `bandwidth_share` is what the bytes
of the weights and of the listed pages take at the bandwidth of the data sheet, over what the step took.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import earlier, installed, parser, processor, write

K = 1024
LLAMA_2, LLAMA_3 = "llama-2-7b", "llama-3-8b"
STEPS = 64
LARGE = 100 * 2**30
TOY_LENGTHS = {32 * K: 100, 128 * K: 200, 512 * K: 300}


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        model: a preset.
        schedule: one of `SHARES`.
        length: tokens of the prompt.
        local: what layers see that are not full.
        batch: sequences, or "most" for as many as fit, of which no prompts are read.
        kv: what keys and values are kept as.
        impl: "lg", or whose code it is.
        large: whether it asks for a GPU of more than 100 GiB.
    """

    model: str
    schedule: str
    length: int
    local: str = "sink_window_2k"
    batch: str = "1"
    kv: str = "auto"
    impl: str = "lg"
    large: bool = False

    @property
    def plain(self) -> dict[str, Any]:
        """What the row is told by."""
        told = {key: getattr(self, key) for key in ("model", "schedule", "length", "impl", "kv")}
        return {**told, "local": None if self.schedule == "full" else self.local, "asked_batch": self.batch}


# Of the layers, how many are full, as many in 32.
SHARES = {"full": 32, "hybrid": 12, "hybrid_4_full": 4}


def cases() -> Iterator[Case]:
    """The most wanted first."""
    for schedule in ("full", "hybrid", "hybrid_4_full"):
        yield Case(LLAMA_2, schedule, 128 * K, large=True)
    yield Case(LLAMA_2, "hybrid", 128 * K, "strided_2k", large=True)
    yield Case(LLAMA_2, "hybrid_4_full", 128 * K, "strided_2k", large=True)
    yield Case(LLAMA_2, "full", 128 * K, impl="transformers-static", large=True)
    yield Case(LLAMA_2, "full", 128 * K, impl="transformers-dynamic", large=True)
    yield Case(LLAMA_2, "hybrid", 128 * K, batch="2")
    for length in (128 * K, 32 * K):
        for schedule in ("full", "hybrid"):
            yield Case(LLAMA_3, schedule, length)
        for kv in ("int8", "int4"):
            yield Case(LLAMA_3, "hybrid", length, kv=kv)
        yield Case(LLAMA_3, "full", length, impl="transformers-static")
        yield Case(LLAMA_3, "full", length, impl="transformers-dynamic")
        for schedule, kv in (("full", "auto"), ("hybrid", "auto"), ("hybrid", "int8"), ("hybrid", "int4")):
            yield Case(LLAMA_3, schedule, length, batch="most", kv=kv)
    for schedule, kv in (("hybrid", "auto"), ("full", "auto"), ("hybrid", "int8"), ("hybrid", "int4")):
        yield Case(LLAMA_3, schedule, 512 * K, kv=kv)
    for schedule, kv in (("hybrid", "auto"), ("hybrid", "int8"), ("hybrid", "int4")):
        yield Case(LLAMA_3, schedule, 512 * K, batch="most", kv=kv)


def layers(case: Case, number: int) -> str:
    """The schedule of so many layers: full ones in the middle."""
    full = max(1, round(SHARES[case.schedule] / 32 * number))
    before = (number - full) // 2
    if full == number:
        return f"{number}*full"
    return f"{before}*{case.local}, {full}*full, {number - full - before}*{case.local}"


def measured(case: Case, toy: bool) -> dict[str, Any]:
    """One case, in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "row.json")
        if case.impl != "lg":
            length = TOY_LENGTHS[case.length] if toy else case.length
            options = [f"--preset={case.model}", f"--length={length}", *(["--toy"] if toy else [])]
            return called([sys.executable, __file__, str(out), f"--peer={case.impl}", *options], out)
        row: dict[str, Any] = {}
        for what in ("prefill", "decode") if case.batch != "most" else ("decode",):
            row |= called([*command(case, what, toy), f"--json={out}"], out)
            if "error" in row:
                break
        return row


def command(case: Case, what: str, toy: bool) -> list[str]:
    """`lg bench` for one half of a case."""
    shape = ["--preset=tiny", "--device=cpu"] if toy else [f"--preset={case.model}"]
    length = TOY_LENGTHS[case.length] if toy else case.length
    # On a CPU as many as fit are many.
    batch = "3" if toy and case.batch == "most" else case.batch
    more = (["--chunk=64"] if toy else []) if what == "prefill" else [f"--steps={2 if toy else STEPS}"]
    return [
        *(sys.executable, "-m", "lg", "bench", what, *shape, *more, f"--schedules={layers(case, 6 if toy else 32)}"),
        *(f"--lengths={length}", f"--batch={batch}", f"--kv={case.kv}"),
    ]


def called(words: list[str], out: Path) -> dict[str, Any]:
    """The row that a process has written, or what it said."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode or not out.exists():
        return {"error": (done.stderr or done.stdout).strip()[-1500:]}
    (row,) = json.loads(out.read_text())["rows"]
    # What the case says itself; a half's peak is told by the half.
    told = {key: value for key, value in row.items() if key not in ("model", "schedule", "length", "impl", "kv")}
    peak = (
        {f"{'prefill' if 'prefill_s' in row else 'decode'}_peak_gib": told.pop("peak_gib")}
        if "peak_gib" in told
        else {}
    )
    return {"layers": row["schedule"], **told, **peak}


def peer(out: Path, impl: str, model: str, length: int, toy: bool) -> None:
    """The same shape in transformers: a prompt read, and tokens written."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

    from lg.models.presets import PRESETS

    shape, device = PRESETS["tiny" if toy else model], "cpu" if toy else "cuda"
    config = LlamaConfig(
        hidden_size=shape.width, intermediate_size=shape.ffn_width, num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads, num_key_value_heads=shape.num_kv_heads, head_dim=shape.head_width,
        vocab_size=shape.vocab_size, max_position_embeddings=length + STEPS + 1, tie_word_embeddings=False,
        attn_implementation="sdpa", bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32 if toy else torch.bfloat16)
    with torch.device(device):
        decoder = LlamaForCausalLM(config).eval()
    wait = (lambda: None) if toy else torch.cuda.synchronize

    class Clock(LogitsProcessor):  # type: ignore[misc]
        """When each token is chosen."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            wait()
            self.times.append(time.perf_counter())
            return scores

    ids = torch.randint(shape.vocab_size, (1, length), device=device)
    steps = 4 if toy else STEPS
    cache = {"cache_implementation": "static"} if impl.endswith("static") else {}
    prefill, decode = [], []
    # The first run compiles.
    for _ in range(2):
        clock = Clock()
        wait()
        begun = time.perf_counter()
        decoder.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=steps, max_new_tokens=steps,
            logits_processor=LogitsProcessorList([clock]), **cache,
        )  # fmt: skip
        prefill.append(clock.times[0] - begun)
        decode.append(statistics.median(b - a for a, b in zip(clock.times[:-1], clock.times[1:], strict=True)))
    row: dict[str, Any] = {
        "schedule": f"{shape.num_layers}*full", "batch": 1, "prefill_s": min(prefill), "prefill_runs_s": prefill,
        "decode_ms_per_token": 1e3 * decode[-1], "steps": steps,
    }  # fmt: skip
    if not toy:
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    out.write_text(json.dumps({"rows": [row]}))


def ratios(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Each row beside full attention by lg on the same GPU, of the same shape, length, batch and format."""
    same = ("device", "model", "length", "batch", "kv")
    for row in rows:
        key = [row.get(name) for name in same]
        full = next(
            (x for x in rows if [x.get(n) for n in same] == key and (x["schedule"], x["impl"]) == ("full", "lg")), None
        )
        if full is None or full is row or "error" in row or "error" in full:
            continue
        told = [
            f"{name} {full[of] / row[of]:.2f}x"
            for name, of in (("prefill", "prefill_s"), ("decode", "decode_ms_per_token"), ("KV", "kv_gib"))
            if of in full and of in row
        ]
        name = row["impl"] if row["impl"] != "lg" else f"{row['schedule']} {row['local']}"
        yield f"{row['model']} {row['length']:,} batch {row['batch']} {name}: {', '.join(told)}"


def main() -> None:
    """Runs what the file lacks, and writes it after each row."""
    line = parser(__doc__)
    line.add_argument("--toy", action="store_true", help="tiny, on a CPU")
    line.add_argument("--cases", help="only these schedules, as in full,hybrid")
    line.add_argument("--minutes", type=float, default=9.0, help="nothing is begun after so long")
    line.add_argument("--retry", action="store_true", help="what has failed is measured again")
    line.add_argument("--peer", help=argparse.SUPPRESS)
    line.add_argument("--preset", help=argparse.SUPPRESS)
    line.add_argument("--length", type=int, help=argparse.SUPPRESS)
    args = line.parse_args()
    if args.peer:
        peer(args.out, args.peer, args.preset, args.length, args.toy)
        return
    import torch

    begun = time.perf_counter()
    device = processor() if args.toy else torch.cuda.get_device_name()
    is_large = args.toy or torch.cuda.get_device_properties(0).total_memory > LARGE
    packages = installed("torch", "triton", "transformers", "flash-attn-4")
    rows = earlier(args.out, failed=not args.retry)
    for case in cases():
        told = {**case.plain, "device": device}
        if any(all(row.get(key) == value for key, value in told.items()) for row in rows):
            continue
        if (case.large and not is_large) or (args.cases and case.schedule not in args.cases.split(",")):
            continue
        if time.perf_counter() - begun > 60 * args.minutes:
            print(f"not begun: {case}")
            continue
        rows.append({**told, **measured(case, args.toy)})
        print(f"{time.perf_counter() - begun:4.0f} s  {json.dumps(rows[-1])}", flush=True)
        write(args.out, "prefill and decode, random weights", device, packages, rows)
    print("\n".join(ratios(rows)))


if __name__ == "__main__":
    main()
