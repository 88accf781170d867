"""What the attention kernels share: how a tile is loaded and stored, which tile follows, and who sees whom.

Legend: Q tokens in a block of queries, K in a block of keys, D head width, padded to a power of two (WIDTH is the true
one). All positions are int32, all offsets of whole blocks int64.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_rows(
    X, batch, head, first, x_batch, x_head, x_token, limit, ROWS: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr,
    TMA: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Rows ``first`` to ``first + ROWS`` of one head: [ROWS, D]; 0 beyond ``limit`` and WIDTH.

    ``X`` is a pointer, or with TMA a descriptor of blocks [1, 1, ROWS, D].
    """
    if TMA:
        x = X.load([batch, head, first, 0]).reshape(ROWS, D)
    else:
        row = tl.arange(0, ROWS)
        column = tl.arange(0, D)
        at = X + batch.to(tl.int64) * x_batch + head.to(tl.int64) * x_head + first.to(tl.int64) * x_token
        at = at + row[:, None] * x_token + column[None, :]
        within = (first + row < limit)[:, None]
        if WIDTH < D:
            within &= (column < WIDTH)[None, :]
        x = tl.load(at, mask=within, other=0.0)
    # Triton's interpreter has no bfloat16 arithmetic.
    if UPCAST:
        x = x.to(tl.float32)
    return x


@triton.jit
def store_rows(
    X, value, batch, head, first, x_batch, x_head, x_token, limit, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    D: tl.constexpr,
):  # fmt: skip
    """The inverse of `load_rows` by a pointer, bounded, in the type of what is stored to."""
    row = tl.arange(0, ROWS)
    column = tl.arange(0, D)
    at = X + batch.to(tl.int64) * x_batch + head.to(tl.int64) * x_head + first.to(tl.int64) * x_token
    at = at + row[:, None] * x_token + column[None, :]
    tl.store(at, value.to(X.dtype.element_ty), mask=(first + row < limit)[:, None] & (column < WIDTH)[None, :])


@triton.jit
def begun(ITEM, RUN_FIRST, RUN_COUNT):
    """Where an item begins: its first tile, how many of its run are left, and the next run: number, first, count."""
    run = tl.load(ITEM + 2) + 1
    return tl.load(ITEM + 3), tl.load(ITEM + 4), run, tl.load(RUN_FIRST + run), tl.load(RUN_COUNT + run)


@triton.jit
def following(place, RUN_FIRST, RUN_COUNT):
    """The next tile: the next of the run, or the first of the next run, which was looked up a tile before."""
    tile, left, run, first, count = place
    ends = left == 1
    run += ends.to(tl.int32)
    return (
        tl.where(ends, first, tile + 1),
        tl.where(ends, count, left - 1),
        run,
        tl.load(RUN_FIRST + run),
        tl.load(RUN_COUNT + run),
    )


@triton.jit
def chosen(condition, place, other):
    """The one place or the other."""
    return (
        tl.where(condition, place[0], other[0]),
        tl.where(condition, place[1], other[1]),
        tl.where(condition, place[2], other[2]),
        tl.where(condition, place[3], other[3]),
        tl.where(condition, place[4], other[4]),
    )


@triton.jit
def token_of(TOKENS, index, first, limit, length, PART: tl.constexpr):
    """The token that each row of a block is: any token, beyond ``limit`` rows."""
    return tl.load(TOKENS + index, mask=index < limit, other=0) if PART else tl.minimum(first + index, length - 1)


@triton.jit
def seen_token(TOKENS, index, first, limit, PART: tl.constexpr):
    """The token that each row of a block is: one before all documents, beyond ``limit`` rows."""
    token = tl.load(TOKENS + index, mask=index < limit, other=-1) if PART else first + index
    return tl.where(index < limit, token, -1)


@triton.jit
def document_of(token, STARTS, ENDS, length, N: tl.constexpr, PACKED: tl.constexpr):
    """The first token and the end of the document of each of N tokens; of all there are, if they are one document."""
    start = tl.zeros([N], tl.int32)
    end = start + length
    if PACKED:
        start = tl.load(STARTS + token)
        end = tl.load(ENDS + token)
    return start, end
