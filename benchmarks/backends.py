"""How fast each attention backend is on one GPU, and whether it is right there: bf16, B=1, H=32, G=8, D=128.

    python benchmarks/backends.py [OUT.json] [--impls sdpa flex flash flex_flash] [--minutes 8]

Times are medians of CUDA events; useful TFLOP/s count visible pairs only: 4 D FLOPs a pair and query head forward, 10 D
backward. A case that a backend refuses is a row that says why.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product
from typing import Any

import torch
import torch._functorch.config
from report import parser, write
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from lg.attention import Causal, Documents, Pattern, SinkWindow, Strided, Tiles, Window, attend
from lg.attention.attend import IMPLEMENTATIONS
from lg.attention.impl import proof

HEADS, HEADS_KV, WIDTH = 32, 8, 128
LENGTHS = (32_768, 131_072)
SPARSE: list[Pattern] = [Window(4096), SinkWindow(window=1984, sinks=64), Strided(64, 16, 128, head_step=4)]
Row = dict[str, Any]
Run = Callable[[Tensor, Tensor, Tensor], Tensor]


def inputs(num_queries: int, length: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """q, k, v, as a model makes them: [B, L, H, D] in memory."""
    shapes = [(num_queries, HEADS), (length, HEADS_KV), (length, HEADS_KV)]
    return [
        torch.randn(1, n, heads, WIDTH, device="cuda", dtype=dtype).transpose(1, 2).requires_grad_()
        for n, heads in shapes
    ]


def milliseconds(call: Callable[[], object], budget_s: float = 0.7) -> float:
    """A call's time among others, as in training: the median of up to 15 rows of calls without a pause between them."""
    call()
    torch.cuda.synchronize()
    begun = time.perf_counter()
    call()
    torch.cuda.synchronize()
    once = time.perf_counter() - begun
    in_row = int(max(1, 0.04 / once))
    times = []
    for _ in range(int(min(15, max(3, budget_s / (once * in_row))))):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(in_row):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / in_row)
    return statistics.median(times)


def forward_and_backward(run: Run, qkv: list[Tensor]) -> tuple[float, float]:
    """Milliseconds of a forward pass that will be differentiated, and of the backward pass."""
    forward = milliseconds(lambda: run(*qkv))
    out = run(*qkv)
    grad = torch.randn_like(out)
    backward = milliseconds(lambda: torch.autograd.grad(out, qkv, grad, retain_graph=True))
    return forward, backward


def pairs(tiles: Tiles) -> int:
    """Visible pairs of one query head, on average over heads; of one document."""
    first, end = tiles.queries
    query = torch.arange(first, end)
    head = torch.arange(tiles.heads)[:, None]
    seen = tiles.pattern.num_seen(query.expand(tiles.heads, -1), head, None)
    assert seen is not None
    return int(seen.sum()) // tiles.heads


def timed(case: str, impl: str, tiles: Tiles, run: Run) -> Row:
    """One case's row."""
    first, end = tiles.queries
    forward, backward = forward_and_backward(run, inputs(end - first, tiles.documents.length))
    flop = 4 * WIDTH * HEADS * pairs(tiles)
    return {
        "case": case,
        "impl": impl,
        "length": tiles.documents.length,
        "queries": end - first,
        "fwd_ms": round(forward, 3),
        "bwd_ms": round(backward, 3),
        "fwd_useful_tflops": round(flop / forward / 1e9, 1),
        "bwd_useful_tflops": round(2.5 * flop / backward / 1e9, 1),
    }


def by(impl: str, tiles: Tiles) -> Run:
    """`attend` by name."""
    return lambda q, k, v: attend(q, k, v, tiles, impl)


