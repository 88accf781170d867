"""What prefill and decode of large decoders cost on one GPU, hybrid beside full, by `lg bench prefill` and `decode`.

    python benchmarks/inference.py [OUT.json] [--models A,B] [--schedules A,B] [--minutes 9]
    python benchmarks/inference.py --toy OUT.json     tiny, on a CPU: shows that every row works, measures nothing

A process measures many rows, the most wanted first, and the file is written after each. A second call measures what is
missing, on another GPU too: each row names its own. Where a process fails or is stuck, the row that it was at has the
error, and another process goes on with the next. Weights, and in decode keys and values, are random. `transformers` is
that library's generate on the same shape in bfloat16, with SDPA and its static cache, whose steps it compiles, or its
growing one; times are taken where it chooses each token.

A step of decode, `decode_ms_per_token`, gives each sequence of the batch a token. `bandwidth_share` is what the bytes
of the weights and of the listed pages take at the bandwidth of the data sheet, over what the step took.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import complaint, device_name, earlier, installed, parser, write

K = 1024
LLAMA_2, LLAMA_3 = "llama-2-7b", "llama-3-8b"
STEPS = 64
LARGE = 100 * 2**30
TOY_LENGTHS = {32 * K: 100, 128 * K: 200, 512 * K: 300}
# A longer prompt is read once, after one of so many tokens has compiled what is needed; a shorter one twice.
SHORT = 32 * K
PREFILL, DECODE, BOTH = "prefill", "decode", "prefill and decode"
# What a half has written into a row, once it is there.
FIGURE = {PREFILL: "prefill_s", DECODE: "decode_ms_per_token", BOTH: "decode_ms_per_token"}


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        model: a preset.
        schedule: one of `SHARES`.
        length: tokens of the prompt.
        local: what layers see that are not full.
        batch: sequences, or "most" for as many as fit.
        kv: what keys and values are kept as.
        impl: "lg", or whose code it is.
        halves: what is measured.
        large: whether it asks for a GPU of more than 100 GiB.
    """

    model: str
    schedule: str
    length: int
    local: str = "sink_window_2k"
    batch: str = "1"
    kv: str = "auto"
    impl: str = "lg"
    halves: tuple[str, ...] = (PREFILL, DECODE)
    large: bool = False

    @property
    def plain(self) -> dict[str, Any]:
        """What the row is told by."""
        told = {key: getattr(self, key) for key in ("model", "schedule", "length", "impl", "kv")}
        return {**told, "local": None if self.schedule == "full" else self.local, "asked_batch": self.batch}


# Of the layers, how many are full, as many in 32.
SHARES = {"full": 32, "hybrid": 12, "hybrid_4_full": 4}


def stages() -> Iterator[list[Case]]:
    """Cases that one process measures, the most wanted first."""
    large = [Case(LLAMA_2, schedule, 128 * K, large=True) for schedule in SHARES]
    yield large + [Case(LLAMA_2, name, 128 * K, "strided_2k", large=True) for name in ("hybrid", "hybrid_4_full")]
    yield [peer(LLAMA_2, 128 * K, "static", large=True)]
    yield [Case(LLAMA_2, "hybrid", 128 * K, batch="2")]
    kept = [("full", "auto"), ("hybrid", "auto"), ("hybrid", "int8"), ("hybrid", "int4")]
    lengths = (32 * K, 128 * K)
    of_one = [Case(LLAMA_3, name, length, kv=kv) for length in lengths for name, kv in kept]
    most = [
        Case(LLAMA_3, name, length, batch="most", kv=kv, halves=(DECODE,)) for length in lengths for name, kv in kept
    ]
    yield of_one
    yield [peer(LLAMA_3, length, "static") for length in lengths]
    yield most
    # Decode first, which is quick.
    yield [
        *(Case(LLAMA_3, name, 512 * K, kv=kv, halves=(DECODE,)) for name, kv in kept if kv != "auto"),
        *(Case(LLAMA_3, name, 512 * K, batch="most", kv=kv, halves=(DECODE,)) for name, kv in kept if name != "full"),
        *(Case(LLAMA_3, name, 512 * K, halves=(DECODE, PREFILL)) for name in ("hybrid", "full")),
    ]
    yield [peer(LLAMA_3, length, "dynamic") for length in lengths]
    yield [peer(LLAMA_2, 128 * K, "dynamic", large=True)]


