"""The error that is allowed: twice that of dense attention in the same type, both against float64.

Shapes: B batch, H query heads, G KV heads, L tokens, Lq queries, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lg.attention.check.case import Case, Problem, problem
from lg.attention.check.launch import undisturbed
from lg.attention.impl import dense
from lg.attention.routed import RoutedTiles
from lg.attention.tiles import Tiles

BUDGET = 2.0
"""The error that is allowed, in those of dense attention in the same type."""

# And this much of the gradient that comes in, in float32's rounding.
_LEAST = 1e-5
# Dense attention goes by so many queries at a time, to bound its memory.
_CHUNK = 512


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What the output, dq, dk and dv of one case are held to.

    Attributes:
        given: its problem.
        exact: the four in float64.
        budget: the error of dense attention in the problem's own type, as a norm of each head [B, heads].
    """

    given: Problem
    exact: list[Tensor]
    budget: list[Tensor]

    @classmethod
    def of(cls, case: Case) -> Yardstick:
        """That of a case.

        Raises:
            torch.OutOfMemoryError: there is no room for its problem.
        """
        with undisturbed(case.facts.device):
            given = problem(case)
            plain = _dense(given)
            exact = _dense(given._replace(**{name: getattr(given, name).double() for name in ("q", "k", "v", "grad")}))
            # Where dense attention happens to be exact, as with a window of 1, float32 rounding is still none.
            least = _LEAST * _norm(given.grad).mean()
            return cls(given, exact, [_norm(one - true) + least for one, true in zip(plain, exact, strict=True)])

    def error(self, number: int, got: Tensor) -> float:
        """How far off the ``number``-th of the four is, in the error of dense attention: the worst of its heads.

        Infinite if anything is not finite.
        """
        return self.apart(number, got, self.exact[number])

    def apart(self, number: int, one: Tensor, other: Tensor) -> float:
        """How far two of its values, or the same rows of two, lie from each other."""
        ratio = _norm(one.double() - other.double()) / self.budget[number]
        return float(ratio.nan_to_num(nan=float("inf")).max())


def _norm(error: Tensor) -> Tensor:
    """Of each head: [B, heads]."""
    norm: Tensor = torch.linalg.vector_norm(error.double(), dim=(2, 3))
    return norm


def _dense(given: Problem) -> list[Tensor]:
    """Output and three gradients of dense attention in the problem's type; dk and dv summed in float64."""
    first, end = given.tiles.queries
    outs, dqs = [], []
    dk, dv = (torch.zeros_like(x, dtype=torch.float64) for x in (given.k, given.v))
    # Tiles that are chosen by content are not of some of the queries only.
    step = end - first if isinstance(given.tiles, RoutedTiles) else _CHUNK
    for begin in range(first, end, step):
        stop = min(begin + step, end)
        own, part = slice(begin - first, stop - first), given.tiles
        if (begin, stop) != part.queries:
            part = Tiles(part.pattern, part.documents, given.k.shape[1], (begin, stop))
        inputs = [x.detach().clone().requires_grad_() for x in (given.q[:, :, own], given.k, given.v)]
        out = dense.run(inputs[0], inputs[1], inputs[2], part, given.scale)
        gradients = torch.autograd.grad(out, inputs, given.grad[:, :, own])
        outs.append(out.detach())
        dqs.append(gradients[0])
        dk += gradients[1]
        dv += gradients[2]
    return [torch.cat(outs, 2), torch.cat(dqs, 2), dk, dv]
