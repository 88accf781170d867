"""Patterns chosen by content: which blocks of keys a block of queries sees is decided on the device, at run time.

The predicate says what is admissible, as `Causal`'s does; `Routed.route` says which tiles of that are seen. A routed
pattern is a few lines, and no kernel:

    @dataclass(frozen=True)
    class Strongest(Routed):
        budget: int
        block_q: int = 64
        block_k: int = 64

        def sees(self, q, k, h):
            return k <= q

        def route(self, q, k, tiles):
            ...  # the numbers of `budget` blocks of keys for each block of queries

Shapes: B batch, H query heads, G KV heads, L tokens, Lq queries, D head width, R blocks of queries, C blocks of keys,
M tiles that a block of queries may see.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from lg.attention.pattern import Pattern
from lg.attention.tiles import Tiles, TileTable


class Routed(Pattern):
    """A pattern whose tiles are chosen by content, within what `sees` admits.

    A subclass has two more fields or properties, ``block_q`` and ``block_k``: tokens in a block of queries and of keys,
    powers of two from 16 to 128.
    """

    @abstractmethod
    def route(self, q: Tensor, k: Tensor, tiles: Tiles) -> Tensor:
        """The blocks of keys that each block of queries sees, on the device; nothing is differentiated through it.

        Args:
            q: queries [B, H, Lq, D].
            k: keys [B, G, L, D].
            tiles: the documents, and which tokens ask.

        Returns:
            Numbers of blocks, integers [B, G, R, M], in any order; one that does not exist, such as -1, is none, and
            one that is named twice is seen once. What is in them and not admissible stays unseen.
        """


class RoutedTiles(Tiles):
    """The tiles of a routed pattern, chosen: made by `attend` from what it is handed.

    Attributes:
        index: [B, G, R, M] int32: blocks of keys in ascending order, then C where there are no more.
        count: [B, G, R] int32: how many there are.

    Raises:
        ValueError: if the pattern's blocks, or what it chose, cannot be.
    """

    def __init__(self, tiles: Tiles, q: Tensor, k: Tensor) -> None:
        pattern = tiles.pattern
        assert isinstance(pattern, Routed)
        super().__init__(pattern, tiles.documents, k.shape[1], tiles.queries)
        self.block_q, self.block_k = (_block(pattern, name) for name in ("block_q", "block_k"))
        self.heads = k.shape[1]
        self.num_rows = -(-q.shape[2] // self.block_q)
        self.num_columns = -(-k.shape[2] // self.block_k)
        with torch.no_grad():
            index = pattern.route(q.detach(), k.detach(), tiles)
        expected = (q.shape[0], self.heads, self.num_rows)
        if index.shape[:-1] != expected or index.is_floating_point() or index.dtype == torch.bool:
            raise ValueError(
                f"{pattern}.route gave {str(index.dtype).removeprefix('torch.')} {tuple(index.shape)}; it must be "
                f"integers {[*expected, 'any number']}: rows of the batch, KV heads, blocks of {self.block_q} queries, "
                "and blocks of keys seen"
            )
        none = self.num_columns
        index = torch.where((index >= 0) & (index < none), index, none).sort(-1).values
        again = torch.zeros_like(index, dtype=torch.bool)
        again[..., 1:] = index[..., 1:] == index[..., :-1]
        self.index = index.masked_fill(again, none).sort(-1).values.int()
        self.count = (self.index < none).sum(-1, dtype=torch.int32)

    def mask(self, device: torch.device) -> Tensor:
        """Which key each query sees: bool [B, G, Lq, L]."""
        shape = (*self.count.shape, self.num_columns + 1)
        chosen = torch.zeros(shape, dtype=torch.bool, device=device).scatter_(3, self.index.long(), True)
        (first, end), length = self.queries, self.documents.length
        of_query = torch.arange(end - first, device=device) // self.block_q
        of_key = torch.arange(length, device=device) // self.block_k
        return super().mask(device) & chosen[:, :, of_query][..., of_key]

    def _squares(self, block_q: int, block_k: int) -> TileTable:  # type: ignore[override]
        raise ValueError(f"{self.pattern} is chosen by content: its tiles are on the device, not in a table")


def _block(pattern: Pattern, name: str) -> int:
    size = getattr(pattern, name, None)
    if not isinstance(size, int) or not 16 <= size <= 128 or size & (size - 1):
        raise ValueError(
            f"{type(pattern).__name__}.{name}={size!r} is not allowed; it must be a power of two from 16 to 128 "
            f"(YAML: model.init_args.patterns.<name>.init_args.{name})"
        )
    return size