def patience(case: Case) -> int:
    """Seconds after which a process that has not written the row is stuck: the longest prompts take minutes."""
    return 300 if case.length > 128 * K else 180


def peer(model: str, length: int, cache: str, large: bool = False) -> Case:
    """A row of transformers, whose prompt and tokens are one run."""
    return Case(model, "full", length, impl=f"transformers-{cache}", halves=(BOTH,), large=large)


def layers(case: Case, number: int) -> str:
    """The schedule of so many layers: full ones in the middle."""
    full = max(1, round(SHARES[case.schedule] / 32 * number))
    before = (number - full) // 2
    if full == number:
        return f"{number}*full"
    return f"{before}*{case.local}, {full}*full, {number - full - before}*{case.local}"


@dataclass
class Command:
    """What a process does: rows of cases that differ in nothing but their schedules.

    Attributes:
        half: of the rows.
        cases: whose rows they are, in the order in which they are written; none if they only prepare what follows.
        words: of `lg`, without the file, or of the peer.
        out: the file.
    """

    half: str
    cases: list[Case]
    words: list[str]
    out: Path

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What is there of them."""
        rows: list[dict[str, Any]] = json.loads(self.out.read_text())["rows"] if self.out.exists() else []
        return rows


def commands(missing: Sequence[tuple[Case, str]], folder: Path, toy: bool) -> list[Command]:
    """What measures these halves of rows, in their order, but that neighbours are put together."""
    made: list[Command] = []
    compiled: set[tuple[str, str, str]] = set()

    def add(half: str, cases: list[Case], words: list[str]) -> None:
        made.append(Command(half, cases, words, folder / f"{len(made)}.json"))

    def same(one: tuple[Case, str]) -> tuple[object, ...]:
        case, half = one
        return half, case.model, case.length, case.kv, case.batch, case.impl == "lg" or case.impl

    halves = list(dict.fromkeys(half for _, half in missing))
    in_order = sorted(missing, key=lambda one: halves.index(one[1]))
    for _, group in itertools.groupby(in_order, same):
        (case, half), *more = list(group)
        cases = [case, *(other for other, _ in more)]
        if case.impl != "lg":
            add(half, cases, [case.impl, case.model, str(TOY_LENGTHS[case.length] if toy else case.length)])
            continue
        read = {(one.schedule, one.local, one.kv) for one in cases}
        once = half == PREFILL and case.length > SHORT
        if once and read - compiled:
            add(half, [], words(cases, half, SHORT, 1, toy))
        add(half, cases, words(cases, half, case.length, 1 if once else 2, toy))
        if half == PREFILL:
            compiled |= read
    return made


def words(cases: Sequence[Case], half: str, length: int, repeats: int, toy: bool) -> list[str]:
    """`lg bench` for one half of cases."""
    case = cases[0]
    shape = ["--preset=tiny", "--device=cpu"] if toy else [f"--preset={case.model}"]
    # On a CPU as many as fit are many.
    batch = "3" if toy and case.batch == "most" else case.batch
    if half == PREFILL:
        more = [f"--repeats={repeats}", *(["--chunk=64"] if toy else [])]
    else:
        more = [f"--steps={2 if toy else STEPS}"]
    schedules = "|".join(layers(one, 6 if toy else 32) for one in cases)
    return [
        *("bench", half, *shape, *more, f"--schedules={schedules}"),
        *(f"--lengths={TOY_LENGTHS[length] if toy else length}", f"--batch={batch}", f"--kv={case.kv}"),
    ]


def work(jobs: Path, toy: bool) -> None:
    """What a process does: each command, until one fails."""
    made: dict[str, Any] = {}
    for job in json.loads(jobs.read_text()):
        given, out = job["words"], Path(job["out"])
        if given[0] != "bench":
            impl, model, length = given
            made.setdefault(model, Peer(model, toy))
            aside = out.with_suffix(".aside")
            aside.write_text(json.dumps({"rows": [made[model].row(impl, int(length))]}))
            aside.rename(out)
            continue
        from lg.cli import main as lg

        if code := lg([*given, f"--json={out}"]):
            sys.exit(code)


def measured(
    missing: Sequence[tuple[Case, str]], toy: bool, until: float
) -> Iterator[tuple[Case, str, dict[str, Any]]]:
    """What one process measures, as it comes; the last may be an error. Ends where time does."""
    with tempfile.TemporaryDirectory() as folder:
        todo, jobs, log = commands(missing, Path(folder), toy), Path(folder, "jobs"), Path(folder, "log")
        jobs.write_text(json.dumps([{"words": one.words, "out": str(one.out)} for one in todo]))
        left = [(one, number) for one in todo for number in range(len(one.cases))]
        line = [sys.executable, __file__, "--work", str(jobs), *(["--toy"] if toy else [])]
        with log.open("wb") as said, started(line, said) as process:
            last = time.perf_counter()
            running = True
            while left and running:
                time.sleep(0.2)
                running = process.poll() is None
                while left and len(left[0][0].rows) > left[0][1]:
                    command, number = left.pop(0)
                    yield command.cases[number], command.half, told(command.rows[number])
                    last = time.perf_counter()
                if time.perf_counter() > until:
                    return
                if left and running and time.perf_counter() - last > patience(left[0][0].cases[left[0][1]]):
                    command, number = left[0]
                    case = command.cases[number]
                    yield case, command.half, {"error": f"no row within {patience(case)} s"}
                    return
            if left:
                command, number = left[0]
                error = complaint(log.read_text(errors="replace")) or f"ended with {process.returncode}"
                yield command.cases[number], command.half, {"error": error}


@contextlib.contextmanager
def started(line: list[str], said: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process, which does not outlive what is done with it."""
    process = subprocess.Popen(line, stdout=said, stderr=subprocess.STDOUT)
    try:
        yield process
        # All rows are there: it may end by itself.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    finally:
        process.kill()
        process.wait()


