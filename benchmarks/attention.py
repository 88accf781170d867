"""How fast attention is on one GPU, implementation by implementation: B=1, 32 query heads, head width 128, bf16.

    python benchmarks/attention.py [OUT.json] [--minutes 7.5] [--processes 10] [--again] [--impls A,B]

The file is written after each row, and a second call goes on where the first was cut. Kernels are compiled beforehand
by several processes into torch's and Triton's caches. What a row holds is told by `lg.attention.bench.Row`; `flex_best`
is FlexAttention by the options that were fastest among 13 sets on an H100.
After each case, what was measured is made this machine's table for `auto`, as `lg bench attention --update` does, and
`auto` is timed too.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from report import parser, write
from torch import Tensor
from torch._dynamo.utils import counters

from lg.attention import Documents, Tiles, attend, rates
from lg.attention.attend import IMPLEMENTATIONS, chosen
from lg.attention.bench import PATTERNS, Case, as_in_training, measured
from lg.attention.impl import Executed, Implementation, flex
from lg.attention.impl.triton.options import options
from lg.attention.impl.triton.plan import packed, plan
from lg.attention.rates import table
from lg.data import Stdlib

HEADS, WIDTH = 32, 128
SHORT, LONG, MILLION = 32_768, 131_072, 1_048_576
PACKINGS = 50
# Seconds to compile in, beforehand.
PATIENCE = 150
_Row = dict[str, Any]

BEST = flex.Flex(
    {
        "fwd_BLOCK_M": 64, "fwd_BLOCK_N": 64, "fwd_num_warps": 4, "fwd_num_stages": 3,
        "bwd_BLOCK_M1": 64, "bwd_BLOCK_N1": 128, "bwd_BLOCK_M2": 128, "bwd_BLOCK_N2": 64,
        "bwd_num_warps": 8, "bwd_num_stages": 3,
    }
)  # fmt: skip


class Auto:
    """`attend` as it chooses; ``took`` is what it chose last."""

    took = ""

    def refusal(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> str | None:
        """None, or why nothing takes this."""
        try:
            choice = chosen(q, k, v, tiles)
        except ValueError as error:
            return str(error)
        self.took = next(name for name, on in IMPLEMENTATIONS.items() if on is choice)
        return None

    def run(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
        """Attention: [B, H, Lq, D]."""
        return attend(q, k, v, tiles, scale=scale)

    def executed(self, tiles: Tiles) -> Executed:
        """As what it took."""
        return IMPLEMENTATIONS[self.took].executed(tiles)


ON: Mapping[str, Implementation] = {**IMPLEMENTATIONS, "flex_best": BEST}


@dataclass(frozen=True)
class Unit:
    """One case, and what is timed on it; results are held to those of the first.

    Attributes:
        case: its name; where it begins with ``packed_``, of real documents.
        length: tokens.
        kv_heads: KV heads.
        impls: names in `ON`.
        queries: how many of the last tokens ask, all by default.
        auto: whether `auto` is timed too.
    """

    case: str
    length: int
    kv_heads: int
    impls: tuple[str, ...]
    queries: int = 0
    auto: bool = True

    def problem(self) -> Case:
        """The case itself."""
        pattern = PATTERNS[self.case.removeprefix("packed_").removesuffix("_last_quarter")]
        documents = packing(self.length, 0) if self.case.startswith("packed_") else Documents(self.length)
        asks = (self.length - self.queries, self.length) if self.queries else None
        device = torch.device("cuda", torch.cuda.current_device())
        return Case(self.case, pattern, documents, device, HEADS, self.kv_heads, WIDTH, queries=asks)

    def own(self, row: _Row) -> bool:
        """Whether it is a row of this unit."""
        return (row["case"], row["length"], row["kv_heads"]) == (self.case, self.length, self.kv_heads)

    def is_done(self, rows: list[_Row]) -> bool:
        """Whether all of it was measured; what failed is tried again."""
        names = {row["impl"] for row in rows if self.own(row) and ("fwd_ms" in row or "refused" in row)}
        return {*self.impls, *["auto"] * self.auto} <= names


def units() -> Iterator[Unit]:
    """The most wanted first."""
    full = ("sdpa", "triton", "flash", "flex_flash", "flex")
    sparse = ("flex_best", "triton", "flex_flash", "flex")
    for kv_heads in (8, 32):
        yield Unit("sink_window_2k", LONG, kv_heads, sparse)
        yield Unit("strided_2k", LONG, kv_heads, sparse)
        yield Unit("causal", LONG, kv_heads, full)
        yield Unit("packed_causal", LONG, kv_heads, ("flex", "triton", "flash", "flex_flash", "sdpa"))
        yield Unit("packed_sink_window_2k", LONG, kv_heads, ("flex_best", "triton", "flex_flash", "flex"))
    yield Unit("sink_window_2k", MILLION, 8, ("triton",), auto=False)
    for kv_heads in (8, 32):
        yield Unit("sink_window_2k", SHORT, kv_heads, sparse)
        yield Unit("strided_2k", SHORT, kv_heads, sparse)
        yield Unit("causal", SHORT, kv_heads, full)
    yield Unit("window_4k", LONG, 8, ("flash", "triton", "flex_flash", "flex"))
    yield Unit("window_4k", SHORT, 8, ("flash", "triton", "flex_flash", "flex"))
    yield Unit("causal_last_quarter", LONG, 8, ("sdpa", "triton", "flash", "flex"), LONG // 4)


@cache
def sizes() -> list[int]:
    """Tokens of each package of the standard library, at four bytes a token."""
    return [max(len(document.text) // 4, 1) for document in Stdlib().documents()]


def packing(length: int, seed: int) -> Documents:
    """Packages of the standard library in random order, end to end; the last one is cut."""
    order = torch.randperm(len(sizes()), generator=torch.Generator().manual_seed(seed)).tolist()
    starts = [0]
    while starts[-1] < length:
        starts.append(starts[-1] + sizes()[order[(len(starts) - 1) % len(order)]])
    return Documents(length, starts[:-1])


def rows_of(unit: Unit, kept: list[_Row]) -> Iterator[_Row]:
    """What was measured, row by row, `auto` last; each is in ``kept`` before the next is asked for."""
    case = unit.problem()
    for row in measured(case, {name: ON[name] for name in unit.impls if name in ON}):
        of_lists = {"list_bytes": lists(case.tiles(), case).nbytes} if row.impl == "triton" and row.fwd_ms else {}
        yield row.plain() | of_lists
    if unit.auto:
        learn(kept)
        auto = Auto()
        for row in measured(case, {"auto": auto}):
            yield replace(row, auto=True).plain() | {"took": auto.took}


def learn(rows: list[_Row]) -> None:
    """What was measured is what `auto` picks by from now on."""
    own = [row for row in rows if row["impl"] in IMPLEMENTATIONS and "sees" in row]
    path, text = table.updated(torch.device("cuda", torch.cuda.current_device()), table.rows_of(own))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    rates.forget()


def lists(tiles: Tiles, case: Case) -> Tensor:
    """What our kernels read besides q, k and v, on the device."""
    launched = options(case.dtype, case.width, torch.cuda.get_device_capability(case.device))
    return packed(plan(tiles, launched), case.device).lists


def packings() -> Iterator[_Row]:
    """Other documents in every step: what is compiled after the first two, and how long the lists take to build."""
    from triton import knobs

    unit = Unit("sink_window_2k", LONG, 8, ())
    case = unit.problem()
    inputs = case.inputs()
    kernels = [0]

    def count(**_: object) -> None:
        kernels[0] += 1

    # Not the hooks around a launch: they write its constants as JSON, which a kernel's predicate is not.
    knobs.compilation.listener = count
    builders: dict[str, Callable[[Tiles], object]] = {
        "triton": lambda tiles: lists(tiles, case),
        "flex": lambda tiles: flex._plan(tiles, HEADS // case.num_kv_heads, case.device),
    }
    for impl, build in builders.items():
        if impl not in IMPLEMENTATIONS:
            continue
        builds, steps, compiled = [], [], []
        for seed in range(PACKINGS):
            now = replace(case, documents=packing(LONG, seed))
            torch.cuda.synchronize()
            builds.append(clocked(partial(build, now.tiles())))
            steps.append(clocked(partial(step, impl, now, inputs)))
            compiled.append(kernels[0] + counters["stats"]["unique_graphs"])
        yield {
            "case": f"{PACKINGS}_packings_sink_window_2k",
            "impl": impl,
            "length": LONG,
            "kv_heads": case.num_kv_heads,
            "documents": [len(packing(LONG, seed).starts) for seed in (0, 1, 2)],
            "build_ms": round(statistics.median(builds), 2),
            "slowest_build_ms": round(max(builds[2:]), 2),
            "step_ms": round(statistics.median(steps), 2),
            "slowest_step_ms_after_two": round(max(steps[2:]), 2),
            "compiled_in_two": compiled[1],
            "compiled_later": compiled[-1] - compiled[1],
        }
    knobs.compilation.listener = None


def clocked(call: Callable[[], object]) -> float:
    """Milliseconds of a call on the host's clock, until the GPU is done."""
    begun = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begun)


