"""The tile table: which blocks of queries see which blocks of keys, fully or in part, for packed documents.

Every backend, the accounting and the pictures read it. It is found by halving: a square of tiles that the pattern's
tile reading calls empty is dropped, one that it calls full is kept whole, any other is cut in four. So time and memory
grow with the edges of what is seen, never with the square of the sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor

from lg.attention.documents import Documents
from lg.attention.pattern import Pattern
from lg.attention.reading import Span

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class TileTable:
    """Full tiles as runs and partial tiles as a list, row by row; rows are blocks of queries, columns of keys.

    Row ``r = head * num_rows + block`` owns entries ``pointer[r]`` to ``pointer[r + 1]``, in ascending columns;
    adjacent full tiles are one run. In the transpose, rows are blocks of keys. All tensors are int64 on the host.

    Attributes:
        block_q, block_k: tokens in a block of a row and of a column.
        heads: 1 if all KV heads see alike, else their number.
        num_rows, num_columns: blocks that cover the sequence; the last may be ragged, and is then never full.
        run_pointer, run_first, run_count: full tiles: [heads * num_rows + 1], [runs], [runs].
        partial_pointer, partial_index: tiles that need the predicate: [heads * num_rows + 1], [num_partial].
    """

    block_q: int
    block_k: int
    heads: int
    num_rows: int
    num_columns: int
    run_pointer: Tensor
    run_first: Tensor
    run_count: Tensor
    partial_pointer: Tensor
    partial_index: Tensor

    @property
    def num_full(self) -> int:
        """Full tiles, over all rows and heads."""
        return int(self.run_count.sum())

    @property
    def num_partial(self) -> int:
        """Partial tiles, over all rows and heads."""
        return self.partial_index.numel()

    def full_lists(self) -> tuple[Tensor, Tensor]:
        """Full tiles one by one, for libraries without runs: pointer [heads * num_rows + 1] and index [num_full]."""
        ends = self.run_count.cumsum(0)
        index = torch.arange(self.num_full) + torch.repeat_interleave(
            self.run_first - ends + self.run_count, self.run_count
        )
        return torch.cat((ends.new_zeros(1), ends))[self.run_pointer], index


class Tiles:
    """A pattern on a layout of documents: what `attend` is handed. Tables are built once, on first use.

    Args:
        pattern: what may be seen.
        documents: where documents lie in the sequence.
        num_kv_heads: KV heads of the layer; matters only to a pattern whose heads differ.
    """

    def __init__(self, pattern: Pattern, documents: Documents, num_kv_heads: int = 1) -> None:
        self.pattern = pattern
        self.documents = documents
        self.heads = num_kv_heads if pattern.heads_differ else 1
        self._kept: dict[object, object] = {}

    def kept(self, key: object, build: Callable[[], _T]) -> _T:
        """What ``build`` returns, built once for this pattern and layout and shared by all layers that use them."""
        if key not in self._kept:
            self._kept[key] = build()
        return cast(_T, self._kept[key])

    def table(self, block_q: int = 128, block_k: int = 128) -> TileTable:
        """Rows of query blocks, at this tile size."""
        return self.kept(("table", block_q, block_k), lambda: self._squares(block_q, block_k).table(transpose=False))

    def transposed(self, block_q: int = 128, block_k: int = 128) -> TileTable:
        """Rows of key blocks (whose ``block_q`` is this ``block_k``), for the gradients of keys and values."""
        return self.kept(
            ("transposed", block_q, block_k), lambda: self._squares(block_q, block_k).table(transpose=True)
        )

    def _squares(self, block_q: int, block_k: int) -> _Squares:
        return self.kept(
            ("squares", block_q, block_k),
            lambda: _squares(self.pattern, self.documents, self.heads, block_q, block_k),
        )


@dataclass(frozen=True, eq=False)
class _Squares:
    """What the halving found: full squares of tiles by their size, and single partial tiles.

    Rows are (root, i, j), and a root is ``head * documents + document``.
    """

    documents: Documents
    heads: int
    blocks: tuple[int, int]
    full: list[tuple[int, Tensor]]
    partial: Tensor

    def table(self, transpose: bool) -> TileTable:
        block_q, block_k = self.blocks[::-1] if transpose else self.blocks
        num_rows, num_columns = (-(-self.documents.length // b) for b in (block_q, block_k))

        def place(root: Tensor, i: Tensor, j: Tensor) -> Tensor:
            row, column = (j, i) if transpose else (i, j)
            if self.heads > 1:
                row = row + root // len(self.documents.starts) * num_rows
            return row * num_columns + column

        # Each full square gives one segment to each of its rows, known by the place of its first tile.
        places, counts = [], []
        for size, square in self.full:
            first = place(*square)
            places.append((first[:, None] + torch.arange(size) * num_columns).flatten())
            counts.append(torch.full_like(places[-1], size))
        place_of, order = torch.sort(torch.cat(places))
        count = torch.cat(counts)[order]
        # Segments that touch within a row are one run.
        begins = torch.ones_like(place_of, dtype=torch.bool)
        begins[1:] = (place_of[1:] != place_of[:-1] + count[:-1]) | (place_of[1:] % num_columns == 0)
        run_place = place_of[begins]
        ends = torch.cat((count.new_zeros(1), count.cumsum(0)))
        run_start = torch.cat((begins.nonzero().flatten(), torch.tensor([count.numel()])))
        # Two documents that meet inside a tile both list it.
        partial = torch.unique_consecutive(torch.sort(place(*self.partial)).values)
        rows = torch.arange(self.heads * num_rows + 1) * num_columns
        return TileTable(
            block_q,
            block_k,
            self.heads,
            num_rows,
            num_columns,
            torch.searchsorted(run_place, rows),
            run_place % num_columns,
            ends[run_start].diff(),
            torch.searchsorted(partial, rows),
            partial % num_columns,
        )


def _squares(pattern: Pattern, documents: Documents, heads: int, block_q: int, block_k: int) -> _Squares:
    # One root for each head and document: the smallest power-of-two square of tiles that covers the document.
    start, end = documents.bounds.repeat(1, heads)
    head = torch.arange(heads).repeat_interleave(len(documents.starts))
    cap = end - 1 - start
    first_i, first_j = start // block_q, start // block_k
    tiles = torch.maximum((end - 1) // block_q - first_i, (end - 1) // block_k - first_j) + 1
    level = torch.tensor([(n - 1).bit_length() for n in tiles.tolist()])
    roots = torch.stack((torch.arange(start.numel()), first_i, first_j))

    full: list[tuple[int, Tensor]] = []
    nodes, depth = roots[:, :0], int(level.max())
    while depth >= 0:
        # Few nodes are cut in sixteen: the cost of a level is then that of its calls, not of its work.
        below = depth - (2 if depth > 1 and nodes.shape[1] < 1024 else 1)
        size = 1 << depth
        nodes = torch.cat((nodes, roots[:, (level <= depth) & (level > below)]), 1)
        root, i, j = nodes
        # What belongs to a single root broadcasts.
        first, last, h = (x if x.numel() == 1 else x.index_select(0, root) for x in (start, cap, head))
        q_lo, k_lo = i * block_q - first, j * block_k - first
        q_hi, k_hi = q_lo + (size * block_q - 1), k_lo + (size * block_k - 1)
        seen = pattern.tile(
            Span(q_lo.clamp(min=0), torch.minimum(q_hi, last)),
            Span(k_lo.clamp(min=0), torch.minimum(k_hi, last)),
            Span(h, h),
        )
        alive = seen.can & (torch.maximum(q_lo, k_lo) <= last)
        inside = (torch.minimum(q_lo, k_lo) >= 0) & (torch.maximum(q_hi, k_hi) <= last)
        whole = alive & seen.must & inside
        full.append((size, _kept(nodes, whole)))
        nodes = _kept(nodes, alive & ~whole)
        if depth:
            nodes = _cut(nodes, size, 1 << (depth - below))
        depth = below
    return _Squares(documents, heads, (block_q, block_k), full, nodes)


def later_key_seen(pattern: Pattern, length: int, heads: int = 1) -> bool:
    """Whether some query of a document of ``length`` tokens sees a key behind it.

    The half above the diagonal is made of squares of tokens; each is cut in four until the tile reading rules it out.
    """
    size = 1 << max(length - 1, 1).bit_length()
    nodes = torch.empty(3, 0, dtype=torch.int64)
    while size > 1:
        size //= 2
        corner = torch.arange(0, length, 2 * size).repeat(heads)
        head = torch.arange(heads).repeat_interleave(corner.numel() // heads)
        nodes = torch.cat((nodes, torch.stack((head, corner, corner + size))), 1)
        nodes = _kept(nodes, (nodes[1:] < length).all(0))
        head, q, k = nodes
        last = length - 1
        seen = pattern.tile(
            Span(q, (q + size - 1).clamp(max=last)), Span(k, (k + size - 1).clamp(max=last)), Span(head, head)
        )
        if bool(seen.must.any()) or (size == 1 and bool(seen.can.any())):
            return True
        nodes = _cut(_kept(nodes, seen.can), size, 2) if size > 1 else nodes
    return False


def _kept(nodes: Tensor, keep: Tensor) -> Tensor:
    """The columns of ``nodes`` where ``keep`` is True; much faster than an index of bools."""
    return nodes.index_select(1, keep.nonzero().squeeze(1))


def _cut(nodes: Tensor, size: int, parts: int) -> Tensor:
    """Each square in ``parts`` x ``parts``: ``nodes`` are owner, first row and first column of each."""
    edge = torch.arange(0, size, size // parts)
    owner, i, j = nodes[:, :, None, None]
    cut = nodes.new_empty(3, nodes.shape[1], parts, parts)
    cut[0] = owner
    cut[1] = i + edge[:, None]
    cut[2] = j + edge
    return cut.flatten(1)
