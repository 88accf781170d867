"""Gathered attention, made wrong in one way or another: what checks must catch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lg.attention import Tiles
from lg.attention.impl import Executed, gather

Alter = Callable[[Tensor], Tensor]


class Altered:
    """Puts its output, or one of the gradients, through ``alter``; counts its launches."""

    def __init__(self, which: str = "output", alter: Alter = lambda x: x) -> None:
        self.which, self.alter, self.launches = which, alter, 0

    def refusal(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> str | None:
        return None

    def run(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
        self.launches += 1
        values = {"dq": q, "dk": k, "dv": v}
        if self.which in values:
            # On the way back, not on the way out.
            values[self.which] = values[self.which] * 1
            values[self.which].register_hook(self.alter)
        out = gather.run(values["dq"], values["dk"], values["dv"], tiles, scale)
        return self.alter(out) if self.which == "output" else out

    def executed(self, tiles: Tiles) -> Executed:
        return gather.executed(tiles)


class Traced(Altered):
    """Adds a millionth of something that may not matter to the output: far below any error budget."""

    def __init__(self, of: Callable[[Tensor, Tiles], Tensor]) -> None:
        super().__init__()
        self.of = of

    def run(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
        first, end = tiles.queries
        trace = self.of(v.detach(), tiles)[:, :, first:end].repeat_interleave(q.shape[1] // k.shape[1], 1)
        return gather.run(q, k, v, tiles, scale) + 1e-6 * trace


def previous_document(v: Tensor, tiles: Tiles) -> Tensor:
    """To each token, the mean of the values of the document before its own."""
    means = torch.stack([v[:, :, a:b].mean(2) for a, b in tiles.documents.bounds.T.tolist()], 2)
    return means.roll(1, 2)[:, :, tiles.documents.of_token]


def key_before(window: int) -> Callable[[Tensor, Tiles], Tensor]:
    """To each token, the value of the first key that a window no longer reaches."""
    return lambda v, tiles: torch.cat((torch.zeros_like(v[:, :, :window]), v[:, :, :-window]), 2)


class Unwritten(Altered):
    """Does not write the rows of queries that see nothing."""

    def run(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
        # Asked for first, as a kernel's output is: later, a GPU's memory holds what was computed on the way.
        unwritten = torch.empty_like(q)
        out = gather.run(q, k, v, tiles, scale)
        sighted = (out != 0).any(-1, keepdim=True).detach()
        return torch.where(sighted, out, unwritten)
