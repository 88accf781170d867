"""The shard reading: which chunks of a sequence need which others, for any layout of chunks and documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lg.attention.reading import Span, Truth
from lg.attention.search import some_seen

if TYPE_CHECKING:
    from lg.attention.tiles import Tiles


def needs(tiles: Tiles, query_chunks: Sequence[tuple[int, int]], key_chunks: Sequence[tuple[int, int]]) -> Tensor:
    """Whether any query of each chunk sees any key of each other: bool [heads, query chunks, key chunks].

    Raises:
        ValueError: if a chunk is empty or does not lie within the sequence.
    """
    start, end = tiles.documents.bounds
    sides = []
    for chunks in (query_chunks, key_chunks):
        for first, after in chunks:
            if not 0 <= first < after <= tiles.documents.length:
                raise ValueError(
                    f"chunk ({first}, {after}) is not allowed; chunks must lie within {tiles.documents.length} tokens"
                )
        edges = torch.tensor(chunks).view(-1, 2, 1)
        # The part of each chunk in each document, counted from the document's start; none where lo is above hi.
        lo, hi = (edges[:, 0] - start).clamp(min=0), torch.minimum(edges[:, 1], end) - 1 - start
        sides.append((lo, hi))
    (q_lo, q_hi), (k_lo, k_hi) = sides
    both = (q_lo <= q_hi)[:, None] & (k_lo <= k_hi)
    i, j, document = both.nonzero().T
    heads = torch.arange(tiles.heads).repeat_interleave(i.numel())
    i, j, document = (x.repeat(tiles.heads) for x in (i, j, document))

    def read(q: Span, k: Span, owner: Tensor) -> Truth:
        return tiles.read(q, k, heads[owner], document[owner])

    seen = some_seen(read, Span(q_lo[i, document], q_hi[i, document]), Span(k_lo[j, document], k_hi[j, document]))
    needed = torch.zeros(tiles.heads, len(query_chunks), len(key_chunks), dtype=torch.bool)
    needed[heads[seen], i[seen], j[seen]] = True
    return needed
