"""The time reading: which keys a later query may still see, and which KV heads see alike. What a cache keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lg.attention.documents import Documents
from lg.attention.pattern import Pattern
from lg.attention.reading import Span, Truth
from lg.attention.search import some_seen
from lg.attention.tiles import Tiles


@dataclass(frozen=True, eq=False)
class Kept:
    """Keys that a later query may still see, as runs; int64 on the host.

    Attributes:
        heads: 1 if all KV heads see alike, else their number.
        pointer: head ``h`` owns runs ``pointer[h]`` to ``pointer[h + 1]``: [heads + 1].
        first, count: first key and number of keys of each run, ascending in a head: [runs].
    """

    heads: int
    pointer: Tensor
    first: Tensor
    count: Tensor

    def num_tokens(self) -> Tensor:
        """Keys kept by each head: int64 [heads]."""
        ends = torch.cat((self.count.new_zeros(1), self.count.cumsum(0)))
        return ends[self.pointer].diff()

    def runs(self, head: int = 0) -> list[tuple[int, int]]:
        """First key and end (exclusive) of each run of a head."""
        own = slice(int(self.pointer[head]), int(self.pointer[head + 1]))
        first, count = self.first[own], self.count[own]
        return list(zip(first.tolist(), (first + count).tolist(), strict=True))


def kept(pattern: Pattern, now: int, end: int, num_kv_heads: int, doc: Mapping[str, int]) -> Kept:
    """Keys before ``now`` that some query of ``now <= q < end`` may see; see `Pattern.kept`.

    Runs of keys are halved until the tile reading decides them: dropped where no later query can see any, kept where
    one query sees all. What remains are single keys, each decided exactly.

    Raises:
        ValueError: unless ``0 <= now < end``.
    """
    if not 0 <= now < end:
        raise ValueError(f"now={now} is not allowed; it must be at least 0 and below end={end}")
    tiles = pattern.tiles(_one(end, doc), num_kv_heads)
    none = torch.empty(0, dtype=torch.int64)

    def read(q: Span, k: Span, head: Tensor) -> Truth:
        return tiles.read(q, k, head, torch.zeros_like(head))

    size = 1 << max(now - 1, 0).bit_length()
    nodes = torch.stack((torch.arange(tiles.heads), torch.zeros(tiles.heads, dtype=torch.int64)))
    places, counts = [none], [none]
    while nodes.shape[1] and now:
        head, lo = nodes
        hi = (lo + size - 1).clamp(max=now - 1)
        k = Span(lo, hi)
        later = read(Span(torch.full_like(lo, now), torch.full_like(lo, end - 1)), k, head)
        alive = later.can & (lo < now)
        whole = later.must
        # The next query and the last decide most; single keys may wait a few queries for theirs.
        soon = range(now, min(now + 16, end)) if size == 1 else (now,)
        for query in (*soon, end - 1):
            at = torch.full_like(lo, query)
            whole = whole | read(Span(at, at), k, head).must
        if size == 1:
            undecided = (alive & ~whole).nonzero().squeeze(1)
            whole = whole.index_put((undecided,), _ever_seen(tiles, nodes[:, undecided], now, end))
        whole = whole & alive
        places.append((head * (now + 1) + lo)[whole])
        counts.append((hi - lo + 1)[whole])
        if size == 1:
            break
        head, lo = nodes[:, alive & ~whole]
        size //= 2
        nodes = torch.stack((head.repeat_interleave(2), torch.stack((lo, lo + size), 1).flatten()))
    return _joined(torch.cat(places), torch.cat(counts), tiles.heads, now + 1)


def _ever_seen(tiles: Tiles, keys: Tensor, now: int, end: int) -> Tensor:
    """Whether some query of ``now <= q < end`` sees each single key; ``keys`` are head and key, [2, n]."""
    head, key = keys

    def read(q: Span, k: Span, owner: Tensor) -> Truth:
        return tiles.read(q, k, head[owner], torch.zeros_like(owner))

    return some_seen(read, Span(torch.full_like(key, now), torch.full_like(key, end - 1)), Span(key, key))


def _joined(places: Tensor, counts: Tensor, heads: int, width: int) -> Kept:
    """Runs that touch become one; a place is ``head * width + key``, and no run reaches the last key of its head."""
    places, order = torch.sort(places)
    counts = counts[order]
    begins = torch.ones_like(places, dtype=torch.bool)
    begins[1:] = places[1:] != places[:-1] + counts[:-1]
    run_place = places[begins]
    ends = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    edge = torch.cat((begins.nonzero().flatten(), torch.tensor([counts.numel()])))
    pointer = torch.searchsorted(run_place, torch.arange(heads + 1) * width)
    return Kept(heads, pointer, run_place % width, ends[edge].diff())


def alike(pattern: Pattern, num_kv_heads: int, length: int, doc: Mapping[str, int]) -> list[list[int]]:
    """KV heads that see the same keys, grouped; see `Pattern.alike`.

    Heads whose predicates read alike are alike. Others are held against each other, pair of tokens by pair, and are
    put apart unless they are proven alike.
    """
    tiles = pattern.tiles(_one(length, doc), num_kv_heads)
    if tiles.heads == 1:
        return [list(range(num_kv_heads))]
    # What reads alike sees alike; what reads differently may still see alike, as stripes beyond the document's end do.
    read_alike: dict[str, list[int]] = {}
    for head in range(num_kv_heads):
        read_alike.setdefault(pattern.symbol_of_head(head).text, []).append(head)
    groups: list[list[int]] = []
    for heads in read_alike.values():
        leaders = torch.tensor([group[0] for group in groups], dtype=torch.int64)
        differ = _differ(tiles, leaders, heads[0], length).tolist()
        if all(differ):
            groups.append(heads)
        else:
            groups[differ.index(False)] += heads
    return sorted(sorted(group) for group in groups)


def _differ(tiles: Tiles, leaders: Tensor, head: int, length: int) -> Tensor:
    """Whether some pair is seen by one head alone: by each leader, or by the head. Given up early, as yes."""

    def read(q: Span, k: Span, owner: Tensor) -> Truth:
        document = torch.zeros_like(owner)
        a = tiles.read(q, k, leaders[owner], document)
        b = tiles.read(q, k, torch.full_like(owner, head), document)
        return (a & ~b) | (b & ~a)

    everything = Span(torch.zeros_like(leaders), torch.full_like(leaders, length - 1))
    return some_seen(read, everything, everything, most=1 << 16)


def _one(length: int, doc: Mapping[str, int]) -> Documents:
    return Documents(length, attributes={name: (value,) for name, value in doc.items()})