def bare_cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What full causal attention is held to."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def lower_right(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What torch offers for a chunk of queries against a longer past: FlashAttention-2, on repeated heads."""
    k, v = (x.repeat_interleave(HEADS // HEADS_KV, 1) for x in (k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(q.shape[2], k.shape[2]))


@cache
def full(length: int) -> Row:
    """The bare call on the whole sequence: what chunks are held to."""
    return timed("full causal", "bare cuDNN", Causal().tiles(Documents(length), HEADS_KV), bare_cudnn)


def full_causal(length: int) -> Row:
    """`attend` against the bare call, in turns, so that a drifting clock is not taken for a difference."""
    tiles = Causal().tiles(Documents(length), HEADS_KV)
    rounds = [
        (timed("", "", tiles, bare_cudnn), timed("full causal, against bare cuDNN", "sdpa", tiles, by("sdpa", tiles)))
        for _ in range(3)
    ]
    row = dict(rounds[0][1])
    for key in ("fwd_ms", "bwd_ms"):
        bare, ours = (min(pair[n][key] for pair in rounds) for n in (0, 1))
        row |= {key: ours, f"bare_{key}": bare, f"{key[:3]}_over_bare": round(ours / bare, 4)}
    over = (row["fwd_ms"] + row["bwd_ms"]) / (row["bare_fwd_ms"] + row["bare_bwd_ms"])
    return row | {"over_bare": round(over, 4)}


def chunk(length: int, share: int, impl: str) -> Row:
    """The last queries against all keys; ``of_full`` is what full attention's rate would take, over what it took."""
    whole = Causal().tiles(Documents(length), HEADS_KV)
    tiles = Causal().tiles(Documents(length), HEADS_KV, (length - length // share, length))
    case = f"the last 1/{share} of the queries"
    if impl == "torch causal_lower_right":
        row = timed(case, impl, tiles, lower_right)
    elif "refused" in (row := refused(case, impl, tiles)):
        return row
    else:
        row = timed(case, impl, tiles, by(impl, tiles))
    same, work = full(length), pairs(tiles) / pairs(whole)
    both = same["fwd_ms"] + same["bwd_ms"], row["fwd_ms"] + row["bwd_ms"]
    return row | {
        "fwd_of_full": round(same["fwd_ms"] * work / row["fwd_ms"], 3),
        "bwd_of_full": round(same["bwd_ms"] * work / row["bwd_ms"], 3),
        "of_full": round(both[0] * work / both[1], 3),
    }


def speed(pattern: Pattern, length: int, impl: str) -> Row:
    """A backend's time, where it takes the pattern."""
    tiles = pattern.tiles(Documents(length), HEADS_KV)
    row = refused(str(pattern), impl, tiles)
    return row if "refused" in row else timed(str(pattern), impl, tiles, by(impl, tiles))


def refused(case: str, impl: str, tiles: Tiles) -> Row:
    """The head of a case's row, with the reason if the backend does not take it."""
    first, end = tiles.queries
    row = {"case": case, "impl": impl, "length": tiles.documents.length, "queries": end - first}
    refusal = IMPLEMENTATIONS[impl].refusal(*inputs(1, 1), tiles)
    return row | {"refused": refusal} if refusal else row


def errors(pattern: Pattern, impl: str, chunk: bool) -> Row:
    """The check that `auto` asks of young kernels: errors in those of dense attention in bf16. At most 2 is right."""
    on = IMPLEMENTATIONS[impl]
    unproven = on.implementation if isinstance(on, proof.Proven) else on
    row = {"case": f"errors of {pattern}", "impl": impl, "chunk_of_queries": chunk}
    tiles = pattern.tiles(Documents(100), HEADS_KV, (50, 100) if chunk else None)
    if refusal := unproven.refusal(*inputs(1, 1), tiles):
        return row | {"refused": refusal}
    heads = HEADS_KV if pattern.heads_differ else 2
    device = torch.device("cuda", torch.cuda.current_device())
    worst = proof.check(unproven, proof.Case(pattern, heads, HEADS // HEADS_KV, WIDTH, torch.bfloat16, device, chunk))
    return row | {name: round(ratio, 2) for name, ratio in worst.items()} | {"right": max(worst.values()) <= 2}


def packings(length: int, impl: str, count: int = 50) -> Row:
    """Other documents in every step: what torch compiles after the first two."""
    pattern = SinkWindow(window=1984, sinks=64)
    row = refused(f"{count} packings, {pattern}", impl, pattern.tiles(Documents(length), HEADS_KV))
    if "refused" in row:
        return row
    qkv = inputs(length, length)
    generator = torch.Generator().manual_seed(0)
    graphs, times = [], []
    for _ in range(count):
        num = int(torch.randint(1, 40, (), generator=generator))
        cuts = torch.randint(1, length, (num,), generator=generator).tolist()
        documents = Documents(length, (0, *sorted(set(cuts))))
        begun = time.perf_counter()
        out = attend(qkv[0], qkv[1], qkv[2], pattern.tiles(documents, HEADS_KV), impl)
        torch.autograd.grad(out, qkv, out)
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - begun))
        graphs.append(counters["stats"]["unique_graphs"])
    return row | {
        "median_step_ms": round(statistics.median(times[2:]), 2),
        "slowest_step_ms_after_two": round(max(times[2:]), 2),
        "graphs_after_two": graphs[1],
        "graphs_compiled_later": graphs[-1] - graphs[1],
    }


def cases(impls: list[str]) -> Iterator[partial[Row]]:
    """All of them, the most wanted first."""
    if "sdpa" in impls:
        for part in (False, True):
            yield partial(errors, Causal(), "sdpa", part)
        for length in LENGTHS:
            yield partial(full_causal, length)
            for share in (4, 8):
                yield partial(chunk, length, share, "sdpa")
                yield partial(chunk, length, share, "torch causal_lower_right")
    for impl in impls:
        if impl.startswith("flex"):
            yield partial(packings, LENGTHS[0], impl)
        for pattern, length in product([Causal(), *SPARSE], LENGTHS):
            yield partial(speed, pattern, length, impl)
        if impl == "flash":
            for length, share in product(LENGTHS, (4, 8)):
                yield partial(chunk, length, share, impl)
        if impl != "sdpa":
            for pattern, part in product([Window(1), *SPARSE], (False, True)):
                yield partial(errors, pattern, impl, part)


def main() -> None:
    """Runs every case and writes the file after each."""
    command = parser(__doc__)
    command.add_argument("--impls", nargs="+", default=["sdpa", "flex", "flash", "flex_flash"], help="which backends")
    command.add_argument("--minutes", type=float, default=8.0, help="no case is begun after so long")
    args = command.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Backward passes are timed alone, from one forward pass, whose buffers must outlive the first.
    torch._functorch.config.donated_buffer = False
    installed = {found.metadata["Name"] for found in importlib.metadata.distributions()}
    packages = [name for name in ("torch", "triton", "flash-attn-4", "nvidia-cutlass-dsl") if name in installed]
    begun = time.perf_counter()
    rows: list[Row] = []
    for case in cases(args.impls):
        minutes = (time.perf_counter() - begun) / 60
        # Each case compiles for its own length, as a run does that has only one.
        torch.compiler.reset()
        torch.cuda.empty_cache()
        torch.manual_seed(0)
        said = {"case": f"{case.func.__name__}{case.args}"}
        try:
            rows.append(case() if minutes < args.minutes else said | {"skipped": f"{args.minutes:g} minutes were over"})
        except Exception as error:
            # What fails is a result too, and the others are wanted all the same.
            failed = f"{type(error).__name__}: {error}"[:500]
            rows.append(said | {"failed": failed, "where": traceback.format_exc()[-1500:]})
        print(f"{60 * minutes:4.0f} s  {json.dumps(rows[-1])}", flush=True)
        write(args.out, "attention backends, B=1, H=32, G=8, D=128, bf16", torch.cuda.get_device_name(), packages, rows)
    print(table(rows))


def table(rows: list[Row]) -> str:
    """All rows, the keys of any as columns."""
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ("where", "queries")]
    lines = [keys, *([str(row.get(key, ""))[:60] for key in keys] for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(keys))]
    return "\n".join("  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)).rstrip() for line in lines)


if __name__ == "__main__":
    main()
