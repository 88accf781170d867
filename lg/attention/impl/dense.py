"""The oracle: attention with the whole mask written out. Slow, and what every other implementation is held to.

Shapes: B batch, H query heads, G KV heads, L tokens, Lq queries, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lg.attention.impl import Executed
from lg.attention.tiles import Tiles


def refusal(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> str | None:
    """The oracle takes anything."""
    return None


def run(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
    """Softmax attention in the inputs' own type (hand it float64 for an oracle): [B, H, Lq, D].

    A query that sees nothing gives 0.
    """
    seen = tiles.mask(q.device).repeat_interleave(q.shape[1] // tiles.heads, -3)
    groups = q.shape[1] // k.shape[1]
    scores = (q * scale) @ k.repeat_interleave(groups, 1).mT
    scores = scores.masked_fill(~seen, float("-inf"))
    # Of a row of minus infinities softmax makes NaN, forward and backward; such a row is made 0 before and after.
    blind = ~seen.any(-1, keepdim=True)
    weights = scores.masked_fill(blind, 0.0).softmax(-1).masked_fill(~seen, 0.0)
    return weights @ v.repeat_interleave(groups, 1)


def executed(tiles: Tiles) -> Executed:
    """Every pair of the square; its weights are kept for the backward pass."""
    return Executed(torch.full((tiles.heads,), tiles.num_queries * tiles.num_keys), scores_again=False)
