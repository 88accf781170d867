"""How long one layer's attention takes for one new token of each sequence, against what its bytes take at least.

python benchmarks/decode.py [OUT.json]
python benchmarks/decode.py --toy OUT.json     tiny and in Triton's interpreter: shows that it works, measures nothing

Several layers of one pattern follow each other in one CUDA graph, so that none finds its keys in the L2 cache; the time
is that of writing the new key and value, of attention, and of joining its shares, for one layer. The bound is the bytes
that are kept of all tokens in pages that are read, over the bandwidth of the device's data sheet.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from report import device_name, parser, write
from torch import Tensor

from lg.attention import Causal, Pattern, SinkWindow
from lg.attention.impl.triton import paged
from lg.inference.cache import Cache
from lg.inference.formats import Format, Int4, Int8, Plain
from lg.inference.state import Step
from lg.models.devices import of_kind

LAYERS = 4
REPEATS = 20


@dataclass(frozen=True)
class Case:
    """Attention layers, and how much they have read."""

    shape: str
    heads: int
    kv_heads: int
    width: int
    pattern: Pattern
    length: int
    batch: int
    form: Format


FORMS: dict[str, Format] = {"bf16": Plain(torch.bfloat16), "kv8": Int8(), "kv4": Int4()}
SHAPES = {"llama-2-7b": (32, 32, 128), "llama-3-8b": (32, 8, 128)}
PATTERNS = (Causal(), SinkWindow(window=1984, sinks=64))


def cases() -> list[Case]:
    """On a GPU."""
    lengths, batches = (32_768, 131_072), (1, 4)
    return [
        Case(shape, *SHAPES[shape], pattern, length, batch, form)
        for shape, pattern, length, batch, form in itertools.product(SHAPES, PATTERNS, lengths, batches, FORMS.values())
    ]


def toy_cases() -> list[Case]:
    """In the interpreter."""
    return [Case("toy", 4, 2, 32, pattern, 200, 2, form) for pattern in PATTERNS for form in FORMS.values()]


def layers(case: Case, device: torch.device) -> tuple[Callable[[], list[Tensor]], int]:
    """What a token costs all layers, to be called again and again; and the bytes that one layer reads."""
    torch.manual_seed(0)
    cache = Cache(
        [case.pattern] * LAYERS, case.kv_heads, case.width, case.length, case.batch, None, (case.form,) * 2, device
    )
    slots = [cache.open(case.length) or 0 for _ in range(case.batch)]
    cache.end(cache.begin([(slot, case.length - 1) for slot in slots]))
    kind = cache.kinds[0]
    for x in (*kind.keys, *kind.values):
        if x.dtype == torch.uint8:
            x.random_(0, 256)
        elif x.dtype == torch.float16:
            # Steps, which are not negative, and what is added.
            x.uniform_(0, 0.1)
        else:
            x.normal_().mul_(0.1)
    step = Step(cache.begin([(slot, 1) for slot in slots]), lambda positions, length: (positions, positions))
    tables, rows = kind.tables, kind.tables.rows(step, cache.told)
    q = torch.randn(case.batch, case.heads, case.width, device=device, dtype=torch.bfloat16)
    k, v = torch.randn(2, case.batch, case.kv_heads, case.width, device=device, dtype=torch.bfloat16)
    pages = paged.Pages(tables.logical, tables.physical, tables.counts, tables.heads, tables.told)
    rooms = [[tuple(x[layer] for x in room) for room in (kind.keys, kind.values)] for layer in range(LAYERS)]

    def run() -> list[Tensor]:
        out = []
        for keys, values in rooms:
            paged.write(k, v, keys, values, tables.heads, rows.pages, rows.tokens)
            scale = case.width**-0.5
            text = case.pattern.text
            out.append(paged.attention(q, keys, values, pages, rows.slots, rows.lengths, text, scale))
        return out

    return run, kind.num_bytes // LAYERS


def milliseconds(run: Callable[[], object], device: torch.device) -> list[float]:
    """Of each of several runs, recorded as a graph where there is a GPU."""
    if device.type == "cpu":
        start = time.perf_counter()
        run()
        return [1e3 * (time.perf_counter() - start)]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    times = []
    for _ in range(REPEATS + 3):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last))
    return times[3:]


def bandwidth(device: torch.device) -> float:
    """Bytes a second by the data sheet; on a CPU of a copy, read and written."""
    if device.type == "cuda":
        known = of_kind(torch.cuda.get_device_name())
        assert known is not None, "lg/models/devices.py lacks this device"
        return known.bandwidth
    x, y = torch.zeros(2, 1 << 20, dtype=torch.uint8)
    return 2e3 * x.nbytes / statistics.median(milliseconds(lambda: y.copy_(x), device))


def main() -> None:
    """Runs every case and writes the file."""
    line = parser(__doc__)
    line.add_argument("--toy", action="store_true", help="tiny, in Triton's interpreter")
    args = line.parse_args()
    if args.toy:
        os.environ["TRITON_INTERPRET"] = "1"
    device, rows = torch.device("cpu" if args.toy else "cuda"), []
    rate = bandwidth(device)
    for case in toy_cases() if args.toy else cases():
        run, size = layers(case, device)
        times = [one / LAYERS for one in milliseconds(run, device)]
        bound = 1e3 * size / rate
        rows.append(
            {
                "shape": case.shape,
                "heads": case.heads,
                "kv_heads": case.kv_heads,
                "width": case.width,
                "pattern": str(case.pattern),
                "length": case.length,
                "batch": case.batch,
                "format": next(name for name, form in FORMS.items() if form == case.form),
                "median_ms": round(statistics.median(times), 4),
                "spread_ms": [round(min(times), 4), round(max(times), 4)],
                "mib": round(size / 2**20, 2),
                "bound_ms": round(bound, 4),
                "bandwidth_share": round(bound / statistics.median(times), 3),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
        del run
    name = device_name(not args.toy)
    write(args.out, f"decode attention of a layer; bound by {rate / 1e12:.3g} TB/s", name, ["torch", "triton"], rows)


if __name__ == "__main__":
    main()
