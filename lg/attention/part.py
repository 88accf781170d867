"""A sequence that several ranks share: who holds which tokens, and the tiles of what one of them computes.

>>> from lg.attention import Documents, SinkWindow
>>> split = Split((0, 256, 512, 768, 1024), (0, 1, 1, 0))
>>> split.ranges(0), split.ranges(1)
(((0, 256), (768, 1024)), ((256, 768),))
>>> whole = SinkWindow(window=200, sinks=4).tiles(Documents(1024))
>>> part = Part(whole, split.ranges(0), ((0, 256), (512, 1024)))
>>> part.table(64, 64).num_listed.tolist()
[1, 2, 3, 4, 6, 6, 6, 6]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lg.attention.documents import Documents
from lg.attention.routed import Routed
from lg.attention.tiles import Ranges, Tiles, TileTable

GRID = 128
"""Parts begin and end at multiples of this many tokens, or where the sequence ends: a tile lies in one of them."""


@dataclass(frozen=True)
class Split:
    """A sequence cut into chunks, each of which one rank holds.

    Attributes:
        edges: where chunks begin, and where the last one ends: ascending from 0, all but the last multiples of `GRID`.
        owners: the rank that holds each chunk; every rank from 0 on holds one at least.

    Raises:
        ValueError: if they are not so.
    """

    edges: tuple[int, ...]
    owners: tuple[int, ...]

    def __post_init__(self) -> None:
        ascends = all(first < end for first, end in pairwise(self.edges))
        if len(self.edges) < 2 or self.edges[0] or not ascends or any(edge % GRID for edge in self.edges[:-1]):
            raise ValueError(
                f"edges {self.edges} are not allowed; they must ascend from 0, all but the last multiples of {GRID}"
            )
        if len(self.owners) != len(self.edges) - 1 or set(self.owners) != set(range(self.num_ranks)):
            raise ValueError(
                f"owners {self.owners} are not allowed; they must be one rank for each of {len(self.edges) - 1} "
                "chunks, and each rank from 0 on must hold one"
            )

    @property
    def length(self) -> int:
        """Tokens of the sequence."""
        return self.edges[-1]

    @property
    def num_ranks(self) -> int:
        """How many ranks share it."""
        return max(self.owners) + 1

    def ranges(self, rank: int) -> Ranges:
        """First token and end (exclusive) of what a rank holds, ascending; neighbouring chunks are one range."""
        return merged([chunk for chunk, owner in zip(pairwise(self.edges), self.owners, strict=True) if owner == rank])


@dataclass(frozen=True)
class Held:
    """What one rank holds of a sequence.

    Attributes:
        split: the sequence.
        rank: which of its ranks this is.
    """

    split: Split
    rank: int

    @cached_property
    def ranges(self) -> Ranges:
        """First token and end (exclusive) of each stretch that is held, ascending."""
        return self.split.ranges(self.rank)

    @cached_property
    def tokens(self) -> Tensor:
        """The tokens of the sequence that are held: int64, on the host."""
        return tokens_of(self.ranges)


class Stretch(NamedTuple):
    """A range of a part's queries as a chunk of a sequence of its own.

    Attributes:
        queries, keys: which of the part's they are.
        tiles: of that sequence.
    """

    queries: slice
    keys: slice
    tiles: Tiles


class Part(Tiles):
    """The tiles of some queries of a sequence against some of its keys, each laid end to end.

    Args:
        tiles: those of the whole sequence.
        queries: ranges of tokens that ask, ascending, at multiples of `GRID`.
        keys: ranges of tokens that are there, likewise; all that a query sees must be among them.
        held: whose queries these are, where ranks share the sequence.

    Raises:
        ValueError: if the pattern's tiles are chosen by content.
    """

    def __init__(self, tiles: Tiles, queries: Ranges, keys: Ranges, held: Held | None = None) -> None:
        super().__init__(tiles.pattern, tiles.documents, tiles.num_kv_heads)
        if isinstance(tiles.pattern, Routed):
            raise ValueError(f"{tiles.pattern} is chosen by content: its tiles cannot be shared between ranks")
        self.held = held
        length = tiles.documents.length
        for ranges in (queries, keys):
            edges = [edge for one in ranges for edge in one]
            assert edges and edges == sorted(set(edges)), ranges
            assert all(edge % GRID == 0 or edge == length for edge in edges) and edges[-1] <= length, ranges
        self.query_ranges, self.key_ranges = queries, keys
        self.num_queries, self.num_keys = (sum(end - first for first, end in ranges) for ranges in (queries, keys))
        self.all_queries, self.all_keys = (ranges == tiles.key_ranges for ranges in (queries, keys))
        # Whose own rows of queries are counted from their first one.
        self.pieces = [Tiles(tiles.pattern, tiles.documents, tiles.num_kv_heads, one) for one in queries]

    @property
    def queries(self) -> tuple[int, int]:
        raise AssertionError("a part's queries are no single range: see query_ranges")

    @cached_property
    def stretches(self) -> list[Stretch]:
        """Each range of queries on what is there of its documents: all that `Causal` and `Window` see."""
        found, row = [], 0
        for first, end in self.query_ranges:
            column = 0
            for begin, after in self.key_ranges:
                if begin <= first < after:
                    break
                column += after - begin
            document = int(self.documents.of_token[first])
            low = max(begin, self.documents.starts[document])
            assert end <= after, f"keys end at {after}, before queries ({first}, {end})"
            starts = [low, *(start for start in self.documents.starts[document + 1 :] if start < end)]
            on = Documents(end - low, [start - low for start in starts])
            tiles = Tiles(self.pattern, on, self.num_kv_heads, (first - low, end - low))
            queries = slice(row, row + end - first)
            found.append(Stretch(queries, slice(column + low - begin, column + end - begin), tiles))
            row = queries.stop
        return found

    @cached_property
    def query_tokens(self) -> Tensor:
        return tokens_of(self.query_ranges)

    @cached_property
    def key_tokens(self) -> Tensor:
        return tokens_of(self.key_ranges)

    def table(self, block_q: int = 128, block_k: int = 128) -> TileTable:
        def build() -> TileTable:
            rows = _places([piece.queries for piece in self.pieces], block_q)
            columns = self._key_blocks(block_k)
            tables = [piece.table(block_q, block_k) for piece in self.pieces]
            return _joined(tables, rows, [columns] * len(tables), -(-self.num_keys // block_k))

        return self.kept(("table", block_q, block_k), build)

    def transposed(self, block_q: int = 128, block_k: int = 128) -> TileTable:
        def build() -> TileTable:
            rows = self._key_blocks(block_k)
            columns = _places([piece.queries for piece in self.pieces], block_q)
            tables = [piece.transposed(block_q, block_k) for piece in self.pieces]
            return _joined(tables, [rows] * len(tables), columns, -(-self.num_queries // block_q))

        return self.kept(("transposed", block_q, block_k), build)

    def _key_blocks(self, block: int) -> Tensor:
        """Where each block of the sequence's keys lies here; -1 where it does not."""
        at = torch.full((-(-self.documents.length // block),), -1)
        for (first, end), place in zip(self.key_ranges, _places(self.key_ranges, block), strict=True):
            at[first // block : -(-end // block)] = place
        return at


def merged(chunks: Sequence[tuple[int, int]]) -> Ranges:
    """Ascending chunks, with neighbours as one."""
    ranges: list[tuple[int, int]] = []
    for first, end in chunks:
        if ranges and ranges[-1][1] == first:
            first = ranges.pop()[0]
        ranges.append((first, end))
    return tuple(ranges)


def tokens_of(ranges: Ranges) -> Tensor:
    """The tokens of all ranges, in order: int64."""
    return torch.cat([torch.arange(first, end) for first, end in ranges])


def _places(ranges: Sequence[tuple[int, int]], block: int) -> list[Tensor]:
    """Of each range, laid end to end: the places of its blocks."""
    assert GRID % block == 0, f"tiles of {block} do not divide {GRID}"
    places, begin = [], 0
    for first, end in ranges:
        count = -(-(end - first) // block)
        places.append(torch.arange(begin, begin + count))
        begin += count
    return places


def _joined(tables: list[TileTable], rows: list[Tensor], columns: list[Tensor], num_columns: int) -> TileTable:
    """Tables as one, where the rows and columns of each come to lie at places of the whole."""
    num_rows = 1 + max(int(place.max()) for place in rows)
    heads, (block_q, block_k) = tables[0].heads, (tables[0].block_q, tables[0].block_k)
    lists = []
    for pointer, first, *more in (
        ("run_pointer", "run_first", "run_count"),
        ("partial_pointer", "partial_index"),
    ):
        row, entries = [], []
        for table, to_row, to_column in zip(tables, rows, columns, strict=True):
            own = torch.arange(heads * table.num_rows).repeat_interleave(getattr(table, pointer).diff())
            row.append(own // table.num_rows * num_rows + to_row[own % table.num_rows])
            entries.append([to_column[getattr(table, first)], *(getattr(table, name) for name in more)])
            assert (row[-1] >= 0).all() and (entries[-1][0] >= 0).all(), "a query sees a key that is not there"
        of_row, order = torch.sort(torch.cat(row), stable=True)
        lists += [torch.searchsorted(of_row, torch.arange(heads * num_rows + 1))]
        lists += [torch.cat(x)[order] for x in zip(*entries, strict=True)]
    return TileTable(block_q, block_k, heads, num_rows, num_columns, *lists)
