"""What is timed: a pattern on some documents, at one shape of a layer's attention.

Shapes: B batch, H query heads, G KV heads, L tokens, Lq queries, D head width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lg.attention.documents import Documents
from lg.attention.pattern import Pattern
from lg.attention.patterns import Causal, SinkWindow, Strided, Window
from lg.attention.tiles import Tiles

PATTERNS: Mapping[str, Pattern] = {
    "causal": Causal(),
    "window_4k": Window(4096),
    "sink_window_2k": SinkWindow(window=1984, sinks=64),
    "strided_2k": Strided(block=64, local_blocks=16, stride=128, head_step=4),
}
"""Patterns with names of their own, each of which stands for a kind: what `auto` picks by is measured on them."""


@dataclass(frozen=True)
class Case:
    """One problem.

    Attributes:
        name: what its rows are called.
        pattern: what is seen.
        documents: the row of the batch, of which there is one.
        device: where queries, keys and values are.
        num_heads: query heads, a multiple of ``num_kv_heads``.
        num_kv_heads: KV heads.
        width: features of a head.
        dtype: of queries, keys and values.
        queries: first query and end (exclusive), where only a chunk of the tokens asks.
    """

    name: str
    pattern: Pattern
    documents: Documents
    device: torch.device
    num_heads: int = 32
    num_kv_heads: int = 8
    width: int = 128
    dtype: torch.dtype = torch.bfloat16
    queries: tuple[int, int] | None = None

    def tiles(self) -> Tiles:
        """The pattern on the documents, with no table built yet.

        Raises:
            ValueError: if the pattern does not fit the documents or the KV heads.
        """
        return self.pattern.tiles(self.documents, self.num_kv_heads, self.queries)

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Normal random q, k and v that want gradients, the same at each call; in memory [B, L, H, D], as models make
        them.
        """
        first, end = self.queries or (0, self.documents.length)
        generator = torch.Generator(self.device).manual_seed(0)
        q, k, v = (
            torch.randn(1, tokens, heads, self.width, generator=generator, device=self.device, dtype=self.dtype)
            .transpose(1, 2)
            .requires_grad_()
            for tokens, heads in ((end - first, self.num_heads), *[(self.documents.length, self.num_kv_heads)] * 2)
        )
        return q, k, v


def mixed(length: int, count: int, attributes: Collection[str] = ()) -> Documents:
    """So many documents of mixed lengths, the longest about ``count`` times the shortest; always the same.

    Args:
        length: tokens of all together, at least ``count``.
        count: documents.
        attributes: what a pattern asks of them; all but their length is made a third of it.
    """
    assert count <= length
    shares = 1 + torch.randperm(count, generator=torch.Generator().manual_seed(0)).double()
    # Each gets one token, and its share of the others; what is left over by rounding goes to the last.
    own = 1 + (shares / shares.sum() * (length - count)).long()
    starts = own.cumsum(0) - own
    own[-1] = length - starts[-1]
    return Documents(
        length,
        starts.tolist(),
        {name: (own // 3).tolist() for name in attributes if name != "length"},
    )
