"""Probes of what an error budget may hide: one key too many among thousands, or a trace of another document.

What must not matter is replaced by something loud, and then nothing may change: not a bit, where the implementation's
own launches agree to the bit.

Shapes: B batch, H query heads, G KV heads, L tokens, Lq queries, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lg.attention.check.budget import BUDGET, Yardstick
from lg.attention.check.case import Problem
from lg.attention.check.launch import RESULTS, launch
from lg.attention.impl import Implementation
from lg.attention.patterns import Window
from lg.attention.routed import RoutedTiles
from lg.attention.tiles import Tiles

# So much larger than other values, but far from what float16 can hold.
_LOUD_KEY, _LOUD_VALUE = 4.0, 100.0


@dataclass(frozen=True, eq=False)
class Sound:
    """An implementation whose errors are within the budget, and what it gave.

    Attributes:
        implementation: it.
        yardstick: what it was held to.
        results: output, dq, dk and dv of one launch.
        repeats: of each of the four, whether several launches agreed to the bit.
    """

    implementation: Implementation
    yardstick: Yardstick
    results: list[Tensor]
    repeats: list[bool]

    def same(self, number: int, got: Tensor, want: Tensor) -> bool:
        """Whether two values of the ``number``-th result are the same, as far as launches are."""
        if self.repeats[number]:
            return torch.equal(got, want)
        return self.yardstick.apart(number, got, want) <= BUDGET


def failures(of: Sound) -> Iterator[str]:
    """What is wrong, as clauses that follow "it failed the check of "; nothing if nothing is."""
    yield from _window_of_one(of)
    yield from _documents(of)
    yield from _unseen(of)


def _window_of_one(of: Sound) -> Iterator[str]:
    """Through a window of 1 each query sees itself: its output is its own value."""
    given = of.yardstick.given
    q, v, (first, end) = given.q, given.v, given.tiles.queries
    if given.tiles.pattern.text != Window(1).text:
        return
    if not torch.equal(of.results[0], v.repeat_interleave(q.shape[1] // v.shape[1], 1)[:, :, first:end]):
        yield "a window of 1: its output is not the values"


def _documents(of: Sound) -> Iterator[str]:
    """Another content of one document: nothing of the others may change."""
    given = of.yardstick.given
    on, (first, end) = given.tiles.documents, given.tiles.queries
    generator = torch.Generator().manual_seed(1)
    # One in the middle of a tile that it shares with others, and the last.
    for number in sorted({min(1, len(on.starts) - 1), len(on.starts) - 1} - {0}):
        own = on.of_token.to(given.q.device) == number
        rows = own[first:end], own

        def loud(x: Tensor, own: Tensor, times: float) -> Tensor:
            noise = torch.randn(x.shape, generator=generator).to(x) * times
            return _laid_as(x, torch.where(own[:, None], noise, x))

        changed = given._replace(
            q=loud(given.q, rows[0], 1.0),
            k=loud(given.k, rows[1], _LOUD_KEY),
            v=loud(given.v, rows[1], _LOUD_VALUE),
            grad=loud(given.grad, rows[0], _LOUD_KEY),
        )
        got = launch(of.implementation, changed)
        for n, name in enumerate(RESULTS):
            others = ~rows[n > 1]
            if not of.same(n, got[n][:, :, others], of.results[n][:, :, others]):
                yield f"documents: the {name} of one changes with what another holds"


def _unseen(of: Sound) -> Iterator[str]:
    """Loud keys and values wherever one query sees none: what it gets may not change, and they get no gradient."""
    given = of.yardstick.given
    tiles, groups = given.tiles, given.q.shape[1] // given.k.shape[1]
    for query in _queries(given):
        row = slice(query - tiles.queries[0], query - tiles.queries[0] + 1)
        hidden = ~_seen_by(query, tiles).to(given.k.device)[..., None]
        # Along the query, so that the weight of such a key, if it had any, would be all.
        q = given.q[:, :, row]
        towards = q.reshape(q.shape[0], -1, groups, *q.shape[2:]).sum(2)
        grad = torch.zeros_like(given.grad)
        grad[:, :, row] = given.grad[:, :, row]
        changed = given._replace(
            k=_laid_as(given.k, torch.where(hidden, _LOUD_KEY * towards, given.k)),
            v=_laid_as(given.v, torch.where(hidden, _LOUD_VALUE, given.v)),
            grad=grad,
        )
        out, dq, *of_keys = launch(of.implementation, changed)
        for n, got in enumerate((out, dq)):
            if not of.same(n, got[:, :, row], of.results[n][:, :, row]):
                yield f"what is seen: keys that query {query} does not see change its {RESULTS[n]}"
        if any(bool((x.masked_fill(~hidden, 0.0) != 0).any()) for x in of_keys):
            yield f"what is seen: keys that query {query} does not see get a gradient from it"


def _seen_by(query: int, tiles: Tiles) -> Tensor:
    """The keys that a query sees: bool [heads, L], or [B, G, L] where that is chosen by content."""
    if isinstance(tiles, RoutedTiles):
        return tiles.mask(tiles.index.device)[:, :, query - tiles.queries[0]]
    key, head = torch.arange(tiles.documents.length), torch.arange(tiles.heads)[:, None]
    return tiles.seen(torch.tensor(query), key, head)


def _laid_as(x: Tensor, values: Tensor) -> Tensor:
    """Values in the memory order of ``x``: in another, kernels would be compiled anew."""
    return torch.empty_like(x).copy_(values)


def _queries(given: Problem) -> list[int]:
    """Some at the edges of tiles and documents, and some anywhere."""
    first, end = given.tiles.queries
    start = given.tiles.documents.starts[-1]
    anywhere = torch.randint(first, end, (2,), generator=torch.Generator().manual_seed(2)).tolist()
    chosen = {first + 127, first + 128, end - 1, start - 1, start, *anywhere}
    return sorted(query for query in chosen if first <= query < end)
