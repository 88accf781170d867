"""What a verdict on an implementation holds for, and the small random problem that stands for it.

Shapes: B batch, H query heads, G KV heads, L tokens, Lq queries, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lg.attention.documents import Documents
from lg.attention.pattern import Pattern
from lg.attention.routed import Routed, RoutedTiles
from lg.attention.tiles import Tiles

# Odd, and more than a few tiles. A pattern that hides nothing from so many tokens, or everything, is tried on twice as
# many, and so on: its edges must be in the problem. Beyond the most, patterns are checked as far as they go.
_LENGTH, _MOST = 1_093, 10_000
_BATCH = 2
# Of packed documents: a single token, two that share a tile, and the rest.
_STARTS = (0, 1, 78, 200)
# What does to ask whether an implementation takes a case.
_SHORT = 300


class Facts(NamedTuple):
    """What matters besides the pattern.

    Attributes:
        heads_kv: KV heads of the problem: the layer's own where they matter to the pattern, else 2.
        groups: query heads for each KV head.
        width: of a head.
        dtype: of queries, keys and values.
        device: where they are.
        packed: whether there are several documents.
        chunk: whether only some of the tokens ask.
    """

    heads_kv: int
    groups: int
    width: int
    dtype: torch.dtype
    device: torch.device
    packed: bool
    chunk: bool

    @classmethod
    def of(cls, q: Tensor, k: Tensor, tiles: Tiles) -> Facts:
        """Those of queries [B, H, Lq, D] and keys [B, G, L, D] that `attend` is handed."""
        return cls(
            k.shape[1] if tiles.heads_differ or tiles.pattern.made_for else 2,
            q.shape[1] // k.shape[1],
            q.shape[3],
            q.dtype,
            q.device,
            tiles.packed,
            not tiles.all_queries,
        )


class Case(NamedTuple):
    """What a verdict holds for: a pattern, and the rest."""

    pattern: Pattern
    facts: Facts

    def __str__(self) -> str:
        on = self.facts
        documents = "packed documents" if on.packed else "one document"
        asks = ", a chunk of queries" if on.chunk else ""
        return f"{self.pattern}, head width {on.width}, {str(on.dtype).removeprefix('torch.')}, {documents}{asks}"


class Problem(NamedTuple):
    """A random input of some case: q and grad, of the output, [B, H, Lq, D]; k and v [B, G, L, D].

    Tiles that are chosen by content are chosen once, and stay when q and k are replaced.
    """

    tiles: Tiles
    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        return 1 / math.sqrt(self.q.shape[3])


def problem(case: Case) -> Problem:
    """The problem of a case, always the same. Two rows; heads lie beside each other in memory, as models lay them."""
    length = _LENGTH
    while length <= _MOST and not _has_edges(case, length):
        length = 2 * length + 1
    # A generator of its own: the caller's random state stays.
    generator = torch.Generator().manual_seed(0)
    return _problem(case, length if length <= _MOST else _LENGTH, lambda shape: torch.randn(shape, generator=generator))


def inquiry(case: Case) -> Problem:
    """A short problem of the same kind, to ask an implementation whether it takes that; its values are not set."""
    return _problem(case, _SHORT, torch.empty)


def _problem(case: Case, length: int, values: Callable[[tuple[int, ...]], Tensor]) -> Problem:
    on = case.facts
    starts = _STARTS if on.packed else (0,)
    documents = _documents(case.pattern, length, starts)
    tiles = case.pattern.tiles(documents, on.heads_kv, (length // 3, length - 5) if on.chunk else None)
    num_queries, heads = tiles.queries[1] - tiles.queries[0], on.heads_kv * on.groups
    shapes = [(num_queries, heads), *[(length, on.heads_kv)] * 2, (num_queries, heads)]
    q, k, v, grad = (values((_BATCH, *shape, on.width)).to(on.device, on.dtype).transpose(1, 2) for shape in shapes)
    return Problem(RoutedTiles(tiles, q, k) if isinstance(case.pattern, Routed) else tiles, q, k, v, grad)


def _has_edges(case: Case, length: int) -> bool:
    """Whether in a sequence of this length the last query sees something, but not all of its document."""
    own = length - _STARTS[-1] if case.facts.packed else length
    tiles = case.pattern.tiles(_documents(case.pattern, own, (0,)), case.facts.heads_kv, (own - 1, own))
    head = torch.arange(tiles.heads)[:, None, None]
    seen = tiles.seen(torch.tensor([[own - 1]]), torch.arange(own), head)
    return bool(seen.any()) and not bool(seen.all())


def _documents(pattern: Pattern, length: int, starts: tuple[int, ...]) -> Documents:
    own = [end - start for start, end in zip(starts, (*starts[1:], length), strict=True)]
    # Any integers do as attributes; these are within their document.
    return Documents(length, starts, {name: [n // 2 for n in own] for name in pattern.attributes if name != "length"})
