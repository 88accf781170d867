"""A young kernel is used only where it has passed its check, on the machine that it runs on.

FlashAttention-4 on Hopper has returned silently wrong gradients at head width 64 (flash-attention issue 2623), in one
of 100 to 1,000 launches (2756), and at head width 256 (2903). So the first time that one of its kernels is asked for,
a small random problem is computed by it and by the float64 oracle; what was found is remembered.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lg.attention.check import Case, Facts, proven
from lg.attention.impl import Executed, Implementation
from lg.attention.tiles import Tiles


@dataclass(frozen=True)
class Proven:
    """An implementation that refuses what it has not computed rightly on this machine.

    Attributes:
        name: what it is called in the log, and by `lg check`.
        implementation: what is proven.
    """

    name: str
    implementation: Implementation

    def refusal(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> str | None:
        """The implementation's own refusal, or what the check found; it runs at most once for a case."""
        own = self.implementation.refusal(q, k, v, tiles)
        return own or proven(self.name, self.implementation, Case(tiles.pattern, Facts.of(q, k, tiles)))

    def run(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
        """As the implementation."""
        return self.implementation.run(q, k, v, tiles, scale)

    def executed(self, tiles: Tiles) -> Executed:
        """As the implementation."""
        return self.implementation.executed(tiles)


def bare(implementation: Implementation) -> Implementation:
    """The implementation without its proof: what a check looks at."""
    return implementation.implementation if isinstance(implementation, Proven) else implementation
