"""The tile table: which blocks of queries see which blocks of keys, fully or in part, for packed documents.

Every backend, the accounting and the pictures read it. It is found by halving: a square of tiles that the pattern's
tile reading calls empty is dropped, one that it calls full is kept whole, any other is cut in four. So time and memory
grow with the edges of what is seen, never with the square of the sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import TypeVar, cast

import torch
from torch import Tensor

from lg.attention.documents import Documents
from lg.attention.pattern import Pattern
from lg.attention.reading import PredicateError, Reach, Span, Truth

_T = TypeVar("_T")

Ranges = tuple[tuple[int, int], ...]
"""First token and end (exclusive) of stretches of a sequence, ascending."""


@dataclass(frozen=True, eq=False)
class TileTable:
    """Full tiles as runs and partial tiles as a list, row by row; rows are blocks of queries, columns of keys.

    Row ``r = head * num_rows + block`` owns entries ``pointer[r]`` to ``pointer[r + 1]``, in ascending columns;
    adjacent full tiles are one run. In the transpose, rows are blocks of keys. All tensors are int64 on the host.

    Attributes:
        block_q, block_k: tokens in a block of a row and of a column.
        heads: 1 if all KV heads see alike, else their number.
        num_rows, num_columns: blocks that cover the sequence; the last may be ragged, and is then never full.
        run_pointer, run_first, run_count: full tiles: [heads * num_rows + 1], [runs], [runs].
        partial_pointer, partial_index: tiles that need the predicate: [heads * num_rows + 1], [num_partial].
    """

    block_q: int
    block_k: int
    heads: int
    num_rows: int
    num_columns: int
    run_pointer: Tensor
    run_first: Tensor
    run_count: Tensor
    partial_pointer: Tensor
    partial_index: Tensor

    @property
    def num_full(self) -> int:
        """Full tiles, over all rows and heads."""
        return int(self.run_count.sum())

    @property
    def num_partial(self) -> int:
        """Partial tiles, over all rows and heads."""
        return self.partial_index.numel()

    @property
    def num_listed(self) -> Tensor:
        """Tiles of each row, full or partial: int64 [heads * num_rows]."""
        ends = torch.cat((self.run_count.new_zeros(1), self.run_count.cumsum(0)))
        return ends[self.run_pointer].diff() + self.partial_pointer.diff()

    def full_lists(self) -> tuple[Tensor, Tensor]:
        """Full tiles one by one, for libraries without runs: pointer [heads * num_rows + 1] and index [num_full]."""
        ends = self.run_count.cumsum(0)
        index = torch.arange(self.num_full) + torch.repeat_interleave(
            self.run_first - ends + self.run_count, self.run_count
        )
        return torch.cat((ends.new_zeros(1), ends))[self.run_pointer], index


class Tiles:
    """A pattern on a layout of documents: what `attend` is handed. Tables are built once, on first use.

    Args:
        pattern: what may be seen.
        documents: where documents lie in the sequence.
        num_kv_heads: KV heads of the layer; matters only to a pattern whose heads differ.
        queries: first query and end (exclusive), where only a chunk of the sequence asks, as in chunked prefill; keys
            are always those of the whole sequence. By default every token asks.

    Attributes:
        query_ranges, key_ranges: the tokens that ask, and those that are there to be seen: of `lg.attention.part.Part`
            stretches laid end to end, else the one of ``queries`` and the whole sequence.
        num_queries, num_keys: how many they are.
        all_queries, all_keys: whether they are all tokens of the sequence.

    Raises:
        ValueError: if the pattern asks for what the documents do not have, is made for another number of KV heads, or
            there are no such queries.
    """

    def __init__(
        self,
        pattern: Pattern,
        documents: Documents,
        num_kv_heads: int = 1,
        queries: tuple[int, int] | None = None,
    ) -> None:
        self.pattern = pattern
        # Kept as a string: torch's compiler need not follow how a predicate is read as text.
        self.text = pattern.text
        self.heads_differ = pattern.heads_differ
        self.documents = documents
        # Likewise, since of a length asked for it makes a condition.
        self.packed = len(documents.starts) > 1
        self.num_kv_heads = num_kv_heads
        first, end = queries or (0, documents.length)
        self.query_ranges: Ranges = ((first, end),)
        self.key_ranges: Ranges = ((0, documents.length),)
        self.num_queries, self.num_keys = end - first, documents.length
        self.all_queries, self.all_keys = (first, end) == (0, documents.length), True
        self.heads = num_kv_heads if self.heads_differ else 1
        if pattern.made_for not in (None, num_kv_heads):
            raise ValueError(f"{pattern} is made for {pattern.made_for} KV heads, but the layer has {num_kv_heads}")
        if not 0 <= first < end <= documents.length:
            raise ValueError(f"queries {(first, end)} are not allowed; they must lie within {documents.length} tokens")
        self._attributes = {name: documents.attribute(name) for name in pattern.attributes}
        self._refuse_overflow(num_kv_heads)
        self._kept: dict[object, object] = {}

    @property
    def queries(self) -> tuple[int, int]:
        """First query and end (exclusive)."""
        return self.query_ranges[0]

    @cached_property
    def query_tokens(self) -> Tensor:
        """The token of the sequence that each query is: int64 [Lq], on the host."""
        return torch.arange(*self.queries)

    @cached_property
    def key_tokens(self) -> Tensor:
        """The token of the sequence that each key is: int64 [Lk], on the host."""
        return torch.arange(self.documents.length)

    def _refuse_overflow(self, num_kv_heads: int) -> None:
        """Kernels count in 32 bits; what a predicate makes of positions may not fit."""
        start, end = self.documents.bounds
        token = Reach(0, int((end - start).max()) - 1)
        doc = SimpleNamespace(**{name: Reach(int(x.min()), int(x.max())) for name, x in self._attributes.items()})
        try:
            self.pattern.read(token, token, Reach(0, num_kv_heads - 1), doc)
        except OverflowError as error:
            raise PredicateError(
                f"{self.pattern}: in a document of {int(token.hi) + 1:,} tokens `{self.pattern.text}` reaches {error}, "
                "beyond the 32 bits that kernels count in"
            ) from error

    def kept(self, key: object, build: Callable[[], _T]) -> _T:
        """What ``build`` returns, built once for this pattern and layout and shared by all layers that use them."""
        if key not in self._kept:
            self._kept[key] = build()
        return cast(_T, self._kept[key])

    def table(self, block_q: int = 128, block_k: int = 128) -> TileTable:
        """Rows of query blocks, at this tile size."""
        return self.kept(("table", block_q, block_k), lambda: self._squares(block_q, block_k).table(transpose=False))

    def transposed(self, block_q: int = 128, block_k: int = 128) -> TileTable:
        """Rows of key blocks (whose ``block_q`` is this ``block_k``), for the gradients of keys and values."""
        return self.kept(
            ("transposed", block_q, block_k), lambda: self._squares(block_q, block_k).table(transpose=True)
        )

    def seen(self, query: Tensor, key: Tensor, head: Tensor | int = 0) -> Tensor:
        """The token reading on the packed sequence: the predicate, within one document.

        Args:
            query: tokens of the sequence, of any shape, on any device.
            key: tokens of the sequence, of a shape that broadcasts with ``query``.
            head: KV heads, likewise.
        """
        on, device = self.documents, query.device
        owner, position = on.of_token.to(device), on.positions.to(device)
        document = owner[query]
        doc = SimpleNamespace(**{name: values.to(device)[document] for name, values in self._attributes.items()})
        return self.pattern.mask(position[query], position[key], head, doc) & (document == owner[key])

    def mask(self, device: torch.device) -> Tensor:
        """Which key each query sees: bool [heads, Lq, Lk]; slow, and for the oracle."""
        query, key = self.query_tokens.to(device)[:, None], self.key_tokens.to(device)
        head = torch.arange(self.heads, device=device)[:, None, None]
        return self.seen(query, key, head)

    def read(self, q: Span, k: Span, head: Tensor, document: Tensor) -> Truth:
        """The tile reading of rectangles that lie each in one document.

        Args:
            q, k: spans counted from the start of the document.
            head: each rectangle's KV head.
            document: each rectangle's document.
        """
        values = {name: x[document] for name, x in self._attributes.items()}
        doc = SimpleNamespace(**{name: Span(x, x) for name, x in values.items()})
        return self.pattern.tile(q, k, Span(head, head), doc)

    def needs(self, query_chunks: Sequence[tuple[int, int]], key_chunks: Sequence[tuple[int, int]]) -> Tensor:
        """The shard reading: does any query of one chunk see any key of another?

        Args:
            query_chunks: first token and end (exclusive) of each chunk of queries, in any order.
            key_chunks: the same, of keys.

        Returns:
            bool [heads, query chunks, key chunks], on the host.

        >>> from lg.attention import Documents, SinkWindow
        >>> chunks = [(0, 1000), (1000, 2000), (2000, 3000), (3000, 4000)]
        >>> SinkWindow(window=300, sinks=4).tiles(Documents(4000)).needs(chunks, chunks)[0].int()
        tensor([[1, 0, 0, 0],
                [1, 1, 0, 0],
                [1, 1, 1, 0],
                [1, 0, 1, 1]], dtype=torch.int32)
        """
        from lg.attention.shard import needs

        return needs(self, query_chunks, key_chunks)

    def leaks(self) -> Tensor:
        """Which tokens may come to know of a later one: bool [L], on the host.

        A token's next-token target is void if it, or an earlier token of its document, sees a key behind it: what
        that key says is then known before it is asked for, in the same layer or a later one. Of a causal pattern all
        are False.
        """
        from lg.attention.leaks import leaks

        return self.kept("leaks", lambda: leaks(self))

    def _squares(self, block_q: int, block_k: int) -> _Squares:
        return self.kept(("squares", block_q, block_k), lambda: _squares(self, block_q, block_k))


@dataclass(frozen=True, eq=False)
class _Squares:
    """What the halving found: full squares of tiles by their size, and single partial tiles.

    Rows are (root, i, j), and a root is ``head * documents + document``.
    """

    heads: int
    num_documents: int
    blocks: tuple[int, int]
    grid: tuple[int, int]
    full: list[tuple[int, Tensor]]
    partial: Tensor

    def table(self, transpose: bool) -> TileTable:
        block_q, block_k = self.blocks[::-1] if transpose else self.blocks
        num_rows, num_columns = self.grid[::-1] if transpose else self.grid

        def place(root: Tensor, i: Tensor, j: Tensor) -> Tensor:
            row, column = (j, i) if transpose else (i, j)
            if self.heads > 1:
                row = row + root // self.num_documents * num_rows
            return row * num_columns + column

        # Each full square gives one segment to each of its rows, known by the place of its first tile.
        places, counts = [], []
        for size, square in self.full:
            first = place(*square)
            places.append((first[:, None] + torch.arange(size) * num_columns).flatten())
            counts.append(torch.full_like(places[-1], size))
        place_of, order = torch.sort(torch.cat(places))
        count = torch.cat(counts)[order]
        # Segments that touch within a row are one run.
        begins = torch.ones_like(place_of, dtype=torch.bool)
        begins[1:] = (place_of[1:] != place_of[:-1] + count[:-1]) | (place_of[1:] % num_columns == 0)
        run_place = place_of[begins]
        ends = torch.cat((count.new_zeros(1), count.cumsum(0)))
        run_start = torch.cat((begins.nonzero().flatten(), torch.tensor([count.numel()])))
        # Two documents that meet inside a tile both list it.
        partial = torch.unique_consecutive(torch.sort(place(*self.partial)).values)
        rows = torch.arange(self.heads * num_rows + 1) * num_columns
        return TileTable(
            block_q,
            block_k,
            self.heads,
            num_rows,
            num_columns,
            torch.searchsorted(run_place, rows),
            run_place % num_columns,
            ends[run_start].diff(),
            torch.searchsorted(partial, rows),
            partial % num_columns,
        )


def _squares(tiles: Tiles, block_q: int, block_k: int) -> _Squares:
    # One root for each head and document: the smallest power-of-two square of tiles that covers its queries and keys.
    start, end = tiles.documents.bounds
    first_query, end_query = tiles.queries
    asks = ((start < end_query) & (end > first_query)).nonzero().squeeze(1)
    document, head = asks.repeat(tiles.heads), torch.arange(tiles.heads).repeat_interleave(asks.numel())
    start, end = start[document], end[document]
    # Bounds of queries and of keys, counted from the document's start.
    q_first, q_last = (first_query - start).clamp(min=0), torch.minimum(end, torch.tensor(end_query)) - 1 - start
    k_last = end - 1 - start
    # Tile (0, 0) begins at the first query, and at the first key, of the sequence.
    q_shift, k_shift = first_query - start, -start
    first_i, first_j = (q_first - q_shift) // block_q, start // block_k
    span = torch.maximum((q_last - q_shift) // block_q - first_i, (end - 1) // block_k - first_j) + 1
    level = torch.tensor([(n - 1).bit_length() for n in span.tolist()])
    roots = torch.stack((torch.arange(start.numel()), first_i, first_j))
    bounds = torch.stack((q_shift.expand_as(start), k_shift, q_first, q_last, k_last, head, document))

    full: list[tuple[int, Tensor]] = []
    nodes, depth = roots[:, :0], int(level.max())
    while depth >= 0:
        # Few nodes are cut in sixteen: the cost of a level is then that of its calls, not of its work.
        below = depth - (2 if depth > 1 and nodes.shape[1] < 1024 else 1)
        size = 1 << depth
        nodes = torch.cat((nodes, roots[:, (level <= depth) & (level > below)]), 1)
        root, i, j = nodes
        # What belongs to a single root broadcasts.
        of_root = bounds if bounds.shape[1] == 1 else bounds.index_select(1, root)
        to_q, to_k, q_min, q_max, k_max, h, doc = of_root
        q_lo, k_lo = i * block_q + to_q, j * block_k + to_k
        q_hi, k_hi = q_lo + (size * block_q - 1), k_lo + (size * block_k - 1)
        seen = tiles.read(
            Span(torch.maximum(q_lo, q_min), torch.minimum(q_hi, q_max)),
            Span(k_lo.clamp(min=0), torch.minimum(k_hi, k_max)),
            h,
            doc,
        )
        alive = seen.can & (q_lo <= q_max) & (k_lo <= k_max)
        inside = (q_lo >= q_min) & (k_lo >= 0) & (q_hi <= q_max) & (k_hi <= k_max)
        whole = alive & seen.must & inside
        full.append((size, kept_columns(nodes, whole)))
        nodes = kept_columns(nodes, alive & ~whole)
        if depth:
            nodes = cut(nodes, size, 1 << (depth - below))
        depth = below
    grid = (-(-(end_query - first_query) // block_q), -(-tiles.documents.length // block_k))
    return _Squares(tiles.heads, asks.numel(), (block_q, block_k), grid, full, nodes)


def kept_columns(nodes: Tensor, keep: Tensor) -> Tensor:
    """The columns of ``nodes`` where ``keep`` is True; much faster than an index of bools."""
    return nodes.index_select(1, keep.nonzero().squeeze(1))


def cut(nodes: Tensor, size: int, parts: int) -> Tensor:
    """Each square in ``parts`` x ``parts``: ``nodes`` are owner, first row and first column of each."""
    edge = torch.arange(0, size, size // parts)
    owner, i, j = nodes[:, :, None, None]
    cut = nodes.new_empty(3, nodes.shape[1], parts, parts)
    cut[0] = owner
    cut[1] = i + edge[:, None]
    cut[2] = j + edge
    return cut.flatten(1)
