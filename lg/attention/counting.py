"""Counts what a pattern sees without listing it: pairs of tokens, or tiles of them, by halving rectangles.

A rectangle of which nothing is seen is dropped, one of which all is seen counts whole, any other is cut. Time grows
with the edges of what is seen; memory does not grow.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from lg.attention.drift import Drift, Steady
from lg.attention.reading import Span, Truth
from lg.attention.tiles import Tiles

# Rectangles looked at together, and numbers in a temporary tensor: they stay in a processor's cache, and are too few
# for torch to call up threads, which would cost more than they bring.
_TOGETHER = 1 << 15
# Squares of pairs that are asked one by one rather than cut further.
_LEAF = 16
# Keys from one to the next that is tried, to show that a column of tiles is listed from end to end.
_STEP = 16


def count_pairs(tiles: Tiles) -> Tensor:
    """Pairs of query and key that are seen: int64 [heads], on the host."""
    return _Pairs(tiles, 1, 1, _LEAF).count()


def count_tiles(tiles: Tiles, block_q: int, block_k: int) -> Tensor:
    """Tiles that the table of this tile size lists, full or partial: int64 [heads], on the host."""
    counting = _Tiles(tiles, block_q, block_k, 1)
    return counting.count() - counting.counted_twice()


class _Tokens(NamedTuple):
    """First and last query and key of rectangles, counted from the start of their document: int64 [n] each."""

    q: Tensor
    q_end: Tensor
    k: Tensor
    k_end: Tensor


class _Halving(ABC):
    """Rectangles of tiles, cut until they are decided.

    Nodes are owner, first row, first column, rows, columns: int64 [5, n], where an owner is one head in one document.

    Args:
        tiles: the pattern on its documents.
        block_q, block_k: tokens of a tile.
        leaf: tiles a side of the squares that are not cut.
    """

    def __init__(self, tiles: Tiles, block_q: int, block_k: int, leaf: int) -> None:
        self.tiles, self.block_q, self.block_k, self.leaf = tiles, block_q, block_k, leaf
        start, end = tiles.documents.bounds
        first_query, end_query = tiles.queries
        asks = ((start < end_query) & (end > first_query)).nonzero().squeeze(1)
        self.document = asks.repeat(tiles.heads)
        self.head = torch.arange(tiles.heads).repeat_interleave(asks.numel())
        start, end = start[self.document], end[self.document]
        # Of each owner, counted from the document's start: where row 0 and column 0 begin, and bounds of its tokens.
        self.q_shift, self.k_shift = first_query - start, -start
        self.q_first, self.q_last = self.q_shift.clamp(min=0), end.clamp(max=end_query) - 1 - start
        self.k_last = end - 1 - start
        # First and last tiles of each owner.
        self.i_first, self.i_last = (self.q_first - self.q_shift) // block_q, (self.q_last - self.q_shift) // block_q
        self.j_first, self.j_last = start // block_k, (end - 1) // block_k
        self.total = torch.zeros(tiles.heads, dtype=torch.int64)

    @abstractmethod
    def finished(self, nodes: Tensor) -> Tensor:
        """Counts the undecided nodes that need no cut; returns which they are: bool [n]."""

    def count(self) -> Tensor:
        """What is seen: int64 [heads]."""
        stack = [self._roots()]
        while stack:
            nodes = stack.pop()
            if nodes.shape[1] > _TOGETHER:
                stack.append(nodes[:, :-_TOGETHER])
                nodes = nodes[:, -_TOGETHER:]
            at = self.tokens(nodes)
            seen = self.read(nodes, at)
            alive = seen.can & (at.q <= at.q_end) & (at.k <= at.k_end)
            whole = alive & seen.must
            self.add(nodes[:, whole])
            nodes = nodes[:, alive & ~whole]
            nodes = nodes[:, ~self.finished(nodes)]
            if nodes.shape[1]:
                stack.append(self._cut(nodes))
        return self.total

    def tokens(self, nodes: Tensor) -> _Tokens:
        """Those of each node that its owner has; none where the end lies before the start."""
        owner, i, j, rows, columns = nodes
        q, k = i * self.block_q + self.q_shift[owner], j * self.block_k + self.k_shift[owner]
        q_end, k_end = q + rows * self.block_q - 1, k + columns * self.block_k - 1
        return _Tokens(
            torch.maximum(q, self.q_first[owner]),
            torch.minimum(q_end, self.q_last[owner]),
            k.clamp(min=0),
            torch.minimum(k_end, self.k_last[owner]),
        )

    def read(self, nodes: Tensor, at: _Tokens) -> Truth:
        """The tile reading in each node's head and document."""
        q, k = Span(at.q, at.q_end), Span(at.k, at.k_end)
        return self.tiles.read(q, k, self.head[nodes[0]], self.document[nodes[0]])

    def add(self, nodes: Tensor) -> None:
        """Counts every tile of each node that its owner has."""
        owner, i, j, rows, columns = nodes
        rows = torch.minimum(rows, self.i_last[owner] + 1 - i)
        columns = torch.minimum(columns, self.j_last[owner] + 1 - j)
        self.total.index_add_(0, self.head[owner], rows * columns)

    def _roots(self) -> Tensor:
        """The smallest rectangle around each owner's tiles whose sides can be halved down to a leaf."""
        sides = []
        for first, last in ((self.i_first, self.i_last), (self.j_first, self.j_last)):
            leaves = (last - first) // self.leaf
            sides.append(torch.tensor([self.leaf << n.bit_length() for n in leaves.tolist()]))
        return torch.stack((torch.arange(self.head.numel()), self.i_first, self.j_first, *sides))

    def _cut(self, nodes: Tensor) -> Tensor:
        """Each node in two or in four.

        Where a single key gets one answer from all queries, as beside a stripe, columns are told apart first; where a
        single query gets one from all keys, rows.
        """
        at = self.tokens(nodes)
        q, k = (at.q + at.q_end) // 2, (at.k + at.k_end) // 2
        told = [self.read(nodes, strip) for strip in (at._replace(k=k, k_end=k), at._replace(q=q, q_end=q))]
        by_key, by_query = (seen.must | ~seen.can for seen in told)
        tall, wide = nodes[3] > self.leaf, nodes[4] > self.leaf
        rows = tall & (by_query | ~by_key | ~wide)
        columns = wide & (by_key | ~by_query | ~tall)
        nodes, columns = _halved(nodes, 1, rows, columns)
        return _halved(nodes, 2, columns, columns)[0]


