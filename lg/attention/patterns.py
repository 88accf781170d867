"""The patterns that come with lg. Each states one predicate; the others of the field are `&` and `|` away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lg.attention.pattern import Pattern, at_least
from lg.attention.reading import Index, Span, Truth


@dataclass(frozen=True)
class Causal(Pattern):
    """Every key up to the query itself: full attention."""

    def sees(self, q: Index, k: Index, h: Index) -> Any:
        return k <= q

    def num_seen(self, q: Tensor, h: Tensor, doc: Any) -> Tensor:
        return q + 1

    def pieces(self, length: int, head: int) -> Sequence[int]:
        return (0,)


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

    def num_seen(self, q: Tensor, h: Tensor, doc: Any) -> Tensor:
        return (q + 1).clamp(max=self.window)


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

    def tile(self, q: Span, k: Span, h: Span, doc: Any) -> Truth:
        # All is seen where the first key that is no sink is in the last query's window: sinks and window together
        # may fill a tile that neither fills alone.
        first = torch.as_tensor(k.lo).clamp(min=self.sinks)
        filled = (k.hi < self.sinks) | (q.hi - first < self.window)
        return Truth(super().tile(q, k, h, doc).can, (k <= q).must & filled)

    def num_seen(self, q: Tensor, h: Tensor, doc: Any) -> Tensor:
        before = (q + 1 - self.window).clamp(min=0, max=self.sinks)
        return (q + 1).clamp(max=self.window) + before


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
        return (k <= q) & (local | ((k // self.block + self._lag(h)) % self.stride == 0))

    def tile(self, q: Span, k: Span, h: Span, doc: Any) -> Truth:
        first, last = k.lo // self.block, torch.as_tensor(k.hi // self.block)
        lag = torch.as_tensor((first + self._lag(h.lo)) % self.stride)
        # Blocks from the first to the next stripe: a stripe within reach is seen; and the first block off the stripes
        # is the farthest that the last query must reach locally for all to be seen.
        stripe = first + torch.where(lag == 0, 0, self.stride - lag)
        off_stripe = first + (lag == 0).to(last.dtype)
        local = q.lo // self.block - last < self.local_blocks
        filled = (off_stripe > last) | (q.hi // self.block - off_stripe < self.local_blocks) | (self.stride == 1)
        return Truth((k.lo <= q.hi) & (local | (stripe <= last)), (k.hi <= q.lo) & filled)

    def num_seen(self, q: Tensor, h: Tensor, doc: Any) -> Tensor:
        # Blocks below the local ones, and the stripes among them: those j with (j + lag) % stride == 0.
        far = (q // self.block - self.local_blocks + 1).clamp(min=0)
        lag: Tensor = self._lag(h)
        stripes = (far + lag + self.stride - 1) // self.stride - (lag + self.stride - 1) // self.stride
        return q + 1 - (far - stripes) * self.block

    def _lag(self, h: Index) -> Any:
        """Blocks from a head's stripe to the next multiple of the stride."""
        # Without a step all heads see alike, and the text says so.
        return (h * self.head_step + self.offset if self.head_step else self.offset) % self.stride


