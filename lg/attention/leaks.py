"""Which tokens come to know of later ones under a pattern that is not causal, so that training can leave them out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lg.attention.reading import Span

if TYPE_CHECKING:
    from lg.attention.tiles import Tiles

# A predicate in which nothing can be ruled out from afar would be searched pair by pair.
_MOST = 1 << 22


def leaks(tiles: Tiles) -> Tensor:
    """Tokens for which they, or an earlier token of their document, see a key behind themselves: bool [L].

    The half above the diagonal is made of squares of tokens; each is cut in four until the tile reading decides it. A
    square of queries ``a`` to ``b`` and keys ``c`` to ``d`` that is seen taints the tokens from ``a`` to ``d - 1``:
    later layers carry what ``a`` learned of ``d`` to all between them. Past four million squares what is undecided
    counts as seen: more targets are left out than must be.
    """
    if tiles.pattern.symbol.causal:
        return torch.zeros(tiles.documents.length, dtype=torch.bool)
    start, end = tiles.documents.bounds
    document = torch.arange(start.numel()).repeat(tiles.heads)
    head = torch.arange(tiles.heads).repeat_interleave(start.numel())
    start, last = start[document], (end - 1 - start)[document]
    # Where taint begins, and where it ends, summed up over the sequence.
    change = torch.zeros(tiles.documents.length + 1, dtype=torch.int64)

    def taint(owner: Tensor, first: Tensor, to: Tensor) -> None:
        one = torch.ones_like(first)
        change.index_add_(0, start[owner] + first, one)
        change.index_add_(0, start[owner] + torch.minimum(to, last[owner]), -one)

    size = 1 << max(int(last.max()), 1).bit_length()
    nodes = torch.empty(3, 0, dtype=torch.int64)
    left = _MOST
    while size > 1:
        size //= 2
        # Squares that touch the diagonal from above: one for every 2 * size tokens of each document.
        count = (last - size).clamp(min=-1) // (2 * size) + 1
        owner = torch.repeat_interleave(torch.arange(count.numel()), count)
        corner = (torch.arange(owner.numel()) - (count.cumsum(0) - count)[owner]) * (2 * size)
        nodes = torch.cat((nodes, torch.stack((owner, corner, corner + size))), 1)
        owner, q, k = nodes
        seen = tiles.read(
            Span(q, torch.minimum(q + size - 1, last[owner])),
            Span(k, torch.minimum(k + size - 1, last[owner])),
            head[owner],
            document[owner],
        )
        left -= nodes.shape[1]
        inside = k <= last[owner]
        decided = inside & seen.can & (seen.must | (size == 1) | (left < 0))
        taint(owner[decided], q[decided], k[decided] + size - 1)
        owner, q, k = nodes[:, inside & seen.can & ~decided]
        half = size // 2
        nodes = torch.cat([torch.stack((owner, q + i, k + j)) for i in (0, half) for j in (0, half)], 1)
    return change.cumsum(0)[:-1] > 0
