"""Where keys come from and go to when a sequence reads many tokens at once: planned once, for all layers of a kind.

>>> from lg.attention import Documents, SinkWindow
>>> from lg.inference.cache import Cache
>>> cache = Cache([SinkWindow(window=100, sinks=4)], num_heads=1, head_width=16, max_length=1000)
>>> slot = cache.open(length=1000)
>>> cache.end(cache.begin([(slot, 640)]))
>>> (piece,) = cache.begin([(slot, 300)])
>>> laid = Laid(cache.kinds[0].pattern, cache.kinds[0].groups, piece, cache.documents(slot, 940), torch.device("cpu"))
>>> laid.part.key_ranges, laid.pages.tolist(), laid.places.tolist(), laid.own
(((0, 128), (512, 940)), [[0, 1, 2]], [[0, 128, 192]], ((256, 0, 300),))

Shapes: G KV heads, F groups of them that see alike, M pages of a group, D head width, n keys that are laid end to end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lg.attention import Documents, Pattern, Tiles
from lg.attention.part import GRID, Part, merged
from lg.attention.tiles import Ranges, TileTable
from lg.inference.lifetime import PAGE
from lg.inference.pages import Group
from lg.inference.state import Piece, moved


def asked(table: TileTable, length: int) -> Ranges:
    """The keys that some query of a table may see, in whole blocks of a sequence of ``length`` tokens."""
    change = torch.zeros(table.num_columns + 1, dtype=torch.int64)
    for first, end in (
        (table.run_first, table.run_first + table.run_count),
        (table.partial_index, table.partial_index + 1),
    ):
        change.index_add_(0, first, torch.ones_like(first))
        change.index_add_(0, end, -torch.ones_like(end))
    blocks = change.cumsum(0).nonzero().squeeze(1).tolist()
    return merged([(block * table.block_k, min((block + 1) * table.block_k, length)) for block in blocks])


class Laid:
    """The keys that new tokens of a sequence may see, in whatever head, laid end to end.

    Args:
        pattern: what they see.
        groups: of KV heads that see alike, all of them.
        piece: the new tokens, whose pages are taken.
        documents: the sequence with them, as one document.
        device: where kernels read what is said of pages.

    Attributes:
        before: how many queries stand empty before the first, which begin on the grid.
        part: the tiles of these queries against the keys; None if nobody sees any.
        num_keys: how many keys are laid.
        pages, places: where each page that is read lies, and the place that its first token is laid in, negative where
            a group has fewer pages than others: int32 [F, M].
        own: stretches of new tokens: the place of the first, its number among them, and how many.
        has_gaps: whether some head's keys are no longer kept; nobody sees them but empty queries and other heads.
    """

    def __init__(
        self, pattern: Pattern, groups: Sequence[Group], piece: Piece, documents: Documents, device: torch.device
    ) -> None:
        num_heads, queries = sum(len(group.heads) for group in groups), (piece.first // GRID * GRID, piece.end)
        self.before = piece.first - queries[0]
        ranges = asked(Tiles(pattern, documents, num_heads, queries).table(GRID, GRID), piece.end)
        self.part = Part(pattern.tiles(documents, num_heads), (queries,), ranges) if ranges else None
        edges = np.array(ranges, dtype=np.int64).reshape(-1, 2)
        sizes = edges[:, 1] - edges[:, 0]
        self.num_keys = int(sizes.sum())
        # From a token of each range to its place.
        shift = np.cumsum(sizes) - sizes - edges[:, 0]
        own = [(max(first, piece.first), last) for first, last in ranges]
        self.own = tuple(
            (first + int(moved), first - piece.first, last - first)
            for (first, last), moved in zip(own, shift, strict=True)
            if last > first
        )
        num_own = sum(count for _, _, count in self.own)
        found, self.has_gaps = [], False
        for group in groups:
            table = group.tables[piece.slot]
            tokens = table.logical * PAGE
            at = np.searchsorted(edges[:, 0], tokens, side="right") - 1
            # A page that is begun has new tokens too, which are laid over it.
            read = (at >= 0) & (tokens < piece.first)
            read[read] &= tokens[read] < edges[at[read], 1]
            physical, tokens, at = table.physical[read], tokens[read], at[read]
            found.append(np.stack((physical, tokens + shift[at])))
            old = np.minimum(np.minimum(tokens + PAGE, piece.first), edges[at, 1]) - tokens
            self.has_gaps |= int(old.sum()) + num_own < self.num_keys
        both = np.full((2, len(groups), max(one.shape[1] for one in found)), -1, np.int32)
        for number, one in enumerate(found):
            both[:, number, : one.shape[1]] = one
        self.pages, self.places = moved(torch.from_numpy(both), device)

    def of(self, new: Tensor, read: Callable[[Tensor, Tensor, Tensor], None]) -> Tensor:
        """The keys, or values: [G, n, D].

        Args:
            new: of the new tokens: [G, count, D].
            read: lays ``pages``, by ``places``, in what it is given third.
        """
        if self.own == ((0, 0, new.shape[1]),) and self.num_keys == new.shape[1]:
            return new
        out = (new.new_zeros if self.has_gaps else new.new_empty)(len(new), self.num_keys, new.shape[2])
        if self.pages.numel():
            read(self.pages, self.places, out)
        for place, first, count in self.own:
            out[:, place : place + count] = new[:, first : first + count]
        return out


class Kept:
    """Which new tokens of a sequence are kept, and where.

    Args:
        groups: of KV heads.
        piece: the new tokens, whose pages are taken.
        device: where kernels read it.

    Attributes:
        first: how many new tokens come before the first that some head keeps.
        pages: of those from it on, the page in each group; negative where it is not kept: int32 [count - first, F].
        tokens: their places in the sequence: int32 [count - first].
    """

    def __init__(self, groups: Sequence[Group], piece: Piece, device: torch.device) -> None:
        tokens = np.arange(piece.first, piece.end)
        pages = np.full((piece.count, len(groups)), -1)
        for number, group in enumerate(groups):
            table = group.tables[piece.slot]
            if len(table.logical):
                at = np.searchsorted(table.logical, tokens // PAGE).clip(max=len(table.logical) - 1)
                pages[:, number] = np.where(table.logical[at] == tokens // PAGE, table.physical[at], -1)
        kept = (pages >= 0).any(1)
        self.first = int(kept.argmax()) if kept.any() else piece.count
        self.pages, self.tokens = (moved(torch.from_numpy(x[self.first :]).int(), device) for x in (pages, tokens))
