"""Ways to compute attention under a pattern: each is a module, or an object of one, that fits `Implementation`."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from lg.attention.tiles import Tiles


class Executed(NamedTuple):
    """What an implementation computes, whether it is seen or not.

    Attributes:
        pairs: of query and key, in each of the tiles' heads: int64 [tiles.heads], on the host.
        scores_again: whether its backward pass computes the scores a second time, as FlashAttention does.
    """

    pairs: Tensor
    scores_again: bool


class Implementation(Protocol):
    """One way to compute attention.

    Shapes: q [B, H, Lq, D], k and v [B, G, L, D].
    """

    def refusal(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> str | None:
        """Why it cannot compute this, or None if it can."""

    def run(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
        """Attention: [B, H, Lq, D]."""

    def executed(self, tiles: Tiles) -> Executed:
        """The work that `run` does on these tiles."""
