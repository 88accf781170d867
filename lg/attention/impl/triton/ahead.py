"""Compiles the kernels for GPUs that are not there, and says what each takes of one.

    python -m lg.attention.impl.triton.ahead           a sample in which all occurs that kernels differ in
    python -m lg.attention.impl.triton.ahead --all     every variant

The kernels are launched as ever, but on a device that compiles them and runs nothing: what is compiled here is what is
launched there. It is an error if one does not compile, takes more shared memory than there is, or spills too much.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from lg.attention.documents import Documents
from lg.attention.impl.triton import launch, paged
from lg.attention.impl.triton.options import Options, options
from lg.attention.impl.triton.plan import packed, plan, unpacked
from lg.attention.pattern import Pattern
from lg.attention.patterns import Causal, Chunked, Dilated, GlobalTokens, PrefixLM, SinkWindow, Strided, Window
from lg.attention.tiles import Tiles

# Bytes of shared memory that a program may have, by compute capability (CUDA C++ Programming Guide, "Technical
# Specifications per Compute Capability").
SHARED = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# Bytes that a thread may keep in local memory, for want of registers.
SPILLED = 256
# Tokens: so many that the keys of sinks are dealt to several programs.
_LENGTH = 16_384


@dataclass(frozen=True)
class Case:
    """What a layer may differ in so that its kernels are compiled anew.

    Attributes:
        capability: of the device: 90 is Hopper.
        pattern: its text is compiled in.
        dtype: of queries, keys and values.
        width: of a head.
        groups: query heads of each KV head.
        packed: whether there are several documents.
    """

    capability: int
    pattern: Pattern
    dtype: torch.dtype
    width: int
    groups: int
    packed: bool

    def __str__(self) -> str:
        dtype, documents = str(self.dtype).removeprefix("torch."), "packed" if self.packed else "one document"
        return (
            f"sm_{self.capability}, {self.pattern}, {dtype}, width {self.width}, groups of {self.groups}, {documents}"
        )


@dataclass(frozen=True)
class PagedCase:
    """What a layer may differ in so that the kernels that read single tokens are compiled anew.

    Attributes:
        capability, pattern, dtype, width, groups: as in `Case`.
        bits: of a code in which keys and values are kept, 8 or 4; 0 where they lie as they are.
        shares: programs that share a list of pages.
    """

    capability: int
    pattern: Pattern
    dtype: torch.dtype
    width: int
    groups: int
    bits: int
    shares: int = 7

    def __str__(self) -> str:
        dtype, kept = str(self.dtype).removeprefix("torch."), f"KV{self.bits}" if self.bits else "as they are"
        return (
            f"sm_{self.capability}, {self.pattern}, {dtype}, width {self.width}, groups of {self.groups}, pages, {kept}"
        )


@dataclass(frozen=True)
class Report:
    """What a kernel takes of its device, or why it cannot be compiled.

    Attributes:
        case: what it is compiled for.
        kernel: its name; empty where it is not known.
        num_warps, num_stages: what it is compiled with.
        shared: bytes of shared memory of a program.
        registers: of a thread.
        spilled: bytes of local memory of a thread.
        products: instructions of the tensor cores in the PTX.
        copies: asynchronous copies into shared memory.
        bulk_copies: asynchronous copies by the tensor memory accelerator.
        seconds: that compiling it took; next to none where Triton has kept it.
        error: what is wrong with it.
    """

    case: str
    kernel: str = ""
    num_warps: int = 0
    num_stages: int = 0
    shared: int = 0
    registers: int = 0
    spilled: int = 0
    products: int = 0
    copies: int = 0
    bulk_copies: int = 0
    seconds: float = 0.0
    error: str | None = None


_SINKS = SinkWindow(window=1984, sinks=64)
_PATTERNS = (
    Causal(),
    Window(4096),
    _SINKS,
    Strided(),
    Strided(block=100, local_blocks=16, stride=7),
    Dilated(window=64, dilation=3),
    Chunked(8192),
    PrefixLM(),
    (GlobalTokens(16) | Window(512)) & Causal(),
)


def every(capability: int) -> list[Case]:
    """All that is compiled for a device: one pattern in all else that differs, and the other patterns."""
    dtypes, widths = (torch.bfloat16, torch.float16, torch.float32), (64, 80, 96, 128, 256)
    groups, packed = (1, 4), (False, True)
    of_one = itertools.product((_SINKS,), dtypes, widths, groups, packed)
    of_each = itertools.product(_PATTERNS, dtypes[:1], (128,), groups[1:], packed)
    return [Case(capability, *case) for case in dict.fromkeys((*of_one, *of_each))]


def every_paged(capability: int) -> list[PagedCase]:
    """All that is compiled for single tokens on a device."""
    dtypes, widths = (torch.bfloat16, torch.float16, torch.float32), (64, 80, 128, 256)
    of_one = itertools.product((_SINKS,), dtypes, widths, (1, 4), (0, 8, 4))
    of_each = itertools.product(_PATTERNS, dtypes[:1], (128,), (4,), (0,))
    return [PagedCase(capability, *case) for case in dict.fromkeys((*of_one, *of_each))]


def sample() -> list[Case | PagedCase]:
    """A few of them, in which every device, type and kind of predicate occurs, and packing and groups with each."""
    return [
        Case(80, Strided(), torch.float16, 80, 4, True),
        Case(90, _SINKS, torch.bfloat16, 128, 4, False),
        Case(90, Dilated(window=64, dilation=3), torch.float32, 64, 1, False),
        Case(100, PrefixLM(), torch.bfloat16, 256, 1, True),
        PagedCase(80, Strided(), torch.float16, 64, 8, 4),
        PagedCase(90, _SINKS, torch.bfloat16, 128, 4, 0),
        PagedCase(90, PrefixLM(), torch.bfloat16, 128, 1, 8),
        PagedCase(90, Causal(), torch.float32, 128, 1, 4),
    ]


def compiled(case: Case, launched: Options | None = None) -> list[Report]:
    """What the kernels that attention launches take in this case, forward and backward; no more after one that fails.

    Args:
        case: what a layer is.
        launched: tile sizes, warps and stages to try; by default lg's own.
    """
    documents = Documents(_LENGTH, (0, 5000) if case.packed else (0,), {"prefix": (700,) * (1 + case.packed)})
    heads_kv = case.pattern.made_for or 2
    tiles = Tiles(case.pattern, documents, heads_kv)
    made = plan(tiles, launched or options(case.dtype, case.width, divmod(case.capability, 10)))
    on = unpacked(*packed(made, torch.device("cpu")))
    q, grad = (torch.empty(1, heads_kv * case.groups, _LENGTH, case.width, dtype=case.dtype) for _ in range(2))
    k, v = (torch.empty(1, heads_kv, _LENGTH, case.width, dtype=case.dtype) for _ in range(2))

    def both() -> None:
        out, lse = launch.forward(q, k, v, on, tiles.text, 0, 1.0)
        launch.backward(grad, q, k, v, out, lse, on, tiles.text, 0, 1.0)

    return _reports(case, both)


def compiled_paged(case: PagedCase, launched: paged.Launch | None = None) -> list[Report]:
    """What the kernels take that keep and read pages; no more after one that fails.

    Args:
        case: what a layer is.
        launched: warps and stages to try; by default lg's own.
    """
    rows, heads_kv, num_pages = 16, case.pattern.made_for or 2, 64
    numbers = torch.zeros(1 << 16, dtype=torch.int32)
    q, k, v = (
        torch.empty(rows, heads, case.width, dtype=case.dtype) for heads in (heads_kv * case.groups, heads_kv, heads_kv)
    )
    room: tuple[Tensor, ...] = (torch.empty(num_pages, 64, case.width, dtype=case.dtype),)
    if case.bits:
        codes = torch.empty(num_pages, 64, case.width * case.bits // 8, dtype=torch.uint8)
        room = codes, torch.empty(num_pages, 64, 2, dtype=torch.float16)
    lists = numbers[: rows * num_pages].view(rows, 1, num_pages)
    heads = numbers[: heads_kv * 3].view(-1, 3)
    pages = paged.Pages(lists, lists, lists[..., 0], heads, numbers.view(-1, rows))
    text, on = case.pattern.text, launched or paged.launch_of(case.dtype, case.width, (case.bits,) * 2)

    laid = torch.empty(heads_kv, 1000, case.width, dtype=case.dtype)

    def launches() -> None:
        paged.write(k, v, room, room, heads, lists[..., 0], numbers)
        paged.attention(q, room, room, pages, numbers, numbers, text, 1.0, case.shares, on)
        paged.read(room, heads, lists[0], lists[0], laid)

    return _reports(case, launches)


def _of_either(case: Case | PagedCase) -> list[Report]:
    return compiled(case) if isinstance(case, Case) else compiled_paged(case)


def _reports(case: Case | PagedCase, launches: Callable[[], None]) -> list[Report]:
    reports: list[Report] = []
    with _device_that_compiles(case, reports):
        try:
            launches()
        except Exception as error:
            # Whatever a compiler ends in; its first line says why.
            told = str(error).strip().partition("\n")[0]
            reports.append(Report(str(case), error=f"{type(error).__name__}: {told}"))
    return reports


@contextmanager
def _device_that_compiles(case: Case | PagedCase, reports: list[Report]) -> Iterator[None]:
    """A driver for Triton: launches compile, report and return."""
    target = GPUTarget("cuda", case.capability, 32)
    stand_in = SimpleNamespace(
        # Triton keeps kernels by the number of the device.
        get_current_device=lambda: case.capability,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: target,
        launcher_cls=lambda source, metadata: lambda *arguments: None,
        utils=SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 2**31},
            load_binary=lambda name, binary, shared, device: (None, None, 0, 0, 1024),
        ),
    )

    def listen(
        *, src: Any, metadata: Mapping[str, Any], metadata_group: Mapping[str, str], times: Any, cache_hit: bool
    ) -> None:
        files = {Path(file).suffix: Path(file) for file in metadata_group.values()}
        reports.append(_report(case, src.fn.__name__, metadata, files, times.total / 1e6))

    before = triton.knobs.compilation.listener
    triton.knobs.compilation.listener = listen
    triton.runtime.driver.set_active(stand_in)
    try:
        yield
    finally:
        triton.knobs.compilation.listener = before
        # The next who asks gets the driver of the machine.
        triton.runtime.driver.set_active(None)


def _report(
    case: Case | PagedCase, kernel: str, metadata: Mapping[str, Any], files: Mapping[str, Path], seconds: float
) -> Report:
    ptx, used = files[".ptx"].read_text(), _resources(files[".cubin"])
    errors = []
    if metadata["shared"] > SHARED[case.capability]:
        errors.append(f"{metadata['shared']} bytes of shared memory; there are {SHARED[case.capability]}")
    if used["STACK"] > SPILLED:
        errors.append(f"a thread spills {used['STACK']} bytes; {SPILLED} are allowed")
    return Report(
        str(case),
        kernel,
        metadata["num_warps"],
        metadata["num_stages"],
        metadata["shared"],
        used["REG"],
        used["STACK"],
        len(re.findall(r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)\b", ptx)),
        len(re.findall(r"\bcp\.async\.c[ag]\b", ptx)),
        len(re.findall(r"\bcp\.async\.bulk\b", ptx)),
        seconds,
        "; ".join(errors) or None,
    )


def _resources(binary: Path) -> dict[str, int]:
    """What `cuobjdump` says that a kernel uses: among others REG, registers of a thread, and STACK, its local bytes."""
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(binary)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", said)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Compiles, prints one row a kernel, and returns 1 if one has an error."""
    parser = argparse.ArgumentParser("python -m lg.attention.impl.triton.ahead", description=__doc__.split("\n")[0])
    parser.add_argument("--all", action="store_true", help="every variant, not a sample")
    parser.add_argument(
        "--capability",
        type=int,
        choices=SHARED,
        nargs="+",
        default=list(SHARED),
        help="devices to compile for; by default all",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the reports")
    given = parser.parse_args(arguments)
    if launch.interpreted():
        parser.error("TRITON_INTERPRET is set, with which Triton compiles nothing")
    cases = [] if given.all else sample()
    for capability in SHARED if given.all else ():
        cases += [*every(capability), *every_paged(capability)]
    cases = [case for case in cases if case.capability in given.capability]
    reports: list[Report] = []
    print(_HEAD)
    # A process that has started threads, as torch has, must not be forked.
    with multiprocessing.get_context("spawn").Pool() as pool:
        for done, of_case in enumerate(pool.imap(_of_either, cases), 1):
            print(f"[{done}/{len(cases)}] {cases[done - 1]}")
            for report in of_case:
                print(_row(report), flush=True)
            reports += of_case
    wrong = [report for report in reports if report.error]
    print(f"{len(reports)} kernels, {len(wrong)} with an error")
    if given.json:
        beside = given.json.with_name(f"{given.json.name}.tmp")
        beside.write_text(json.dumps([dataclasses.asdict(report) for report in reports], indent=1) + "\n")
        beside.replace(given.json)
    return int(bool(wrong))


_HEAD = "kernel                    warps stages shared KiB registers spilled products copies bulk seconds"


def _row(report: Report) -> str:
    figures = (
        f"{report.kernel:<25} {report.num_warps:>5} {report.num_stages:>6} {report.shared / 1024:>10.1f} "
        f"{report.registers:>9} {report.spilled:>7} {report.products:>8} {report.copies:>6} {report.bulk_copies:>4} "
        f"{report.seconds:>7.1f}"
    )
    return f"{figures}  {report.error}" if report.error else figures


if __name__ == "__main__":
    sys.exit(main())