@dataclass(frozen=True)
class Dilated(Pattern):
    """The query itself and every ``dilation``-th key before it, ``window`` keys in all: the dilated sliding window of
    Longformer (Beltagy et al. 2020, arXiv 2004.05150, section 3.1), one-sided.
    """

    window: int
    dilation: int = 2

    def __post_init__(self) -> None:
        at_least(self.window, 1, self, "window")
        at_least(self.dilation, 1, self, "dilation")

    def sees(self, q: Index, k: Index, h: Index) -> Any:
        return (k <= q) & (q - k < self.window * self.dilation) & ((q - k) % self.dilation == 0)

    def tile(self, q: Span, k: Span, h: Span, doc: Any) -> Truth:
        # A rectangle has every distance from the least to the greatest; seen are multiples up to the farthest.
        least, greatest = torch.as_tensor(q.lo - k.hi), torch.as_tensor(q.hi - k.lo)
        farthest = (self.window - 1) * self.dilation
        next_seen = (least.clamp(min=0) + self.dilation - 1) // self.dilation * self.dilation
        single = (least == greatest) & (least % self.dilation == 0)
        return Truth(
            next_seen <= greatest.clamp(max=farthest),
            (least >= 0) & (greatest <= farthest) & (single | (self.dilation == 1)),
        )

    def num_seen(self, q: Tensor, h: Tensor, doc: Any) -> Tensor:
        return (q // self.dilation + 1).clamp(max=self.window)


@dataclass(frozen=True)
class Chunked(Pattern):
    """Every key of the query's own chunk up to itself: chunks of ``chunk`` tokens see nothing of each other (the local
    layers of Llama 4: Meta 2025, "attention_chunk_size" in its published configuration).
    """

    chunk: int

    def __post_init__(self) -> None:
        at_least(self.chunk, 1, self, "chunk")

    def sees(self, q: Index, k: Index, h: Index) -> Any:
        return (k <= q) & (q // self.chunk == k // self.chunk)

    def num_seen(self, q: Tensor, h: Tensor, doc: Any) -> Tensor:
        return q % self.chunk + 1

    def pieces(self, length: int, head: int) -> Sequence[int]:
        return range(0, length, self.chunk)


@dataclass(frozen=True)
class ShiftedGroups(Pattern):
    """Groups of tokens apart from each other, and for the second half of the heads the groups shifted by half of one:
    LongLoRA's shifted sparse attention (Chen et al. 2023, arXiv 2309.12307, section 3.2), in the variant that does not
    wrap around: the first shifted group is half a group long.

    Attributes:
        group: tokens in a group; even. LongLoRA trains with a quarter of the sequence.
        num_kv_heads: KV heads of the layer.
        shifted: how many of them, the last ones, see shifted groups; null for half of them, rounded down: of three
            heads the last.
    """

    group: int
    num_kv_heads: int
    shifted: int | None = None

    def __post_init__(self) -> None:
        at_least(self.group, 2, self, "group")
        at_least(self.num_kv_heads, 2, self, "num_kv_heads")
        if self.group % 2:
            raise ValueError(
                f"ShiftedGroups.group={self.group} is not allowed; it must be even "
                "(YAML: model.init_args.patterns.<name>.init_args.group)"
            )
        if self.shifted is not None:
            at_least(self.shifted, 1, self, "shifted")
            if self.shifted >= self.num_kv_heads:
                raise ValueError(
                    f"ShiftedGroups.shifted={self.shifted} is not allowed; it must be below num_kv_heads="
                    f"{self.num_kv_heads} (YAML: model.init_args.patterns.<name>.init_args.shifted)"
                )

    def sees(self, q: Index, k: Index, h: Index) -> Any:
        shift = self._shift(h)
        return (k <= q) & ((q + shift) // self.group == (k + shift) // self.group)

    def num_seen(self, q: Tensor, h: Tensor, doc: Any) -> Tensor:
        return torch.minimum(q + 1, (q + self._shift(h)) % self.group + 1)

    def pieces(self, length: int, head: int) -> Sequence[int]:
        return (0, *range(self.group - self._shift(head), length, self.group))

    @property
    def made_for(self) -> int:
        return self.num_kv_heads

    def _shift(self, h: Index) -> Any:
        """Half a group for the last heads, nothing for the others."""
        shifted = self.num_kv_heads // 2 if self.shifted is None else self.shifted
        return (h + shifted) // self.num_kv_heads * (self.group // 2)


@dataclass(frozen=True)
class PrefixLM(Pattern):
    """Every key up to the query, and all of the document's prefix, later keys included: the prefix language model
    (Raffel et al. 2019, arXiv 1910.10683, section 3.2.1). The documents say how long each prefix is: ``doc.prefix``.
    """

    def sees(self, q: Index, k: Index, h: Index, doc: Any) -> Any:  # type: ignore[override]
        return (k <= q) | (k < doc.prefix)

    def num_seen(self, q: Tensor, h: Tensor, doc: Any) -> Tensor:
        return torch.maximum(q + 1, torch.minimum(doc.prefix, doc.length))


@dataclass(frozen=True)
class GlobalTokens(Pattern):
    """The first ``count`` tokens of the document see all and are seen by all: the global tokens of Longformer (Beltagy
    et al. 2020, arXiv 2004.05150, section 3.1). Joined with a window it is that paper's pattern; ``& Causal()`` makes
    of it what a decoder can train with.
    """

    count: int

    def __post_init__(self) -> None:
        at_least(self.count, 0, self, "count")

    def sees(self, q: Index, k: Index, h: Index) -> Any:
        return (q < self.count) | (k < self.count)

    def num_seen(self, q: Tensor, h: Tensor, doc: Any) -> Tensor:
        return torch.where(q < self.count, doc.length, doc.length.clamp(max=self.count))
