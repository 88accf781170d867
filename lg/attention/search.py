"""Exact answers about rectangles of tokens, from a tile reading that is only sound: halve until it decides.

The shard reading, the time reading and the comparison of heads rest on it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lg.attention.reading import Span, Truth

Reading = Callable[[Span, Span, Tensor], Truth]
"""Queries, keys, and for each rectangle the number of the one that it was cut from."""

# Nodes looked at together: more fill the processor no better, and fewer find early what ends the search.
_TOGETHER = 4096
# A predicate in which nothing can be ruled out from afar would be searched pair by pair.
_MOST = 1 << 22


def some_seen(read: Reading, q: Span, k: Span, most: int = _MOST) -> Tensor:
    """Whether any pair of each rectangle is seen: bool [n].

    Rectangles are searched depth first, late queries and early keys first, so that one that sees much is found at
    once. What is not decided after ``most`` halves counts as seen, which is sound: more is exchanged or kept than must
    be.

    Args:
        read: the tile reading; exact for single pairs.
        q: queries, int64 bounds [n], both included; an empty rectangle (``hi < lo``) sees nothing.
        k: keys, as ``q``.
        most: halves to look at before giving up.
    """
    corners = torch.stack([torch.as_tensor(x) for x in (q.lo, q.hi, k.lo, k.hi)])
    found = torch.zeros(corners.shape[1], dtype=torch.bool)
    stack = [torch.cat((torch.arange(corners.shape[1])[None], corners))]
    stack[0] = stack[0][:, (corners[0] <= corners[1]) & (corners[2] <= corners[3])]
    left = most
    while stack:
        nodes = stack.pop()
        nodes = nodes[:, ~found[nodes[0]]]
        if nodes.shape[1] > _TOGETHER:
            stack.append(nodes[:, :-_TOGETHER])
            nodes = nodes[:, -_TOGETHER:]
        if not nodes.shape[1]:
            continue
        left -= nodes.shape[1]
        can, hit = _looked_at(read, nodes)
        hit |= can if left < 0 else torch.zeros_like(can)
        found[nodes[0, hit]] = True
        stack.append(_halves(nodes[:, can & ~hit]))
    return found


def _looked_at(read: Reading, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each rectangle can, and whether it surely does, see: all of it, or a pair at one of its corners."""
    owner, q_lo, q_hi, k_lo, k_hi = nodes
    diagonal = torch.minimum(q_hi, k_hi).clamp(min=k_lo)
    pairs_q, pairs_k = torch.cat((q_lo, q_lo, q_hi, q_hi, q_hi)), torch.cat((k_lo, k_hi, k_lo, k_hi, diagonal))
    q = Span(torch.cat((q_lo, pairs_q)), torch.cat((q_hi, pairs_q)))
    k = Span(torch.cat((k_lo, pairs_k)), torch.cat((k_hi, pairs_k)))
    seen = read(q, k, owner.repeat(6))
    can, must = (x.broadcast_to(q.lo.shape).view(6, -1) for x in (seen.can, seen.must))  # type: ignore[union-attr]
    return can[0], must.any(0)


def _halves(nodes: Tensor) -> Tensor:
    """Each rectangle cut in two across its longer side; single pairs have been decided and are dropped."""
    owner, q_lo, q_hi, k_lo, k_hi = nodes[:, (nodes[2] > nodes[1]) | (nodes[4] > nodes[3])]
    by_q = q_hi - q_lo >= k_hi - k_lo
    q_mid, k_mid = (q_lo + q_hi) // 2, (k_lo + k_hi) // 2
    first = torch.stack((owner, q_lo, torch.where(by_q, q_mid, q_hi), torch.where(by_q, k_lo, k_mid + 1), k_hi))
    second = torch.stack((owner, torch.where(by_q, q_mid + 1, q_lo), q_hi, k_lo, torch.where(by_q, k_hi, k_mid)))
    return torch.cat((first, second), 1)