class _Pairs(_Halving):
    """Tiles are pairs of tokens."""

    def finished(self, nodes: Tensor) -> Tensor:
        steady = self._steady(nodes)
        self._add_diagonals(nodes[:, steady])
        leaf = (nodes[3] == self.leaf) & (nodes[4] == self.leaf) & ~steady
        for few in torch.split(nodes[:, leaf], _TOGETHER // self.leaf**2, 1):
            self._add_leaves(few)
        return steady | leaf

    def _steady(self, nodes: Tensor) -> Tensor:
        """Whether all pairs of a diagonal get the same answer."""
        at = self.tokens(nodes)
        q, k = Drift(Span(at.q, at.q_end), 1), Drift(Span(at.k, at.k_end), 1)
        head, document = self.head[nodes[0]], self.document[nodes[0]]
        values = vars(self.tiles.documents.doc(self.tiles.pattern.attributes, document))
        doc = SimpleNamespace(**{name: Drift(Span(x, x), 0) for name, x in values.items()})
        seen = self.tiles.pattern.read(q, k, Drift(Span(head, head), 0), doc)
        return seen.steady if isinstance(seen, Steady) else torch.ones_like(head, dtype=torch.bool)

    def _add_diagonals(self, nodes: Tensor) -> None:
        """Counts by one pair of each diagonal: those of the first query, then those of the first key."""
        at = self.tokens(nodes)
        rows, columns = at.q_end - at.q + 1, at.k_end - at.k + 1
        ends = (rows + columns - 1).cumsum(0)
        for begin in range(0, int(ends[-1]) if ends.numel() else 0, _TOGETHER):
            place = torch.arange(begin, min(begin + _TOGETHER, int(ends[-1])))
            own = torch.searchsorted(ends, place, right=True)
            r, c = rows[own], columns[own]
            nth = place - ends[own] + r + c - 1
            query = at.q[own] + (nth - c + 1).clamp(min=0)
            key = at.k[own] + (c - 1 - nth).clamp(min=0)
            pairs = torch.minimum(torch.minimum(nth + 1, r + c - 1 - nth), torch.minimum(r, c))
            owner = nodes[0, own]
            self.total.index_add_(0, self.head[owner], pairs * self._mask(query, key, owner))

    def _add_leaves(self, nodes: Tensor) -> None:
        """Counts pair by pair."""
        edge = torch.arange(self.leaf)
        at = _Tokens(*(x[:, None, None] for x in self.tokens(nodes)))
        query, key = at.q + edge[:, None], at.k + edge
        seen = self._mask(query, key, nodes[0, :, None, None]) & (query <= at.q_end) & (key <= at.k_end)
        self.total.index_add_(0, self.head[nodes[0]], seen.flatten(1).sum(1))

    def _mask(self, query: Tensor, key: Tensor, owner: Tensor) -> Tensor:
        doc = self.tiles.documents.doc(self.tiles.pattern.attributes, self.document[owner])
        return self.tiles.pattern.mask(query, key, self.head[owner], doc)


class _Tiles(_Halving):
    """Tiles are those of a table; of a partial one something is seen."""

    def finished(self, nodes: Tensor) -> Tensor:
        listed = nodes[3] * nodes[4] == 1
        column = ((nodes[4] == 1) & ~listed).nonzero().squeeze(1)
        at = self.tokens(nodes[:, column])
        # A key that all queries see puts every tile of its column on the list. A stripe too thin to be met by any key
        # that is tried is counted tile by tile.
        for step in range(0, self.block_k, _STEP):
            key = torch.minimum(at.k + step, at.k_end)
            listed[column] |= self.read(nodes[:, column], at._replace(k=key, k_end=key)).must
        self.add(nodes[:, listed])
        return listed

    def counted_twice(self) -> Tensor:
        """How many times too often tiles are counted: int64 [heads].

        Documents that meet inside a tile both list it; it is the last tile of the one and the first of the other.
        """
        owner = torch.arange(self.head.numel())
        one = torch.ones_like(owner)
        first = torch.stack((owner, self.i_first, self.j_first, one, one))
        last = torch.stack((owner, self.i_last, self.j_last, one, one))
        nodes = torch.cat((first, last[:, (first != last).any(0)]), 1)
        listed = torch.stack((self.head[nodes[0]], *nodes[1:3]))[:, self.read(nodes, self.tokens(nodes)).can]
        times, once = (x[0].bincount(minlength=self.tiles.heads) for x in (listed, torch.unique(listed, dim=1)))
        return times - once


def _halved(nodes: Tensor, place: int, cut: Tensor, flags: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes with those of ``cut`` halved between rows (place 1) or columns (place 2); their ``flags`` go with them."""
    whole, half = nodes[:, ~cut], nodes[:, cut]
    half[place + 2] //= 2
    other = half.clone()
    other[place] += half[place + 2]
    return torch.cat((whole, half, other), 1), torch.cat((flags[~cut], flags[cut], flags[cut]))
