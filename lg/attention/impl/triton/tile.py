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
    BOUNDED: tl.constexpr, TMA: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Rows ``first`` to ``first + ROWS`` of one head: [ROWS, D]; 0 beyond ``limit`` if BOUNDED, and beyond WIDTH.

    ``X`` is a pointer, or with TMA a descriptor of blocks [1, 1, ROWS, D], which is bounded always.
    """
    if TMA:
        x = X.load([batch, head, first, 0]).reshape(ROWS, D)
    else:
        row = tl.arange(0, ROWS)
        column = tl.arange(0, D)
        at = X + batch.to(tl.int64) * x_batch + head.to(tl.int64) * x_head + first.to(tl.int64) * x_token
        at = at + row[:, None] * x_token + column[None, :]
        if BOUNDED and WIDTH < D:
            x = tl.load(at, mask=(first + row < limit)[:, None] & (column < WIDTH)[None, :], other=0.0)
        elif BOUNDED:
            x = tl.load(at, mask=(first + row < limit)[:, None], other=0.0)
        elif WIDTH < D:
            x = tl.load(at, mask=(column < WIDTH)[None, :], other=0.0)
        else:
            x = tl.load(at)
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
    """An item's first full tile, how many of its run are left, and the run."""
    run = tl.load(ITEM + 2)
    skip = tl.load(ITEM + 3)
    return tl.load(RUN_FIRST + run) + skip, tl.load(RUN_COUNT + run) - skip, run


@triton.jit
def following(tile, left, run, RUN_FIRST, RUN_COUNT):
    """The next full tile: the next of the run, or the first of the next run, which alone is looked up."""
    ends = left == 1
    run += ends.to(tl.int32)
    first = tl.load(RUN_FIRST + run, mask=ends, other=0)
    count = tl.load(RUN_COUNT + run, mask=ends, other=0)
    return tl.where(ends, first, tile + 1), tl.where(ends, count, left - 1), run


@triton.jit
def document_of(token, STARTS, ENDS, length, N: tl.constexpr, PACKED: tl.constexpr):
    """The first token and the end of the document of each of N tokens; of all there are, if they are one document."""
    start = tl.zeros([N], tl.int32)
    end = start + length
    if PACKED:
        start = tl.load(STARTS + token)
        end = tl.load(ENDS + token)
    return start, end
