"""The kernel that multiplies one row with matrices, reading them once, at the memory's speed.

A program takes some rows of one matrix and all of their columns, a part of them at a time. A thread loads 16 bytes of
``x`` and as many of each row, so that ``x`` comes from the cache once for so many rows, and many loads are under way.
Each thread sums what it has loaded; threads are summed at the end. All in float32.

Legend: K columns of the matrices, N rows of one of them.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load(X, W, at, column, K: tl.constexpr, COLUMNS: tl.constexpr):
    """Columns of ``x`` and of rows of W; of columns that are not there 0."""
    if K % COLUMNS == 0:
        x = tl.load(X + column)
        w = tl.load(W + at[:, None] + column[None, :], eviction_policy="evict_first")
    else:
        x = tl.load(X + column, mask=column < K, other=0.0)
        within = (column < K)[None, :]
        w = tl.load(W + at[:, None] + column[None, :], mask=within, other=0.0, eviction_policy="evict_first")
    return x, w


@triton.jit
def _sums(x, w, WIDE: tl.constexpr):
    """Over WIDE columns each, which one thread has: [rows, columns / WIDE]."""
    product = w.to(tl.float32) * x.to(tl.float32)[None, :]
    return tl.sum(tl.reshape(product, [product.shape[0], product.shape[1] // WIDE, WIDE]), 2)


@triton.jit(do_not_specialize=["n0", "n1", "n2", "n3"])
def products(
    X, W0, W1, W2, W3, OUT, n0, n1, n2, n3,
    K: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """OUT [n0 + n1 + n2 + n3] = the products of X [K] with matrices [n, K], one after another; some may have no rows.

    WIDE: numbers in 16 bytes. STAGES: parts that are copied to shared memory ahead; with 1 the next is in registers.
    """
    block = tl.program_id(0)
    W, n, first, out = W0, n0, block, OUT
    end = tl.cdiv(n0, ROWS)
    if block >= end:
        W, n, first, out = W1, n1, block - end, OUT + n0
    end += tl.cdiv(n1, ROWS)
    if block >= end:
        W, n, first, out = W2, n2, block - end, OUT + (n0 + n1)
    end += tl.cdiv(n2, ROWS)
    if block >= end:
        W, n, first, out = W3, n3, block - end, OUT + (n0 + n1 + n2)
    row = first * ROWS + tl.arange(0, ROWS)
    # Instead of rows that are not there the last is read: a mask would be asked for each load.
    at = tl.minimum(row, n - 1).to(tl.int64) * K
    column = tl.arange(0, COLUMNS)
    sums = tl.zeros([ROWS, COLUMNS // WIDE], tl.float32)
    if STAGES > 1:
        for start in tl.range(0, K, COLUMNS, num_stages=STAGES):
            x, w = _load(X, W, at, start + column, K, COLUMNS)
            sums += _sums(x, w, WIDE)
    else:
        # A part is multiplied while the next is under way; else the compiler, to spare registers, loads row after row.
        x, w = _load(X, W, at, column, K, COLUMNS)
        for start in range(COLUMNS, K, COLUMNS):
            next_x, next_w = _load(X, W, at, start + column, K, COLUMNS)
            sums += _sums(x, w, WIDE)
            x, w = next_x, next_w
        sums += _sums(x, w, WIDE)
    tl.store(out + row, tl.sum(sums, 1).to(OUT.dtype.element_ty), mask=row < n)
