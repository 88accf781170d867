"""Ways to compute attention under a pattern. Each is a module, or an object of one, with `refusal` and `run`."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from lg.attention.tiles import Tiles


class Implementation(Protocol):
    """One way to compute attention.

    Shapes: q [B, H, Lq, D], k and v [B, G, L, D].
    """

    def refusal(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> str | None:
        """Why it cannot compute this, or None if it can."""

    def run(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
        """Attention: [B, H, Lq, D]."""
