"""The contract of a pattern, held to brute force: the whole test file that a user's own pattern needs.

def test_near():
    check_pattern(Near(width=100))
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lg.attention import Documents, Pattern, Tiles, TileTable, attend

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


def check_pattern(
    pattern: Pattern,
    num_kv_heads: int = 3,
    lengths: Sequence[int] = LENGTHS,
    blocks: Sequence[tuple[int, int]] = BLOCKS,
    seed: int = 0,
) -> PatternReport:
    """Holds every reading of a pattern to its predicate, token by token, on random packings of documents.

    Checked: the text is the predicate; masks broadcast; no tile is missing, or called full when it is not, at any tile
    size, in the table and in its transpose; attention over gathered tiles equals the dense oracle in float64, with all
    three gradients.

    Args:
        pattern: what to check.
        num_kv_heads: KV heads to try, for a pattern whose heads differ.
        lengths: tokens in a packed sequence.
        blocks: tile sizes, (queries, keys).
        seed: of the packings and values.

    Returns:
        How tight the tables are. They may list more than they must; a pattern that overrides `tile` can mend that.

    Raises:
        AssertionError: naming what disagrees, where.
    """
    listed = empty = full_as_partial = 0
    _check_text(pattern)
    for documents in _layouts(lengths, seed):
        tiles = pattern.tiles(documents, num_kv_heads)
        seen = _brute_force(tiles)
        for block_q, block_k in blocks:
            some, every = _in_tiles(seen, block_q, block_k)
            table = _lists(tiles.table(block_q, block_k))
            transposed = _lists(tiles.transposed(block_q, block_k))
            where = f"{pattern} on {documents}, tiles of {block_q} x {block_k}"
            for (full, partial), name in ((table, "the table"), ([x.mT for x in transposed], "the transpose")):
                _refuse(full & partial, f"{name} lists a tile twice: {where}")
                _refuse(some & ~full & ~partial, f"{name} misses a tile in which something is seen: {where}")
                _refuse(full & ~every, f"{name} calls a tile full that is not: {where}")
            full, partial = table
            _refuse((partial != transposed[1].mT), f"table and transpose disagree: {where}")
            listed += int((full | partial).sum())
            empty += int((partial & ~some).sum())
            full_as_partial += int((partial & every).sum())
        _check_attention(tiles, num_kv_heads, seed)
    return PatternReport(pattern.text, pattern.heads_differ, listed, empty, full_as_partial)


def _layouts(lengths: Sequence[int], seed: int) -> Iterator[Documents]:
    """Each length as one document, and as up to six of random lengths."""
    draw = random.Random(seed)
    for length in lengths:
        yield Documents(length)
        if length > 1:
            num = min(draw.randint(2, 6), length)
            yield Documents(length, (0, *sorted(draw.sample(range(1, length), num - 1))))


def _check_text(pattern: Pattern) -> None:
    q, k, h = torch.meshgrid(torch.arange(70), torch.arange(70), torch.arange(3), indexing="ij")
    said = torch.as_tensor(eval(pattern.text, {"q": q, "k": k, "h": h}))
    _refuse(said != pattern.mask(q, k, h), f"{pattern}: its text {pattern.text!r} is not its predicate")


def _brute_force(tiles: Tiles) -> Tensor:
    """Every pair of tokens: bool [heads, L, L]."""
    query, key = torch.arange(*tiles.queries)[:, None], torch.arange(tiles.documents.length)
    return tiles.seen(query, key, torch.arange(tiles.heads)[:, None, None])


def _in_tiles(seen: Tensor, block_q: int, block_k: int) -> tuple[Tensor, Tensor]:
    """Whether some, and whether every, pair of a tile is seen; what lies beyond the end is not."""
    heads, length, _ = seen.shape
    rows, columns = -(-length // block_q), -(-length // block_k)
    padded = seen.new_zeros(heads, rows * block_q, columns * block_k)
    padded[:, :length, :length] = seen
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


def _check_attention(tiles: Tiles, num_kv_heads: int, seed: int) -> None:
    length, width = tiles.documents.length, 8
    if length > 1000:
        return
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, heads, length, width) for heads in (2 * num_kv_heads, num_kv_heads, num_kv_heads)]
    inputs = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    weight = torch.randn(shapes[0], generator=generator, dtype=torch.float64)
    results = []
    for impl in ("dense", "gather"):
        out = attend(inputs[0], inputs[1], inputs[2], tiles, impl)
        results.append((out, *torch.autograd.grad(out, inputs, weight)))
    for name, dense, gathered in zip(("output", "dq", "dk", "dv"), *results, strict=True):
        error = float((dense - gathered).detach().abs().max())
        assert error < 1e-10, f"{name} of gathered attention is off by {error}: {tiles.pattern} on {tiles.documents}"


def _refuse(wrong: Tensor, what: str) -> None:
    if bool(wrong.any()):
        raise AssertionError(f"{what}; first at {tuple(wrong.nonzero()[0].tolist())} of {int(wrong.sum())}")
