"""A young kernel is used only where its gradients have been checked, on the machine that it runs on.

FlashAttention-4 on Hopper has returned silently wrong gradients at head width 64 (flash-attention issue 2623), in one
of 100 to 1,000 launches (2756), and at head width 256 (2903). So the first time that one of its kernels is asked for,
a small random problem is computed by it and by the float64 oracle.

Shapes: B batch, H query heads, G KV heads, L tokens, Lq queries, D head width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lg.attention.documents import Documents
from lg.attention.impl import Executed, Implementation, dense
from lg.attention.pattern import Pattern
from lg.attention.tiles import Tiles

log = logging.getLogger(__name__)

# Odd, and more than a few tiles. A pattern that hides nothing from so many tokens is tried on twice as many, and so on:
# a window's far edge must be in the problem. Beyond the most, patterns are proven as far as they go.
_LENGTH, _MOST = 1_093, 10_000
_LAUNCHES = 8
# The error that is allowed, in those of dense attention in the same type.
_BUDGET = 2.0
# And this much of the gradient that comes in, in float32's rounding.
_LEAST = 1e-5
# Dense attention goes by so many queries at a time, to bound its memory.
_CHUNK = 512


class Case(NamedTuple):
    """What a proof holds for.

    ``heads_kv`` are those of the problem: the layer's own where that matters to the pattern, else 2. ``chunk``: whether
    only some of the tokens ask.
    """

    pattern: Pattern
    heads_kv: int
    groups: int
    width: int
    dtype: torch.dtype
    device: torch.device
    chunk: bool


@dataclass(frozen=True)
class Proven:
    """An implementation that refuses what it has not computed rightly on this machine.

    Attributes:
        name: what it is called in the log.
        implementation: what is proven.
    """

    name: str
    implementation: Implementation
    _verdicts: dict[Case, str | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def refusal(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> str | None:
        """The implementation's own refusal, or what the check found, with figures; the check runs once for a case."""
        own = self.implementation.refusal(q, k, v, tiles)
        if own:
            return own
        case = Case(
            tiles.pattern,
            k.shape[1] if tiles.heads > 1 or tiles.pattern.made_for else 2,
            q.shape[1] // k.shape[1],
            q.shape[3],
            q.dtype,
            q.device,
            tiles.queries != (0, tiles.documents.length),
        )
        if case not in self._verdicts:
            self._verdicts[case] = self._verdict(case)
        return self._verdicts[case]

    def run(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
        """As the implementation."""
        return self.implementation.run(q, k, v, tiles, scale)

    def executed(self, tiles: Tiles) -> Executed:
        """As the implementation."""
        return self.implementation.executed(tiles)

    def _verdict(self, case: Case) -> str | None:
        what = f"{case.pattern}, head width {case.width}, {case.dtype}"
        try:
            worst = check(self.implementation, case)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            wrong = f"the check of its gradients ended in {type(error).__name__}: {error}"
        else:
            name = max(worst, key=lambda name: worst[name])
            told = f"{worst[name]:.2f} times the error of dense attention, in its {name}"
            if worst[name] <= _BUDGET:
                log.info("attention by %s of %s passed the check of its gradients: at most %s", self.name, what, told)
                return None
            wrong = f"it failed the check of its gradients on this device: {told}, where {_BUDGET:g} are allowed"
        log.warning("attention by %s of %s is not used: %s", self.name, what, wrong)
        return wrong


def check(implementation: Implementation, case: Case) -> dict[str, float]:
    """The worst errors found, in those of dense attention in the same type, both against float64.

    One document and packed documents of odd lengths, each eight times forward and backward; the gradients of the eight
    must also agree with the first.

    Returns:
        For "output", "dq", "dk" and "dv": the greatest ratio of norms over heads, problems and launches; infinite where
        the implementation gives what is not finite, or refuses.
    """
    worst = dict.fromkeys(("output", "dq", "dk", "dv"), 0.0)
    # Whatever the caller is in the middle of: no gradients, inference, autocast.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(case.device.type, enabled=False):
        for tiles in _problems(case):
            for name, ratio in _ratios(implementation, case, tiles):
                worst[name] = max(worst[name], ratio)
    return worst


def _ratios(implementation: Implementation, case: Case, tiles: Tiles) -> Iterator[tuple[str, float]]:
    q, k, v, grad = _values(case, tiles)
    exact = _dense([x.double() for x in (q, k, v, grad)], tiles)
    plain = _dense([q, k, v, grad], tiles)
    # Where dense attention happens to be exact, as with a window of 1, float32 rounding is still none.
    least = _LEAST * _norm(grad).mean()
    budget = [_norm(one - true) + least for one, true in zip(plain, exact, strict=True)]

    inputs = [x.requires_grad_() for x in (q, k, v)]
    launches = []
    for _ in range(_LAUNCHES):
        out = implementation.run(q, k, v, tiles, case.width**-0.5)
        launches.append(torch.autograd.grad(out, inputs, grad))
        yield "output", _worst(out.detach() - exact[0], budget[0])
    for launch in launches:
        for name, got, first, true, most in zip(
            ("dq", "dk", "dv"), launch, launches[0], exact[1:], budget[1:], strict=True
        ):
            yield name, _worst(got - true, most)
            yield name, _worst(got.double() - first, most)


def _norm(error: Tensor) -> Tensor:
    """Of each head: [B, heads]."""
    norm: Tensor = torch.linalg.vector_norm(error.double(), dim=(2, 3))
    return norm


def _worst(error: Tensor, budget: Tensor) -> float:
    """The greatest ratio over heads; infinite if anything is not finite."""
    ratio = _norm(error) / budget
    return float(ratio.nan_to_num(nan=float("inf")).max())


def _problems(case: Case) -> Iterator[Tiles]:
    length = _LENGTH
    while length <= _MOST and not _hides(case, length):
        length = 2 * length + 1
    if length > _MOST:
        length = _LENGTH
    for starts in ((0,), (0, 1, 78, 80 + length // 7)):
        ends = (*starts[1:], length)
        own = [end - start for start, end in zip(starts, ends, strict=True)]
        # Any integers do; some are within their document.
        attributes = {name: [n // 2 for n in own] for name in case.pattern.attributes if name != "length"}
        queries = (length // 3, length - 5) if case.chunk else None
        yield case.pattern.tiles(Documents(length, starts, attributes), case.heads_kv, queries)


def _hides(case: Case, length: int) -> bool:
    """Whether the last query of one document does not see everything."""
    names = [name for name in case.pattern.attributes if name != "length"]
    on = Documents(length, attributes={name: [length // 2] for name in names})
    tiles = case.pattern.tiles(on, case.heads_kv, (length - 1, length))
    head = torch.arange(tiles.heads)[:, None, None]
    return not bool(tiles.seen(torch.tensor([[length - 1]]), torch.arange(length), head).all())


def _values(case: Case, tiles: Tiles) -> list[Tensor]:
    """q, k, v and the gradient of the output, from a generator of their own: the caller's random state stays."""
    generator = torch.Generator().manual_seed(0)
    num_queries = tiles.queries[1] - tiles.queries[0]
    heads = case.heads_kv * case.groups
    shapes = [(heads, num_queries), *[(case.heads_kv, tiles.documents.length)] * 2, (heads, num_queries)]
    return [torch.randn(1, *shape, case.width, generator=generator).to(case.device, case.dtype) for shape in shapes]


def _dense(values: list[Tensor], tiles: Tiles) -> list[Tensor]:
    """Output and three gradients of dense attention in the values' type; dk and dv summed in float64."""
    q, k, v, grad = (x.detach() for x in values)
    first, end = tiles.queries
    outs, dqs = [], []
    dk, dv = torch.zeros_like(k, dtype=torch.float64), torch.zeros_like(v, dtype=torch.float64)
    for begin in range(first, end, _CHUNK):
        stop = min(begin + _CHUNK, end)
        own = slice(begin - first, stop - first)
        part = Tiles(tiles.pattern, tiles.documents, k.shape[1], (begin, stop))
        inputs = [x.clone().requires_grad_() for x in (q[:, :, own], k, v)]
        out = dense.run(inputs[0], inputs[1], inputs[2], part, q.shape[3] ** -0.5)
        gradients = torch.autograd.grad(out, inputs, grad[:, :, own])
        outs.append(out.detach())
        dqs.append(gradients[0])
        dk += gradients[1]
        dv += gradients[2]
    return [torch.cat(outs, 2), torch.cat(dqs, 2), dk, dv]
