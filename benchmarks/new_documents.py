"""What it costs that every step has other documents: full causal attention within each, forward and backward.

    python benchmarks/new_documents.py [OUT.json] [--steps 12]

A training step never sees a packing again, while a benchmark that times one packing over and over does, and so hides
what is made for each new length of a document. `cudnn` is `sdpa` with every document computed by cuDNN, which plans for
each length.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from attention import clocked
from attention import step as once
from report import device_name, parser, write

from lg.attention import Causal, Documents
from lg.attention.bench import Case
from lg.attention.impl import sdpa

LENGTH = 32_768
# Query heads, KV heads, and their width: of SmolLM2 135M, and of Llama 3 8B.
SHAPES = ((9, 3, 64), (32, 8, 128))


def packing(seed: int) -> Documents:
    """Documents of 128 to 8,192 tokens, as many short as long ones; the last is cut."""
    generator = torch.Generator().manual_seed(seed)
    starts = [0]
    while starts[-1] < LENGTH:
        starts.append(
            starts[-1] + round(math.exp(math.log(128) + float(torch.rand((), generator=generator)) * math.log(64)))
        )
    return Documents(LENGTH, starts[:-1])


def timed(impl: str, heads: int, kv_heads: int, width: int, steps: int) -> dict[str, Any]:
    """A step of new documents, and the last one's once more, from documents on."""
    torch.compiler.reset()

    def step(seed: int) -> Callable[[], None]:
        case = Case("packed", Causal(), packing(seed), torch.device("cuda"), heads, kv_heads, width)
        return partial(once, impl, case, case.inputs())

    taken = [clocked(step(seed)) for seed in range(steps)]
    last = step(steps - 1)
    # The first two compile.
    return {
        "heads": heads,
        "kv_heads": kv_heads,
        "width": width,
        "length": LENGTH,
        "documents": [len(packing(seed).starts) for seed in range(steps)],
        "step_ms": round(statistics.median(taken[2:]), 2),
        "slowest_step_ms": round(max(taken[2:]), 2),
        "again_ms": round(statistics.median(clocked(last) for _ in range(5)), 2),
    }


def main() -> None:
    """Times each implementation on the same packings, one after another."""
    command = parser(__doc__)
    command.add_argument("--steps", type=int, default=12)
    args = command.parse_args()
    rows: list[dict[str, Any]] = []
    for shape in SHAPES:
        for name in ("cudnn", "sdpa", "triton", "flex"):
            block, sdpa._BLOCK = sdpa._BLOCK, 1 if name == "cudnn" else sdpa._BLOCK
            rows.append({"impl": name, **timed("sdpa" if name == "cudnn" else name, *shape, args.steps)})
            sdpa._BLOCK = block
            print(rows[-1], flush=True)
            what = "full causal attention of packed documents, other ones in each step"
            write(args.out, what, device_name(True), ["torch", "triton"], rows)


if __name__ == "__main__":
    main()
