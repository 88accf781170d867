"""Which tile sizes, warps, stages and loads make lg's Triton kernels fastest on one GPU; bf16, 32 heads, 8 KV heads.

    python benchmarks/tune.py [OUT.json] [--minutes 8] [--kernels forward,query,key] [--cases sink_window_2k,causal]
        [--width 128]

Every candidate is compiled beforehand, in as many processes as there are processors, which tells its registers and
spills; then it is timed, and what it computes is held to what the shipped launch computes. The table is sorted by time.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Iterator
from typing import Any

import torch
from report import parser, write
from torch import Tensor

from lg.attention import Documents, Pattern
from lg.attention.bench import PATTERNS
from lg.attention.bench.timing import times
from lg.attention.cost import visible_pairs
from lg.attention.impl.triton import ahead, launch
from lg.attention.impl.triton.options import Launch, Options, options
from lg.attention.impl.triton.plan import packed, plan, unpacked

HEADS, HEADS_KV = 32, 8
LENGTHS = {"sink_window_2k": 131_072, "strided_2k": 131_072, "window_4k": 131_072, "causal": 32_768}
# Matrix products of a tile: what the kernel computes.
PRODUCTS = {"forward": 2, "query": 3, "key": 4}
SHARED = 227 * 1024
DTYPE = torch.bfloat16


def candidates(kernel: str, width: int) -> Iterator[Launch]:
    """What may fit: some blocks stay, two come and go in each stage, and what is summed is held in registers."""
    stay, come = (64, 128), (32, 64, 128)
    sizes = itertools.product(come, stay) if kernel == "key" else itertools.product(stay, come)
    for (q, k), warps, stages, tma in itertools.product(sizes, (4, 8), (2, 3, 4), (1,)):
        if warps == 8 and (k if kernel == "key" else q) == 64:
            continue
        stays, comes, summed = {"forward": (q, k, q), "query": (2 * q, k, q), "key": (2 * k, q, 2 * k)}[kernel]
        if (stays + 2 * stages * comes) * width * 2 <= SHARED and summed * width <= 128 * 32 * warps:
            yield Launch(q, k, warps, stages, tma)


def of(kernel: str, one: Launch, width: int, capability: tuple[int, int]) -> Options:
    """The shipped options, but for one kernel."""
    return options(DTYPE, width, capability)._replace(**{kernel: one})


def compiled(job: tuple[str, str, Launch, int, tuple[int, int]]) -> dict[str, Any]:
    """What a candidate takes; it stays in Triton's cache."""
    kernel, name, one, width, capability = job
    case = ahead.Case(capability[0] * 10 + capability[1], PATTERNS[name], DTYPE, width, HEADS // HEADS_KV, False)
    wanted = {"forward": "attention_forward", "query": "attention_backward_query", "key": "attention_backward_key"}
    for report in ahead.compiled(case, of(kernel, one, width, capability)):
        if report.kernel == wanted[kernel]:
            return {"registers": report.registers, "spilled": report.spilled, "shared": report.shared}
        if not report.kernel:
            return {"error": report.error}
    # This process has compiled it before: the shipped launch, with another kernel's.
    return {"registers": 0, "spilled": 0, "shared": 0}


class Problem:
    """A case's tensors, and each kernel's call at any launch."""

    def __init__(self, name: str, width: int, capability: tuple[int, int]) -> None:
        self.pattern: Pattern = PATTERNS[name]
        self.width, self.capability = width, capability
        self._shipped: dict[str, tuple[Tensor, ...]] = {}
        length = LENGTHS[name]
        self.tiles = self.pattern.tiles(Documents(length), HEADS_KV)
        torch.manual_seed(0)
        shapes = [(length, heads, width) for heads in (HEADS, HEADS_KV, HEADS_KV, HEADS)]
        self.q, self.k, self.v, self.grad = (
            torch.randn(1, *shape, device="cuda", dtype=DTYPE).transpose(1, 2) for shape in shapes
        )
        pairs = visible_pairs(self.tiles)
        self.pairs = int(pairs.sum()) * (HEADS // len(pairs))
        shipped = self._plan(options(DTYPE, width, capability))
        self.out, self.lse = launch.forward(self.q, self.k, self.v, shipped, self.tiles.text, 0, width**-0.5)
        _, self.statistics = self.call("query", options(DTYPE, width, capability).query)()

    def shipped(self, kernel: str) -> tuple[Tensor, ...]:
        """What the shipped launch computes, once."""
        if kernel not in self._shipped:
            self._shipped[kernel] = self.call(kernel, getattr(options(DTYPE, self.width, self.capability), kernel))()
        return self._shipped[kernel]

    def _plan(self, launches: Options) -> Any:
        return unpacked(*packed(plan(self.tiles, launches), self.q.device))

    def call(self, kernel: str, one: Launch) -> Any:
        """A function of nothing that launches the kernel so."""
        on, end = self._plan(of(kernel, one, self.width, self.capability)), (self.tiles.text, 0, self.width**-0.5)
        q, k, v = self.q, self.k, self.v
        if kernel == "forward":
            return lambda: launch.forward(q, k, v, on, *end)
        if kernel == "query":
            return lambda: launch.backward_query(self.grad, q, k, v, self.out, self.lse, on, *end)
        return lambda: launch.backward_key(self.grad, q, k, v, self.statistics, on, *end)


def apart(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> float:
    """The greatest relative distance of two results."""
    return max(float((one - other).float().norm() / other.float().norm()) for one, other in zip(got, want, strict=True))


def main() -> None:
    """Compiles and times the candidates, and prints the best."""
    command = parser(__doc__)
    command.add_argument("--minutes", type=float, default=8.0)
    command.add_argument("--kernels", default="forward,query,key")
    command.add_argument("--cases", default="sink_window_2k,strided_2k,causal")
    command.add_argument("--width", type=int, default=128)
    given = command.parse_args()
    until, capability = time.monotonic() + 60 * given.minutes, torch.cuda.get_device_capability()
    # A case is timed after the other; each has its share of the time.
    names, kernels = given.cases.split(","), given.kernels.split(",")
    rows: list[dict[str, Any]] = []
    begun, context = time.monotonic(), multiprocessing.get_context("spawn")
    for number, name in enumerate(names, 1):
        jobs = [
            (kernel, name, one, given.width, capability)
            for kernel in kernels
            for one in candidates(kernel, given.width)
        ]
        problem, share = Problem(name, given.width, capability), begun + (until - begun) * number / len(names)
        # Leaving ends what still compiles.
        with context.Pool(min(os.cpu_count() or 1, 14)) as pool:
            for (kernel, _, one, _, _), told in zip(jobs, pool.imap(compiled, jobs), strict=True):
                row = {"case": name, "width": given.width, "kernel": kernel, **one._asdict(), **told}
                rows.append(row)
                if "error" not in told:
                    row.update(timed(problem, kernel, one))
                write(given.out, "launches of lg's kernels", torch.cuda.get_device_name(), ["torch", "triton"], rows)
                if time.monotonic() > share:
                    print(f"{name}: {len(jobs)} candidates do not fit into the time")
                    break
        del problem
    for name, kernel in itertools.product(names, kernels):
        own = [row for row in rows if (row["case"], row["kernel"]) == (name, kernel)]
        done = sorted((row for row in own if "ms" in row), key=lambda row: float(row["ms"]))
        print(f"\n{name}, {kernel}: {len(own)} candidates, {len(done)} timed")
        for row in done[:10]:
            launched = ", ".join(f"{field}={row[field]}" for field in Launch._fields)
            print(
                f"{row['ms']:8.2f} ms {row['tflops']:6.0f} TFLOP/s useful  {launched}; {row['registers']} registers, "
                f"{row['spilled']} spilled, {row['shared'] // 1024} KiB; apart {row['apart']:.1e}"
            )
        for row in own:
            if "error" in row:
                print(f"   failed: {[row[field] for field in Launch._fields]}: {row['error'][:100]}")


def timed(problem: Problem, kernel: str, one: Launch) -> dict[str, Any]:
    """Milliseconds, useful products a second, and how far the results are from the shipped launch's."""
    try:
        call = problem.call(kernel, one)
        distance = apart(call(), problem.shipped(kernel))
        ms = times(call, problem.q.device, 0.15).median
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    work = 2 * PRODUCTS[kernel] * problem.width * problem.pairs
    return {"ms": ms, "tflops": work / ms / 1e9, "apart": distance}


if __name__ == "__main__":
    main()
