"""Times implementations on a case, one after the other, and holds their results against the first one's.

>>> import torch
>>> from lg.attention import Documents, Window
>>> from lg.attention.attend import IMPLEMENTATIONS
>>> case = Case("near", Window(8), Documents(200), torch.device("cpu"), 4, 2, 16, torch.float32)
>>> rows = list(measured(case, {name: IMPLEMENTATIONS[name] for name in ("dense", "sdpa", "gather")}, seconds=0.01))
>>> [(row.impl, row.refused) for row in rows]
[('dense', None), ('sdpa', 'it computes full causal attention only, not Window(window=8)'), ('gather', None)]
>>> rows[2].against, max(rows[2].errors.values()) < 1e-5, rows[2].auto
('dense', True, True)
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch._functorch.config
from torch import Tensor

from lg.attention.attend import chosen
from lg.attention.bench.case import Case
from lg.attention.bench.row import Row
from lg.attention.bench.timing import Times, times
from lg.attention.cost import Flops, flops, visible_pairs
from lg.attention.impl import Implementation
from lg.attention.tiles import Tiles

_NAMES = ("output", "dq", "dk", "dv")
# Numbers that are made float32 together when results are compared.
_TOGETHER = 1 << 26

_Inputs = tuple[Tensor, Tensor, Tensor]
_Results = tuple[Tensor, ...]


def measured(case: Case, implementations: Mapping[str, Implementation], seconds: float = 0.7) -> Iterator[Row]:
    """A row for each implementation, as it is measured. One that refuses or fails has a row that says why.

    Compiled kernels are forgotten before: each case compiles for its own length, as a run does that has only one.

    Args:
        case: the problem.
        implementations: by name, in order; results are compared with those of the first that runs.
        seconds: how long each direction is timed, about.
    """
    torch.compiler.reset()
    with as_in_training():
        inputs = case.inputs()
    # The same for every row, and slow where pairs have no formula.
    useful = _work(case, visible_pairs(case.tiles()))
    auto = _auto(case, inputs)
    first: tuple[str, _Results] | None = None
    for name, implementation in implementations.items():
        row = replace(_head(case, name), auto=auto is implementation)
        if case.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            row, results = _one(row, case, implementation, inputs, useful, seconds)
        except Exception as error:
            # What fails is a result too, and the others are wanted all the same.
            yield replace(row, failed=f"{type(error).__name__}: {' '.join(str(error).split())}"[:400])
            continue
        if first is None and results:
            first = name, results
        elif first and results:
            row = replace(row, errors=_errors(results, first[1]), against=first[0])
        del results
        yield row


@contextmanager
def as_in_training() -> Iterator[None]:
    """Gradients, whatever the caller is in the middle of; and forward passes that outlive a backward pass, so that
    this can be run from one of them many times.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch._functorch.config.patch(donated_buffer=False):
        yield


def _head(case: Case, name: str) -> Row:
    first, end = case.queries or (0, case.documents.length)
    return Row(
        case.name,
        name,
        case.documents.length,
        case.num_kv_heads,
        case.num_heads,
        case.width,
        str(case.dtype).removeprefix("torch."),
        len(case.documents.starts),
        end - first,
        case.pattern.text,
        datetime.date.today().isoformat(),
    )


def _auto(case: Case, inputs: _Inputs) -> Implementation | None:
    """What `attend` would take; None if it has nothing."""
    try:
        with as_in_training():
            return chosen(*inputs, case.tiles())
    except ValueError:
        return None


def _one(
    row: Row, case: Case, implementation: Implementation, inputs: _Inputs, useful: Flops, seconds: float
) -> tuple[Row, _Results | None]:
    """The row with its figures, and the results; none if the implementation refuses."""
    with as_in_training():
        tiles = case.tiles()
        refusal = implementation.refusal(*inputs, tiles)
        if refusal is not None:
            return replace(row, refused=refusal), None
        forward, backward = _both(case, implementation, inputs, tiles, seconds)
        pairs, scores_again = implementation.executed(tiles)
        peak, results = _step(case, implementation, inputs)
    executed = _work(case, pairs)
    row = replace(
        row,
        fwd_ms=_rounded(forward.median),
        bwd_ms=_rounded(backward.median),
        fwd_tflops=_rate(useful.forward, forward),
        bwd_tflops=_rate(useful.backward_executed, backward),
        fwd_executed_tflops=_rate(executed.forward, forward),
        bwd_executed_tflops=_rate(executed.backward_executed if scores_again else executed.backward, backward),
        fwd_spread_ms=_spread(forward),
        bwd_spread_ms=_spread(backward),
        peak_MiB=peak,
    )
    return row, results


def _both(
    case: Case, implementation: Implementation, inputs: _Inputs, tiles: Tiles, seconds: float
) -> tuple[Times, Times]:
    """The forward and the backward pass, one by one."""
    scale = case.width**-0.5
    forward = times(lambda: implementation.run(*inputs, tiles, scale), case.device, seconds)
    out = implementation.run(*inputs, tiles, scale)
    grad = _gradient(out)

    def backward() -> object:
        return torch.autograd.grad(out, inputs, grad, retain_graph=True, materialize_grads=True)

    return forward, times(backward, case.device, seconds)


def _step(case: Case, implementation: Implementation, inputs: _Inputs) -> tuple[float | None, _Results]:
    """One step from tiles without a table on: MiB that it takes beyond what is there before it; output, dq, dk, dv."""
    on_gpu = case.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(case.device)
    before = torch.cuda.memory_allocated(case.device) if on_gpu else 0
    out = implementation.run(*inputs, case.tiles(), case.width**-0.5)
    gradients = torch.autograd.grad(out, inputs, _gradient(out), materialize_grads=True)
    peak = round((torch.cuda.max_memory_allocated(case.device) - before) / 2**20, 1) if on_gpu else None
    return peak, (out.detach(), *gradients)


def _gradient(out: Tensor) -> Tensor:
    """What comes in from behind: random, the same for every implementation."""
    generator = torch.Generator(out.device).manual_seed(1)
    made = torch.randn(out.transpose(1, 2).shape, generator=generator, device=out.device, dtype=out.dtype)
    return made.transpose(1, 2)


def _errors(results: _Results, first: _Results) -> dict[str, float]:
    """Relative errors, with three digits."""
    return {name: float(f"{_error(got, true):.3g}") for name, got, true in zip(_NAMES, results, first, strict=True)}


def _error(got: Tensor, true: Tensor) -> float:
    """The norm of the difference over the norm; piece by piece, since float32 copies of a million tokens do not fit."""
    step = max(_TOGETHER // (true.shape[1] * true.shape[3]), 1)
    wrong = size = 0.0
    for begin in range(0, true.shape[2], step):
        one, other = (x[:, :, begin : begin + step].float() for x in (got, true))
        wrong += float((one - other).square().sum(dtype=torch.float64))
        size += float(other.square().sum(dtype=torch.float64))
    return math.sqrt(wrong / size if size else wrong)


def _work(case: Case, pairs: Tensor) -> Flops:
    return flops(pairs, case.num_heads, case.width)


def _rate(operations: int, taken: Times) -> float:
    """TFLOP a second, with four digits: small on a CPU."""
    return float(f"{operations / taken.median / 1e9:.4g}")


def _rounded(milliseconds: float) -> float:
    return round(milliseconds, 3)


def _spread(taken: Times) -> tuple[float, float]:
    return _rounded(taken.least), _rounded(taken.most)
