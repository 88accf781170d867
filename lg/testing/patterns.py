"""The contract of a pattern, held to brute force: the whole test file that a user's own pattern needs.

def test_near():
    check_pattern(Near(width=100))
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lg.attention import Causal, Documents, Pattern, Tiles, TileTable, attend

LENGTHS = (1, 63, 100, 1000, 4096)
BLOCKS = ((32, 32), (64, 64), (128, 128), (128, 64))


@dataclass(frozen=True)
class PatternReport:
    """How tight a pattern's tile reading is, over all layouts that were checked.

    Attributes:
        text: the predicate with its constants filled in.
        heads_differ: whether KV heads see different keys.
        listed: tiles that the tables list.
        empty: listed tiles in which nothing is seen: work for nothing.
        full_as_partial: tiles listed as partial that are full: masked for nothing.
    """

    text: str
    heads_differ: bool
    listed: int
    empty: int
    full_as_partial: int

    @property
    def excess(self) -> float:
        """The share of listed tiles that are empty."""
        return self.empty / max(self.listed, 1)


def check_pattern(
    pattern: Pattern,
    num_kv_heads: int | None = None,
    lengths: Sequence[int] = LENGTHS,
    blocks: Sequence[tuple[int, int]] = BLOCKS,
    seed: int = 0,
) -> PatternReport:
    """Holds every reading of a pattern to its predicate, token by token, on random packings of documents.

    Checked, of the whole sequence and of a chunk of its queries: the text is the predicate; masks broadcast; no tile
    is missing, or called full when it is not, at any tile size, in the table and in its transpose; attention over
    gathered tiles equals the dense oracle in float64, with all three gradients. And up to 1,000 tokens: which chunks
    need which others, which keys a later query may still see, which heads see alike, how many keys a query sees, where
    full causal attention begins anew, and which tokens come to know of later ones.

    Args:
        pattern: what to check.
        num_kv_heads: KV heads to try; by default what the pattern is made for, or 3.
        lengths: tokens in a packed sequence.
        blocks: tile sizes, (queries, keys).
        seed: of the packings and values. Attributes that the pattern asks of documents are drawn from 0 to a little
            above their lengths.

    Returns:
        How tight the tables are. They may list more than they must; a pattern that overrides `tile` can mend that.

    Raises:
        AssertionError: naming what disagrees, where.
    """
    heads = num_kv_heads or pattern.made_for or 3
    listed = empty = full_as_partial = 0
    draw = random.Random(seed)
    for documents in layouts(pattern, lengths, seed):
        check_text(pattern, documents, heads)
        first, end = sorted(draw.sample(range(documents.length + 1), 2))
        for queries in (None, (first, end)):
            tiles = pattern.tiles(documents, heads, queries)
            seen = brute_force(tiles)
            for block_q, block_k in blocks:
                counts = check_tables(tiles, seen, block_q, block_k)
                listed, empty, full_as_partial = (
                    old + new for old, new in zip((listed, empty, full_as_partial), counts, strict=True)
                )
            if documents.length <= 1000:
                check_attention(tiles, heads, seed)
                check_shards(tiles, seen, draw)
        if documents.length <= 1000:
            check_what_follows(pattern.tiles(documents, heads), heads)
            check_time(pattern, documents, heads, draw)
    return PatternReport(pattern.text, pattern.heads_differ, listed, empty, full_as_partial)


def layouts(pattern: Pattern, lengths: Sequence[int], seed: int) -> Iterator[Documents]:
    """Each length as one document, and as up to six of random lengths, with what the pattern asks of them."""
    draw = random.Random(seed)
    for length in lengths:
        packings: list[tuple[int, ...]] = [(0,)]
        if length > 1:
            num = min(draw.randint(2, 6), length)
            packings.append((0, *sorted(draw.sample(range(1, length), num - 1))))
        for starts in packings:
            attributes = {
                name: [draw.randint(0, length // len(starts) + 3) for _ in starts]
                for name in pattern.attributes
                if name != "length"
            }
            yield Documents(length, starts, attributes)


def check_text(pattern: Pattern, documents: Documents, heads: int) -> None:
    """The text reading, evaluated by Python itself."""
    q, k, h = torch.meshgrid(torch.arange(70), torch.arange(70), torch.arange(heads), indexing="ij")
    doc = documents.doc(pattern.attributes, torch.zeros_like(q))
    said = torch.as_tensor(eval(pattern.text, {"q": q, "k": k, "h": h, "doc": doc}))
    refuse(said != pattern.mask(q, k, h, doc), f"{pattern}: its text {pattern.text!r} is not its predicate")


def check_tables(tiles: Tiles, seen: Tensor, block_q: int, block_k: int) -> tuple[int, int, int]:
    """The tile reading. Returns how many tiles are listed, are empty, and are full but called partial."""
    some, every = _in_tiles(seen, block_q, block_k)
    table = _lists(tiles.table(block_q, block_k))
    transposed = _lists(tiles.transposed(block_q, block_k))
    where = f"{tiles.pattern} on {tiles.documents}, queries {tiles.queries}, tiles of {block_q} x {block_k}"
    for (full, partial), name in ((table, "the table"), ([x.mT for x in transposed], "the transpose")):
        refuse(full & partial, f"{name} lists a tile twice: {where}")
        refuse(some & ~full & ~partial, f"{name} misses a tile in which something is seen: {where}")
        refuse(full & ~every, f"{name} calls a tile full that is not: {where}")
    full, partial = table
    refuse((partial != transposed[1].mT), f"table and transpose disagree: {where}")
    return int((full | partial).sum()), int((partial & ~some).sum()), int((partial & every).sum())


def check_shards(tiles: Tiles, seen: Tensor, draw: random.Random) -> None:
    """The shard reading, on random chunks of queries and of keys."""
    length = tiles.documents.length
    sides = []
    for _ in range(2):
        edges = [0, *sorted(draw.sample(range(1, length), min(draw.randint(0, 7), length - 1))), length]
        sides.append(list(itertools.pairwise(edges)))
    first, end = tiles.queries
    asking = [(max(a, first), min(b, end)) for a, b in sides[0] if max(a, first) < min(b, end)]
    want = torch.stack(
        [
            torch.stack([seen[:, a - first : b - first, c:d].flatten(1).any(1) for c, d in sides[1]], 1)
            for a, b in asking
        ],
        1,
    )
    got = tiles.needs(asking, sides[1])
    refuse(got != want, f"chunks {asking} need of {sides[1]} what is not seen: {tiles.pattern} on {tiles.documents}")


def check_time(pattern: Pattern, documents: Documents, heads: int, draw: random.Random) -> None:
    """The time reading and the groups of heads, in a document of its own."""
    end = max(documents.length // 2, 1)
    doc = {name: values[0] for name, values in documents.attributes.items()}
    tiles = pattern.tiles(Documents(end, (0,), {name: (value,) for name, value in doc.items()}), heads)
    seen = brute_force(tiles)
    for now in sorted({0, end - 1, draw.randrange(end), draw.randrange(end)}):
        kept = pattern.kept(now, end, heads, **doc)
        marked = torch.zeros(tiles.heads, now, dtype=torch.bool)
        for head in range(tiles.heads):
            for a, b in kept.runs(head):
                refuse(marked[head, a:b], f"{pattern} keeps a key twice at {now}")
                marked[head, a:b] = True
        refuse(marked != seen[:, now:, :now].any(1), f"{pattern} keeps the wrong keys at {now} of {end}")
    groups: list[list[int]] = []
    for head in range(tiles.heads):
        same = [group for group in groups if torch.equal(seen[head], seen[group[0]])]
        same[0].append(head) if same else groups.append([head])
    want = groups if tiles.heads > 1 else [list(range(heads))]
    got = pattern.alike(heads, end, **doc)
    assert got == want, f"{pattern}: heads that see alike are {want}, not {got}"


def check_what_follows(tiles: Tiles, heads: int) -> None:
    """How many keys a query sees, and which tokens come to know of later ones."""
    pattern, documents = tiles.pattern, tiles.documents
    seen = brute_force(tiles)
    doc = documents.doc(("length", *pattern.attributes), documents.of_token)
    count = pattern.num_seen(documents.positions.long(), torch.arange(tiles.heads)[:, None], doc)
    if count is not None:
        wrong = count.broadcast_to(seen.shape[:2]) != seen.sum(2)
        refuse(wrong, f"{pattern}.num_seen is not what is seen on {documents}")
    for start, end in documents.bounds.T.tolist():
        for head in range(tiles.heads):
            pieces = pattern.pieces(end - start, head)
            if pieces is not None:
                own = Documents(end - start, tuple(pieces))
                wrong = seen[head, start:end, start:end] != brute_force(Causal().tiles(own))[0]
                refuse(wrong, f"{pattern}.pieces({end - start}, head={head}) is not what is seen on {documents}")
    index = torch.arange(documents.length)
    farthest = torch.where(seen, index, -1).amax((0, 2)).tolist()
    known, want = -1, []
    for token, far in enumerate(farthest):
        known = max(known, far)
        want.append(known > token)
    refuse(tiles.leaks() != torch.tensor(want), f"{pattern} leaks other targets on {documents}")


def brute_force(tiles: Tiles) -> Tensor:
    """Every pair of query and key: bool [heads, Lq, L]."""
    query, key = torch.arange(*tiles.queries)[:, None], torch.arange(tiles.documents.length)
    return tiles.seen(query, key, torch.arange(tiles.heads)[:, None, None])


def _in_tiles(seen: Tensor, block_q: int, block_k: int) -> tuple[Tensor, Tensor]:
    """Whether some, and whether every, pair of a tile is seen; what lies beyond the end is not."""
    heads, num_queries, length = seen.shape
    rows, columns = -(-num_queries // block_q), -(-length // block_k)
    padded = seen.new_zeros(heads, rows * block_q, columns * block_k)
    padded[:, :num_queries, :length] = seen
    cut = padded.view(heads, rows, block_q, columns, block_k)
    return cut.any(4).any(2), cut.all(4).all(2)


def _lists(table: TileTable) -> tuple[Tensor, Tensor]:
    """Full and partial tiles as bool [heads, rows, columns]."""
    marked = []
    for pointer, index in (table.full_lists(), (table.partial_pointer, table.partial_index)):
        flat = torch.zeros(table.heads * table.num_rows, table.num_columns, dtype=torch.bool)
        flat[torch.arange(flat.shape[0]).repeat_interleave(pointer.diff()), index] = True
        marked.append(flat.view(table.heads, table.num_rows, table.num_columns))
    return marked[0], marked[1]


def check_attention(tiles: Tiles, num_kv_heads: int, seed: int) -> None:
    """Gathered attention and its gradients against the dense oracle, in float64."""
    (first, end), length, width = tiles.queries, tiles.documents.length, 8
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, 2 * num_kv_heads, end - first, width), *[(1, num_kv_heads, length, width)] * 2]
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    weight = torch.randn(shapes[0], generator=generator, dtype=torch.float64)
    results = []
    for impl in ("dense", "gather"):
        out = attend(inputs[0], inputs[1], inputs[2], tiles, impl)
        results.append((out, *torch.autograd.grad(out, inputs, weight)))
    for name, dense, gathered in zip(("output", "dq", "dk", "dv"), *results, strict=True):
        error = float((dense - gathered).detach().abs().max())
        assert error < 1e-10, f"{name} of gathered attention is off by {error}: {tiles.pattern} on {tiles.documents}"


def refuse(wrong: Tensor, what: str) -> None:
    """Raises, with the first place and their number, if anything is wrong."""
    if bool(wrong.any()):
        raise AssertionError(f"{what}; first at {tuple(wrong.nonzero()[0].tolist())} of {int(wrong.sum())}")
