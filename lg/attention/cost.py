"""What attention under a pattern costs, counted exactly: pairs seen and computed, their FLOPs, and the keys kept.

>>> from lg.attention import Causal, SinkWindow
>>> local, full = (AttentionCost(pattern, length=131072) for pattern in (SinkWindow(window=1984, sinks=64), Causal()))
>>> round(local.visible / full.visible, 4), round(local.executed / full.executed, 4), local.kept
(0.031, 0.0348, 2048)

Nothing of the size of the sequence's square is made, nor a list of tiles. A million tokens take milliseconds where the
pattern has a formula (`Pattern.num_seen`), and where it has none, mostly less than a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace

import torch
from torch import Tensor

from lg.attention.counting import count_pairs, count_tiles
from lg.attention.documents import Documents
from lg.attention.part import Part
from lg.attention.pattern import Pattern
from lg.attention.tiles import Tiles

# Numbers in a temporary tensor: they stay in a processor's cache.
_TOGETHER = 1 << 15


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of attention; a multiplication and an addition are two.

    Scores and output take ``2 * D`` each for a pair of query and key; so do, in the backward pass, the gradients of
    values, probabilities, queries and keys. FlashAttention computes the scores a second time there (Dao 2023, arXiv
    2307.08691: section 2.3.2, and section 4.1, where the backward pass counts 2.5 times the forward). Left out are
    softmax and scaling, which take a few operations a pair however wide the head.

    Attributes:
        forward: ``4 * D`` a pair.
        backward: ``8 * D`` a pair, what the gradients need.
        backward_executed: ``10 * D`` a pair, with the scores computed again.
    """

    forward: int
    backward: int
    backward_executed: int


def visible_pairs(tiles: Tiles) -> Tensor:
    """Pairs of query and key that are seen: int64 [heads], on the host; ``heads`` is 1 where all KV heads see alike.

    By `Pattern.num_seen` where the pattern has a formula, else by halving.
    """
    if isinstance(tiles, Part):
        return torch.stack([visible_pairs(piece) for piece in tiles.pieces]).sum(0)
    by_formula = _summed(tiles)
    return count_pairs(tiles) if by_formula is None else by_formula


def executed_pairs(tiles: Tiles, block_q: int = 128, block_k: int = 128) -> Tensor:
    """Pairs in the tiles that the table lists, full or partial, each tile counted whole: int64 [heads], on the host.

    Tiles are counted without being listed: the stripes of 32 heads touch 17 million at a million tokens.
    """
    if isinstance(tiles, Part):
        return torch.stack([executed_pairs(piece, block_q, block_k) for piece in tiles.pieces]).sum(0)
    return count_tiles(tiles, block_q, block_k) * (block_q * block_k)


def banded_pairs(tiles: Tiles, window: int | None = None, block: int = 128) -> Tensor:
    """Pairs that a kernel computes which is handed each document by itself, and of it the last ``window`` keys.

    Its tiles begin where the document's queries and keys begin; those that hold a pair of the band are computed whole.

    Args:
        tiles: a causal pattern on its documents.
        window: keys that a query sees, self included; ``None`` for all.
        block: tokens of a tile's side.

    Returns:
        int64 [1], on the host: of one head.
    """
    start, end = tiles.documents.bounds
    first, last = start.clamp(min=tiles.queries[0]) - start, end.clamp(max=tiles.queries[1]) - start
    num_rows = ((last - first + block - 1) // block).clamp(min=0)
    document = torch.repeat_interleave(num_rows)
    row = torch.arange(document.numel()) - (num_rows.cumsum(0) - num_rows)[document]
    query = first[document] + row * block
    after = torch.minimum(query + block, last[document])
    left = torch.zeros_like(query) if window is None else (query + 1 - window).clamp(min=0) // block
    return ((after + block - 1) // block - left).sum(0, keepdim=True) * block**2


def flops(pairs: Tensor, num_heads: int, head_width: int) -> Flops:
    """Work of one layer's attention.

    Args:
        pairs: of one query head in each KV head, [num_kv_heads], or [1] if all see alike.
        num_heads: query heads of the layer.
        head_width: features of a head, D.
    """
    work = 2 * head_width * _over(num_heads, pairs)
    return Flops(2 * work, 4 * work, 5 * work)


@dataclass(frozen=True)
class AttentionCost:
    """What the attention of one layer costs on one document. Each figure is counted when it is first asked for.

    Attributes:
        pattern: what the layer sees.
        length: tokens of the document.
        num_heads: query heads of the layer, a multiple of ``num_kv_heads``.
        num_kv_heads: KV heads of the layer.
        head_width: features of a head.
        attributes: the document's, where the predicate asks for some besides ``doc.length``.

    Raises:
        ValueError: if the length is below 1, the predicate asks for an attribute that is not given, or the pattern is
            made for another number of KV heads.
    """

    pattern: Pattern
    length: int
    num_heads: int = 1
    num_kv_heads: int = 1
    head_width: int = 128
    attributes: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        assert self.num_heads % self.num_kv_heads == 0
        _ = self.tiles

    @cached_property
    def tiles(self) -> Tiles:
        """The pattern on the document."""
        attributes = {name: (value,) for name, value in self.attributes.items()}
        return self.pattern.tiles(Documents(self.length, attributes=attributes), self.num_kv_heads)

    @cached_property
    def visible(self) -> int:
        """Pairs of query and key that are seen, over all query heads."""
        return _over(self.num_heads, self._visible)

    @cached_property
    def executed(self) -> int:
        """Pairs in the tiles of 128 x 128 that a kernel computes, over all query heads."""
        return _over(self.num_heads, executed_pairs(self.tiles))

    @cached_property
    def kept(self) -> int:
        """Tokens whose keys and values are held while the last token is computed, its own included, over all KV heads.

        Those that a later token may still see are held: the document may grow to twice its length.
        """
        kept = self.pattern.kept(self.length - 1, 2 * self.length, self.num_kv_heads, **self.attributes)
        return _over(self.num_kv_heads, kept.num_tokens() + 1)

    @property
    def flops(self) -> Flops:
        """Work on the pairs seen."""
        return flops(self._visible, self.num_heads, self.head_width)

    def kv_bytes(self, bytes_per_value: int = 2) -> int:
        """Memory of the keys and values kept; two bytes a value is bfloat16."""
        return 2 * self.head_width * bytes_per_value * self.kept

    @cached_property
    def _visible(self) -> Tensor:
        return visible_pairs(self.tiles)


def _over(heads: int, counts: Tensor) -> int:
    """A count over so many heads, of which each one in ``counts`` stands for equally many."""
    return int(counts.sum()) * (heads // counts.numel())


def _summed(tiles: Tiles) -> Tensor | None:
    """The pattern's formula, summed over the queries; None if it has none."""
    on, (first, end) = tiles.documents, tiles.queries
    head = torch.arange(tiles.heads)[:, None]
    attributes = {name: on.attribute(name) for name in ("length", *tiles.pattern.attributes)}
    total = torch.zeros(tiles.heads, dtype=torch.int64)
    step = max(_TOGETHER // tiles.heads, 1)
    for begin in range(first, end, step):
        chunk = slice(begin, min(begin + step, end))
        document = on.of_token[chunk].long()
        doc = SimpleNamespace(**{name: values[document] for name, values in attributes.items()})
        seen = tiles.pattern.num_seen(on.positions[chunk].long(), head, doc)
        if seen is None:
            return None
        total += seen.broadcast_to(tiles.heads, document.numel()).sum(1)
    return total