def step(impl: str, case: Case, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Forward and backward, from documents on."""
    out = attend(*inputs, case.tiles(), impl)
    torch.autograd.grad(out, inputs, out)


def compile_share(number: int, count: int) -> None:
    """Runs every ``count``-th kernel that Triton compiles, once: for what that leaves in the caches on disk."""
    compiled = ("flex_best", "flex", "triton")
    work = [(unit, name) for unit in units() for name in unit.impls if name in compiled and name in ON]
    for unit, name in work[number::count]:
        if unit.length == MILLION:
            continue
        torch.compiler.reset()
        case = unit.problem()
        inputs = case.inputs()
        with contextlib.suppress(Exception), as_in_training():
            # What fails is told where it is timed.
            out = ON[name].run(*inputs, case.tiles(), WIDTH**-0.5)
            torch.autograd.grad(out, inputs, out)
        del inputs
        torch.cuda.empty_cache()


def compiled_ahead(processes: int) -> None:
    """Fills the compilers' caches by several processes at once."""
    shares = [
        subprocess.Popen(
            [sys.executable, __file__, f"--share={number}/{processes}"],
            env={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "2"},
        )
        for number in range(processes)
    ]
    begun = time.perf_counter()
    for share in shares:
        try:
            share.wait(max(1.0, PATIENCE - (time.perf_counter() - begun)))
        except subprocess.TimeoutExpired:
            share.kill()


def known(out: Path, device: str) -> list[_Row]:
    """Rows of an earlier call on such a device with the same torch; none if there is no such file."""
    if not out.exists():
        return []
    result = json.loads(out.read_text())
    same = (result["device"], result["versions"]["torch"]) == (device, importlib.metadata.version("torch"))
    return list(result["rows"]) if same else []


def main() -> None:
    """Runs what the file lacks, and writes it after each row."""
    command = parser(__doc__)
    command.add_argument("--minutes", type=float, default=7.5, help="nothing is begun after so long")
    command.add_argument("--processes", type=int, default=10, help="that compile beforehand; 0 for none")
    command.add_argument("--again", action="store_true", help="all anew")
    command.add_argument("--impls", help="of those of each case, only these")
    command.add_argument("--share", help=argparse.SUPPRESS)
    args = command.parse_args()
    if args.share:
        number, count = map(int, args.share.split("/"))
        compile_share(number, count)
        return
    begun = time.perf_counter()
    device = torch.cuda.get_device_name()
    packages = [name for name in ("torch", "triton", "flash-attn-4", "nvidia-cutlass-dsl") if installed(name)]
    rows = [] if args.again else known(args.out, device)

    def keep(row: _Row) -> None:
        rows.append(row)
        print(f"{time.perf_counter() - begun:4.0f} s  {json.dumps(row)}", flush=True)
        write(args.out, f"attention, B=1, H={HEADS}, D={WIDTH}, bf16", device, packages, rows)

    if args.processes:
        compiled_ahead(args.processes)
        print(f"{time.perf_counter() - begun:4.0f} s  compiled ahead", flush=True)

    def guarded(part: Callable[[], Iterator[_Row]]) -> None:
        try:
            for row in part():
                keep(row)
        except Exception:
            # The other parts are wanted all the same.
            traceback.print_exc()

    if not any("build_ms" in row for row in rows) and not args.impls:
        guarded(packings)
    for unit in units():
        if args.impls:
            unit = replace(unit, impls=tuple(name for name in unit.impls if name in args.impls.split(",")))
        if unit.is_done(rows) or not unit.impls:
            continue
        if time.perf_counter() - begun > 60 * args.minutes:
            print(f"not begun: {unit}")
            continue
        rows[:] = [row for row in rows if not unit.own(row)]
        torch.cuda.empty_cache()
        guarded(partial(rows_of, unit, rows))
    print(summary(rows))


def installed(name: str) -> bool:
    """Whether there is such a package."""
    return name in {found.metadata["Name"] for found in importlib.metadata.distributions()}


def summary(rows: list[_Row]) -> str:
    """What is to be shown: our kernels beside FlexAttention's best, and `auto` beside the best of all."""
    lines = [f"{'case':<24} {'tokens':>8} {'KV':>3}  triton/flex  auto/best  best"]
    for unit in units():
        both = {row["impl"]: row["fwd_ms"] + row["bwd_ms"] for row in rows if unit.own(row) and "fwd_ms" in row}
        flexes = [taken for name, taken in both.items() if name in ("flex", "flex_best")]
        others = {name: taken for name, taken in both.items() if name != "auto"}
        if not others:
            continue
        best = min(others, key=lambda name: others[name])
        ours = f"{both['triton'] / min(flexes):.3f}" if "triton" in both and flexes else ""
        auto = f"{both['auto'] / others[best]:.3f}" if "auto" in both else ""
        lines.append(f"{unit.case:<24} {unit.length:>8} {unit.kv_heads:>3}  {ours:>11}  {auto:>9}  {best}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
