"""The patterns that come with lg. Each states one predicate; the others of the field are `&` and `|` away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lg.attention.pattern import Pattern, at_least
from lg.attention.reading import Index, Span, Truth


@dataclass(frozen=True)
class Causal(Pattern):
    """Every key up to the query itself: full attention."""

    def sees(self, q: Index, k: Index, h: Index) -> Any:
        return k <= q


@dataclass(frozen=True)
class Window(Pattern):
    """The last ``window`` keys, the query's own included (Mistral's sliding window: Jiang et al. 2023,
    arXiv 2310.06825, section 2).
    """

    window: int

    def __post_init__(self) -> None:
        at_least(self.window, 1, self, "window")

    def sees(self, q: Index, k: Index, h: Index) -> Any:
        return (k <= q) & (q - k < self.window)


@dataclass(frozen=True)
class SinkWindow(Pattern):
    """The first ``sinks`` keys of the document and the last ``window``, self included: LongGen's "attention sink"
    layer (Ge et al. 2024, arXiv 2410.01485; the sinks are those of Xiao et al. 2023, arXiv 2309.17453).
    """

    window: int
    sinks: int = 4

    def __post_init__(self) -> None:
        at_least(self.window, 1, self, "window")
        at_least(self.sinks, 0, self, "sinks")

    def sees(self, q: Index, k: Index, h: Index) -> Any:
        return (k <= q) & ((q - k < self.window) | (k < self.sinks))

    def tile(self, q: Span, k: Span, h: Span) -> Truth:
        # All is seen where the first key that is no sink is in the last query's window: sinks and window together
        # may fill a tile that neither fills alone.
        first = torch.as_tensor(k.lo).clamp(min=self.sinks)
        filled = (k.hi < self.sinks) | (q.hi - first < self.window)
        return Truth(super().tile(q, k, h).can, (k <= q).must & filled)


@dataclass(frozen=True)
class Strided(Pattern):
    """Local blocks, and vertical stripes of blocks that shift with the head: LongGen's "block sparse" layer and
    S2-Attention's pattern (Lin et al. 2024, arXiv 2407.17678).

    Block ``j`` is seen from block ``i`` if ``i - j < local_blocks`` (the own block included) or if
    ``(j + h * head_step + offset) % stride == 0``. Stripes stand at absolute blocks of the document, so a key that
    has fallen out of sight is never seen again.

    Attributes:
        block: tokens in a block.
        local_blocks: blocks seen near the query, its own included.
        stride: blocks from one stripe to the next.
        head_step: blocks by which each next KV head's stripes lie earlier. S2-Attention's code (dkernel) takes
            ``max(1, stride // num_heads)``; heads cover every block together only if ``num_heads * head_step`` reaches
            ``stride`` with a step of 1.
        offset: 0 as in dkernel; 1 gives the stripes of Phi-3-small as vLLM runs it (head 0 keeps block ``stride - 1``
            where dkernel keeps block 0).
    """

    block: int = 64
    local_blocks: int = 16
    stride: int = 128
    head_step: int = 1
    offset: int = 0

    def __post_init__(self) -> None:
        at_least(self.block, 1, self, "block")
        at_least(self.local_blocks, 1, self, "local_blocks")
        at_least(self.stride, 1, self, "stride")
        at_least(self.head_step, 0, self, "head_step")
        at_least(self.offset, 0, self, "offset")

    def sees(self, q: Index, k: Index, h: Index) -> Any:
        local = q // self.block - k // self.block < self.local_blocks
        return (k <= q) & (local | ((k // self.block + h * self.head_step + self.offset) % self.stride == 0))

    def tile(self, q: Span, k: Span, h: Span) -> Truth:
        first, last = k.lo // self.block, torch.as_tensor(k.hi // self.block)
        lag = torch.as_tensor((first + h.lo * self.head_step + self.offset) % self.stride)
        # Blocks from the first to the next stripe: a stripe within reach is seen; and the first block off the stripes
        # is the farthest that the last query must reach locally for all to be seen.
        stripe = first + torch.where(lag == 0, 0, self.stride - lag)
        off_stripe = first + (lag == 0).to(last.dtype)
        local = q.lo // self.block - last < self.local_blocks
        filled = (off_stripe > last) | (q.hi // self.block - off_stripe < self.local_blocks) | (self.stride == 1)
        return Truth((k.lo <= q.hi) & (local | (stripe <= last)), (k.hi <= q.lo) & filled)