def told(row: dict[str, Any]) -> dict[str, Any]:
    """What a row says that its case does not; a half's own peak."""
    kept = {key: value for key, value in row.items() if key not in ("model", "schedule", "length", "impl", "kv")}
    if "error" in kept:
        return {"error": kept["error"]}
    if "peak_gib" in kept and ("prefill_s" in kept) != ("decode_ms_per_token" in kept):
        kept[f"{PREFILL if 'prefill_s' in kept else DECODE}_peak_gib"] = kept.pop("peak_gib")
    return {"layers": row["schedule"], **kept}


class Peer:
    """The same shape in transformers: prompts read, and tokens written.

    Args:
        model: a preset.
        toy: a tiny one on a CPU instead.
    """

    def __init__(self, model: str, toy: bool) -> None:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        from lg.models.presets import PRESETS

        self.toy, self.shape = toy, PRESETS["tiny" if toy else model]
        self.device = "cpu" if toy else "cuda"
        shape = self.shape
        config = LlamaConfig(
            hidden_size=shape.width, intermediate_size=shape.ffn_width, num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads, num_key_value_heads=shape.num_kv_heads, head_dim=shape.head_width,
            vocab_size=shape.vocab_size, max_position_embeddings=512 * K, tie_word_embeddings=False,
            attn_implementation="sdpa", bos_token_id=None, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        torch.manual_seed(0)
        torch.set_default_dtype(torch.float32 if toy else torch.bfloat16)
        with torch.device(self.device):
            self.decoder = LlamaForCausalLM(config).eval()
        self.wait: Callable[[], object] = (lambda: None) if toy else torch.cuda.synchronize

    def row(self, impl: str, length: int) -> dict[str, Any]:
        """One row; `impl` ends with the kind of cache."""
        import gc

        import torch

        # A static cache is kept for the next call, which may be of another length.
        if hasattr(self.decoder, "_cache"):
            del self.decoder._cache
        gc.collect()
        if not self.toy:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        steps = 4 if self.toy else STEPS
        row: dict[str, Any] = {"schedule": f"{self.shape.num_layers}*full", "batch": 1, "steps": steps}
        try:
            # The first run compiles.
            runs = [self._run(impl, length, steps) for _ in range(2)]
        except torch.OutOfMemoryError as error:
            return {**row, "error": str(error).partition("\n")[0]}
        prefill = [run[0] for run in runs]
        row |= {"prefill_s": min(prefill), "prefill_runs_s": prefill, "decode_ms_per_token": 1e3 * runs[-1][1]}
        if not self.toy:
            row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return row

    def _run(self, impl: str, length: int, steps: int) -> tuple[float, float]:
        """Seconds until the first token, and between those that follow."""
        import torch
        from transformers import LogitsProcessor, LogitsProcessorList

        wait = self.wait

        class Clock(LogitsProcessor):  # type: ignore[misc]
            """When each token is chosen."""

            def __init__(self) -> None:
                self.times: list[float] = []

            def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                wait()
                self.times.append(time.perf_counter())
                return scores

        ids = torch.randint(self.shape.vocab_size, (1, length), device=self.device)
        cache = {"cache_implementation": "static"} if impl.endswith("static") else {}
        clock = Clock()
        wait()
        begun = time.perf_counter()
        self.decoder.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=steps, max_new_tokens=steps,
            logits_processor=LogitsProcessorList([clock]), **cache,
        )  # fmt: skip
        times = clock.times
        return times[0] - begun, statistics.median(b - a for a, b in itertools.pairwise(times))


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
    line.add_argument("--models", help="only these, as in llama-2-7b,llama-3-8b")
    line.add_argument("--schedules", help="only these, as in full,hybrid")
    line.add_argument("--minutes", type=float, default=9.0, help="what is not measured then is left for another call")
    line.add_argument("--retry", action="store_true", help="what has failed is measured again")
    line.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = line.parse_args()
    if args.work:
        work(args.work, args.toy)
        return
    import torch

    # Whoever ends this process ends the one that it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begun = time.perf_counter()
    until = begun + 60 * args.minutes
    device = device_name(not args.toy)
    is_large = args.toy or torch.cuda.get_device_properties(0).total_memory > LARGE
    packages = installed("torch", "triton", "transformers", "flash-attn-4")
    rows = earlier(args.out, failed=True)
    if args.retry:
        for row in rows:
            row.pop("error", None)

    def row_of(case: Case) -> dict[str, Any]:
        """Its row; a new one is not in the list."""
        plain = {**case.plain, "device": device}
        return next((row for row in rows if all(row.get(key) == plain[key] for key in plain)), plain)

    def lacks(case: Case, half: str) -> bool:
        row = row_of(case)
        return FIGURE[half] not in row and "error" not in row

    for stage in stages():
        wanted = [
            (case, half)
            for case in stage
            if (is_large or not case.large)
            and (args.models is None or case.model in args.models.split(","))
            and (args.schedules is None or case.schedule in args.schedules.split(","))
            for half in case.halves
        ]
        while missing := [one for one in wanted if lacks(*one)]:
            if time.perf_counter() > until:
                print(f"not measured: {len(missing)} of {len(wanted)} figures from {missing[0]}")
                break
            for case, half, found in measured(missing, args.toy, until):
                row = row_of(case)
                if not any(row is one for one in rows):
                    rows.append(row)
                row.update(found)
                seen = {key: value for key, value in row.items() if key != "device"}
                print(f"{time.perf_counter() - begun:4.0f} s  {half}: {json.dumps(seen)}", flush=True)
                devices = ", ".join(dict.fromkeys(row["device"] for row in rows))
                write(args.out, "prefill and decode, random weights", devices, packages, rows)
    print("\n".join(ratios(rows)))


if __name__ == "__main__":
    main()
