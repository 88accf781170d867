"""What each rank fetches of a sequence that several share: for one pattern on one batch, read off its tile table.

A block of `GRID` keys is fetched by a rank whose queries meet a tile of it, and by no other: a window fetches a halo,
sinks the first block of each document, full attention what lies before in the documents at hand.

>>> from lg.attention import Documents, SinkWindow
>>> from lg.attention.part import Held, Split
>>> split = Split((0, 1024, 2048, 3072, 4096), (0, 1, 2, 3))
>>> plan = Plan(SinkWindow(window=256, sinks=4).tiles(Documents(4096)), Held(split, rank=3))
>>> plan.keys, plan.tokens.tolist()
(((0, 128), (2816, 4096)), [[0, 0, 0, 0], [384, 0, 0, 0], [128, 256, 0, 0], [128, 0, 256, 0]])
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lg.attention import Documents, Pattern, Tiles, TileTable
from lg.attention.part import GRID, Held, Part, merged


class Places(NamedTuple):
    """Where tokens lie on their way: int64 each, on the device that exchanges.

    A rank's own n tokens and the r that it receives lie in one buffer of n + r rows: own ones first, then those of
    each other rank, by rank; each group ascending.

    Attributes:
        sent: rows of own tokens that others receive, by rank: [m]. A token may be sent to many.
        ascending: the row of each token of the plan's keys: [n + r].
        back: for each row, the place of its token among the keys: [n + r].
    """

    sent: Tensor
    ascending: Tensor
    back: Tensor


class Plan:
    """Who fetches which blocks of keys, the same on all ranks; and what that means for one of them.

    Heads of a pattern whose heads differ fetch what any of them sees.

    Args:
        tiles: the pattern on the sequence, or a part of it.
        held: the sequence's split, and this rank.

    Attributes:
        tokens: how many tokens rank i receives from rank j: int64 [ranks, ranks], on the host.
        keys: ranges of the tokens that this rank holds or fetches, ascending.
    """

    def __init__(self, tiles: Tiles, held: Held) -> None:
        split, self.rank = held.split, held.rank
        assert tiles.documents.length == split.length
        self.held = held
        self._whole = whole_tiles(tiles.pattern, tiles.documents, tiles.num_kv_heads)
        count = torch.tensor([-(-(end - first) // GRID) for first, end in pairwise(split.edges)])
        self._owner = torch.tensor(split.owners).repeat_interleave(count)
        self._size = torch.full_like(self._owner, GRID)
        self._size[-1] -= self._owner.numel() * GRID - split.length
        needed = _needed(self._whole.table(GRID, GRID), self._owner, split.num_ranks)
        self._fetched = needed & (self._owner != torch.arange(split.num_ranks)[:, None])
        self.tokens = torch.zeros(split.num_ranks, split.num_ranks, dtype=torch.int64)
        self.tokens.index_add_(1, self._owner, self._fetched * self._size)
        here = (self._owner == self.rank) | self._fetched[self.rank]
        blocks = [(n * GRID, min((n + 1) * GRID, split.length)) for n in here.nonzero().flatten().tolist()]
        self.keys = merged(blocks)
        self._places: dict[torch.device, Places] = {}

    @cached_property
    def part(self) -> Part:
        """The tiles of this rank's queries on the keys."""
        return Part(self._whole, self.held.ranges, self.keys, self.held)

    @cached_property
    def num_held(self) -> int:
        """Tokens that this rank holds: n."""
        return int(self._size[self._owner == self.rank].sum())

    @cached_property
    def received(self) -> list[int]:
        """Tokens that this rank receives from each."""
        counts: list[int] = self.tokens[self.rank].tolist()
        return counts

    @cached_property
    def sent(self) -> list[int]:
        """Tokens that this rank sends to each."""
        counts: list[int] = self.tokens[:, self.rank].tolist()
        return counts

    @cached_property
    def is_much(self) -> bool:
        """Whether some rank fetches at least half as many tokens as it holds; the same on all ranks."""
        held = torch.zeros(self.held.split.num_ranks, dtype=torch.int64).index_add_(0, self._owner, self._size)
        return bool((2 * self.tokens.sum(1) >= held).any())

    @property
    def by_heads(self) -> bool:
        """Whether KV heads may travel one group after the other: much travels, and all heads see alike."""
        return self._whole.heads == 1 and self.is_much

    def places(self, device: torch.device) -> Places:
        """How the tokens that are sent and received are laid."""
        if device not in self._places:
            self._places[device] = self._laid(device)
        return self._places[device]

    def _laid(self, device: torch.device) -> Places:
        own = (self._owner == self.rank).nonzero().flatten()
        # Others' blocks by rank, then as in the sequence: a stable sort keeps their order.
        others = self._fetched[self.rank].nonzero().flatten()
        blocks = torch.cat((own, others[self._owner[others].sort(stable=True).indices]))
        begin = self._size[blocks].cumsum(0) - self._size[blocks]
        order = blocks.argsort()
        ascending = _rows(begin[order], self._size[blocks[order]])
        back = torch.empty_like(ascending)
        back[ascending] = torch.arange(ascending.numel())
        # For each rank in turn, its blocks among those that are held here.
        nth = self._fetched[:, own].nonzero()[:, 1]
        sent = _rows(begin[nth], self._size[own[nth]])
        together = torch.empty(sent.numel() + 2 * back.numel(), dtype=torch.int64, pin_memory=device.type == "cuda")
        torch.cat((sent, ascending, back), out=together)
        sizes = [sent.numel(), back.numel(), back.numel()]
        return Places(*torch.split(together.to(device, non_blocking=True), sizes))


@lru_cache(maxsize=8)
def whole_tiles(pattern: Pattern, documents: Documents, num_kv_heads: int) -> Tiles:
    """The tiles of a whole sequence, from which it is dealt out and then fetched; kept, as batches may be alike."""
    return Tiles(pattern, documents, num_kv_heads)


def plan_of(part: Part) -> Plan:
    """The plan of a part that knows who holds what: made once for a pattern and a batch, for all of its layers."""
    assert part.held is not None
    held = part.held
    return part.kept("exchange", lambda: Plan(part, held))


def _needed(table: TileTable, owner: Tensor, num_ranks: int) -> Tensor:
    """Which blocks of keys each rank's blocks of queries have tiles with, in any head: bool [ranks, blocks]."""
    row = torch.arange(table.heads * table.num_rows)
    rank = owner[row % table.num_rows]
    # A run opens at its first block and closes behind its last one.
    edges = torch.zeros(num_ranks, table.num_columns + 1, dtype=torch.int64)
    of_run, one = rank.repeat_interleave(table.run_pointer.diff()), torch.ones_like(table.run_first)
    edges.index_put_((of_run, table.run_first), one, accumulate=True)
    edges.index_put_((of_run, table.run_first + table.run_count), -one, accumulate=True)
    needed = edges.cumsum(1)[:, :-1] > 0
    needed[rank.repeat_interleave(table.partial_pointer.diff()), table.partial_index] = True
    return needed


def _rows(begin: Tensor, size: Tensor) -> Tensor:
    """The rows of blocks that begin there, one after the other."""
    at = torch.arange(int(size.sum()))
    return at + (begin - size.cumsum(0) + size).repeat_interleave(size)
