"""Deals a sequence out to ranks, so that each holds as many tokens and computes as much attention as the others.

The sequence is cut into a few chunks a rank. A chunk costs what its queries compute, over all layers: what `Window`
and full attention find in the same documents differs. Dealing whole chunks keeps neighbours together, so that a window
fetches little.

>>> from lg.attention import Causal, Documents, SinkWindow
>>> layers = [SinkWindow(window=4096)] * 2 + [Causal()]
>>> documents = Documents(padded_length(131000, num_ranks=8))
>>> imbalance(split(documents, layers, num_kv_heads=8, num_ranks=8), documents, layers, num_kv_heads=8) < 1.05
True
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from lg.attention import Documents, Pattern
from lg.attention.part import GRID, Split
from lg.parallel.plan import whole_tiles

# How far the busiest rank may lie above the mean, if that brings chunks together that follow each other.
_LENIENCE = 1.04
# Costs are shares of the whole in so many parts: exact integers, whose squares and sums fit 64 bits.
_UNIT = 1 << 24


def padded_length(length: int, num_ranks: int) -> int:
    """The tokens that a sequence is filled up to, so that all ranks hold equally many, in blocks of `GRID`.

    >>> padded_length(1, 4), padded_length(131072, 8), padded_length(131073, 8)
    (512, 131072, 132096)
    """
    return -(-length // (GRID * num_ranks)) * GRID * num_ranks


def split(documents: Documents, layers: Sequence[Pattern], num_kv_heads: int, num_ranks: int, chunks: int = 4) -> Split:
    """The same on every rank that asks for it. Takes milliseconds.

    Args:
        documents: of the whole sequence, whose length is a `padded_length`.
        layers: what each layer sees.
        num_kv_heads: KV heads of a layer.
        num_ranks: how many share the sequence.
        chunks: how many each rank holds: fewer where the sequence is short, twice as many where they cannot be dealt
            evenly.
    """
    assert documents.length % (GRID * num_ranks) == 0, f"{documents.length} tokens were not padded"
    share = documents.length // (GRID * num_ranks)
    blocks = _block_costs(documents, layers, num_kv_heads)
    for count in (min(chunks, share), min(2 * chunks, share)):
        size = torch.tensor([share // count + (n < share % count) for n in range(count)]).repeat(num_ranks)
        edges = [0, *size.cumsum(0).tolist()]
        deal = _dealt(_shares(blocks, edges), size, num_ranks)
        if deal.is_even:
            break
    return Split(tuple(edge * GRID for edge in edges), tuple(deal.owner.tolist()))


def imbalance(shared: Split, documents: Documents, layers: Sequence[Pattern], num_kv_heads: int) -> float:
    """The attention of the busiest rank over the mean, in tiles of `GRID` tokens over all layers and heads: 1 is even.

    Arguments are those of `split`, and what it returned.
    """
    blocks = _block_costs(documents, layers, num_kv_heads)
    cost = _shares(blocks, [-(-edge // GRID) for edge in shared.edges])
    load = torch.zeros(shared.num_ranks, dtype=torch.int64).index_add_(0, torch.tensor(shared.owners), cost)
    return float(load.max() / load.sum() * shared.num_ranks)


def _shares(blocks: Tensor, edges: list[int]) -> Tensor:
    """Of each chunk, its part of the cost of all blocks."""
    ends = torch.cat((blocks.new_zeros(1), blocks.cumsum(0)))
    return (ends[edges].diff().double() * (_UNIT / int(ends[-1].clamp(min=1)))).long()


def _block_costs(documents: Documents, layers: Sequence[Pattern], num_kv_heads: int) -> Tensor:
    """Tiles that each block of queries meets, over all layers and heads: int64 [blocks]."""
    total = torch.zeros(-(-documents.length // GRID), dtype=torch.int64)
    for pattern, count in Counter(layers).items():
        table = whole_tiles(pattern, documents, num_kv_heads).table(GRID, GRID)
        total += table.num_listed.view(table.heads, -1).sum(0) * (count * num_kv_heads // table.heads)
    return total


class _Deal:
    """Chunks and who holds them; swaps of two chunks of one size leave all ranks equally many tokens.

    Attributes:
        cost, size: of each chunk: int64 [chunks].
        owner: the rank of each chunk.
        limit: the load of a rank that is even enough.
    """

    def __init__(self, cost: Tensor, size: Tensor, owner: Tensor, num_ranks: int) -> None:
        self.cost, self.owner, self.num_ranks = cost, owner, num_ranks
        self.alike = size[:, None] == size
        self.moved = cost[:, None] - cost
        self.limit = int(_LENIENCE * int(cost.sum()) / num_ranks)

    @property
    def loads(self) -> Tensor:
        """What each rank computes: int64 [ranks]."""
        return torch.zeros(self.num_ranks, dtype=torch.int64).index_add_(0, self.owner, self.cost)

    @property
    def is_even(self) -> bool:
        """Whether no rank has much more than the mean."""
        return int(self.loads.max()) <= self.limit

    @property
    def num_seams(self) -> int:
        """How many chunks follow one of another rank."""
        return int(self.owner.diff().count_nonzero())

    def even_out(self) -> None:
        """Swaps chunks while the loads are uneven and their sum of squares falls."""
        while not self.is_even:
            load = self.loads[self.owner]
            # Chunk i goes to the rank of j and j to that of i: half of what the squares change by.
            change = self.moved * (load - load[:, None] + self.moved)
            change.masked_fill_(~self.alike | (self.owner[:, None] == self.owner), 0)
            if not self._swap(int(change.argmin()), change):
                return

    def bring_together(self) -> None:
        """Swaps chunks while more of them follow one of their own rank, and no load becomes too large."""
        chunk = torch.arange(self.owner.numel())
        most = max(int(self.loads.max()), self.limit)
        while True:
            load = self.loads[self.owner]
            fits = torch.maximum(load[:, None] - self.moved, load + self.moved) <= most
            # How many neighbours of each chunk each rank holds, and thence what a swap of i and j brings.
            near = torch.zeros(self.owner.numel(), self.num_ranks, dtype=torch.int64)
            near[chunk[1:], self.owner[:-1]] += 1
            near[chunk[:-1], self.owner[1:]] += 1
            gain = near[:, self.owner] - near[chunk, self.owner][:, None]
            gain = 2 * ((chunk[:, None] - chunk).abs() == 1) - gain - gain.T
            gain.masked_fill_(~(fits & self.alike), 0)
            if not self._swap(int(gain.argmin()), gain):
                return

    def _swap(self, pair: int, change: Tensor) -> bool:
        """Swaps chunks i and j, pair number ``pair``, if their ``change`` is below 0."""
        if change.flatten()[pair] >= 0:
            return False
        i, j = divmod(pair, self.owner.numel())
        self.owner[[i, j]] = self.owner[[j, i]]
        return True


def _dealt(cost: Tensor, size: Tensor, num_ranks: int) -> _Deal:
    """The better of two: from neighbours on one rank, and from the most costly chunks on a rank each."""
    in_order = torch.arange(num_ranks).repeat_interleave(cost.numel() // num_ranks)
    deals = [_Deal(cost, size, owner, num_ranks) for owner in (in_order, _by_cost(cost, size, num_ranks))]
    for deal in deals:
        deal.even_out()
        deal.bring_together()
    return min(deals, key=lambda deal: (max(int(deal.loads.max()), deal.limit), deal.num_seams))


def _by_cost(cost: Tensor, size: Tensor, num_ranks: int) -> Tensor:
    """The owner of each chunk: the most costly first, each to who has least (Graham 1969: 4/3 of the best at most)."""
    left = [Counter(size[: cost.numel() // num_ranks].tolist()) for _ in range(num_ranks)]
    load, owner = [0] * num_ranks, [0] * cost.numel()
    for chunk in torch.sort(cost, descending=True, stable=True).indices.tolist():
        length = int(size[chunk])
        rank = min((n for n in range(num_ranks) if left[n][length]), key=lambda n: load[n])
        left[rank][length] -= 1
        load[rank] += int(cost[chunk])
        owner[chunk] = rank
    return torch.tensor(owner)
