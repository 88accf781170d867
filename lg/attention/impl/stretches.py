"""Full causal attention and windows on a part of a sequence, for kernels that take one chunk of queries at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lg.attention.impl import Executed
from lg.attention.part import Part
from lg.attention.tiles import Tiles

Run = Callable[[Tensor, Tensor, Tensor, Tiles, float], Tensor]


def stretch_by_stretch(run: Run, q: Tensor, k: Tensor, v: Tensor, part: Part, scale: float) -> Tensor:
    """Attention [B, H, Lq, D] of a part of `Causal` or `Window`, range after range of its queries."""
    outs = [run(q[:, :, own], k[:, :, keys], v[:, :, keys], tiles, scale) for own, keys, tiles in part.stretches]
    return torch.cat(outs, 2)


def executed_in_all(executed: Callable[[Tiles], Executed], part: Part) -> Executed:
    """The work of `stretch_by_stretch`."""
    works = [executed(stretch.tiles) for stretch in part.stretches]
    return works[0]._replace(pairs=torch.stack([work.pairs for work in works]).sum(0))
