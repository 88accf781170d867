"""When a page of keys may be given back: after the last query that may see any of its tokens.

>>> from lg.attention import SinkWindow
>>> last_queries(SinkWindow(window=100, sinks=4), 640).tolist()
[639, 226, 290, 354, 418, 482, 546, 610, 639, 639]
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from lg.attention import Documents, Pattern
from lg.attention.reading import Span, Truth
from lg.attention.search import some_seen

PAGE = 64
"""Tokens of a page."""


def last_queries(pattern: Pattern, end: int, doc: Mapping[str, int] | None = None) -> Tensor:
    """Of each page of a document, the last query that may see any of its tokens: int64 [pages]; -1 if none does.

    Found by halving the queries that are left, for all pages at once.

    Args:
        pattern: what is seen; KV heads must see alike.
        end: tokens that the document may grow to.
        doc: attributes of the document that the pattern asks for.
    """
    return _found(pattern, end, tuple(sorted((doc or {}).items())))


@lru_cache(maxsize=256)
def _found(pattern: Pattern, end: int, doc: tuple[tuple[str, int], ...]) -> Tensor:
    assert not pattern.heads_differ, pattern
    tiles = pattern.tiles(Documents(end, attributes={name: (value,) for name, value in doc}))
    first = torch.arange(0, end, PAGE)
    keys = Span(first, (first + PAGE - 1).clamp(max=end - 1))

    def read(q: Span, k: Span, owner: Tensor) -> Truth:
        nothing = torch.zeros_like(owner)
        return tiles.read(q, k, nothing, nothing)

    def seen_from(query: Tensor, pages: Tensor) -> Tensor:
        assert isinstance(keys.lo, Tensor) and isinstance(keys.hi, Tensor)
        return some_seen(read, Span(query, torch.full_like(query, end - 1)), Span(keys.lo[pages], keys.hi[pages]))

    every = torch.arange(len(first))
    last = torch.full_like(first, end - 1)
    # Most pages are seen by the last query, or have a last one to look for.
    pages = every[~seen_from(last, every)]
    low, high = torch.full_like(pages, -1), torch.full_like(pages, end - 2)
    while bool((low < high).any()):
        middle = (low + high + 1) // 2
        seen = seen_from(middle, pages)
        low, high = torch.where(seen, middle, low), torch.where(seen, high, middle - 1)
    last[pages] = low
    return last


def most_held(last: Tensor, length: int) -> int:
    """The most pages that a sequence of ``length`` tokens holds at any time, however it is cut into chunks.

    While a chunk is read, what it leaves behind is there as well as what it brings.

    Args:
        last: of each page, its last query.
        length: tokens that the sequence grows to.
    """
    last = last[: -(-length // PAGE)].clamp(max=length - 1)
    first = torch.arange(len(last))

    def most(pages: Tensor) -> int:
        change = torch.zeros(len(last) + 1, dtype=torch.int64)
        change.index_add_(0, first[pages], torch.ones_like(first[pages]))
        change.index_add_(0, last[pages] // PAGE + 1, -torch.ones_like(first[pages]))
        return int(change.cumsum(0).max())

    seen = last // PAGE >= first
    # Any token's page is there while it is read.
    return min(most(seen) + most(seen & (last < length - 1)) + 1, len(last))


def pages_needed(pattern: Pattern, end: int, length: int, doc: Mapping[str, int]) -> int:
    """The most pages that a sequence of ``length`` tokens holds at any time, of a document that might grow to ``end``.

    Asked for whenever a sequence is to be let in, and so remembered.
    """
    return _needed(pattern, end, length, tuple(sorted(doc.items())))


@lru_cache(maxsize=4096)
def _needed(pattern: Pattern, end: int, length: int, doc: tuple[tuple[str, int], ...]) -> int:
    return most_held(_found(pattern, end, doc), length)
