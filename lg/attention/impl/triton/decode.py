"""Kernels for one new token of each sequence: its key and value go into their page, and it reads what its pages hold.

One program reads a share of the pages of one sequence for the query heads of one KV head, which see the same keys; a
second kernel joins the shares by their log-sum-exps (Flash-Decoding: Dao et al. 2023; the softmax is that of
FlashAttention, arXiv 2205.14135, algorithm 1). Whatever changes from token to token is read from the device.

Keys and values lie as they are (BITS 0), or as codes of 8 or 4 bits, two of them in a byte: feature ``i`` in the lower
half, ``i + WIDTH / 2`` in the upper. Codes are whole numbers that any type holds exactly: they are multiplied as they
are, and what a code stands for, ``code * step + least``, is mended in the scores and in the weights.

Legend: S sequences, H query heads, G KV heads, ROWS the query heads of a KV head, padded, D head width, padded.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Else their values would make kernels of their own.
_ANY = ["num_groups", "num_entries", "num_slots", "num_heads", "num_shares"]


@triton.jit
def page_of(HEADS, kv_head):
    """Where a KV head's pages lie: its group, and the number of its page 0 and from one of its pages to the next."""
    return tl.load(HEADS + kv_head * 3), tl.load(HEADS + kv_head * 3 + 1), tl.load(HEADS + kv_head * 3 + 2)


@triton.jit
def load_features(
    X, at, seen, first, WIDTH: tl.constexpr, D: tl.constexpr, LIMIT: tl.constexpr, UPCAST: tl.constexpr
):  # fmt: skip
    """Features ``first`` to ``first + LIMIT`` of rows of WIDTH: [rows, D]; 0 where a row is not seen and beyond."""
    column = tl.arange(0, D)
    within = seen[:, None]
    if LIMIT < D:
        within &= (column < LIMIT)[None, :]
    x = tl.load(X + (at * WIDTH)[:, None] + (first + column)[None, :], mask=within, other=0.0)
    # Triton's interpreter has no bfloat16 arithmetic.
    if UPCAST:
        x = x.to(tl.float32)
    return x


@triton.jit
def load_steps(SCALES, at, seen):
    """What codes are multiplied by, and what is then added."""
    step = tl.load(SCALES + at * 2, mask=seen, other=0.0).to(tl.float32)
    least = tl.load(SCALES + at * 2 + 1, mask=seen, other=0.0).to(tl.float32)
    return step, least


@triton.jit(do_not_specialize=_ANY)
def paged_attention(
    QUERY, KEY, KEY_SCALES, VALUE, VALUE_SCALES, OUT, LSE,
    SLOTS, LENGTHS, LOGICAL, PHYSICAL, COUNTS, HEADS, ATTRIBUTES,
    q_row, q_head, num_groups, num_entries, num_slots, num_heads, scale,
    SEES: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr,
    PAGE: tl.constexpr, TOKENS: tl.constexpr, LEAST: tl.constexpr, KEY_BITS: tl.constexpr, VALUE_BITS: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """A share's output and log-sum-exp. ``scale`` and LSE are in powers of two; OUT is [S, H, shares, WIDTH], LSE
    [S, H, shares]. A page is read TOKENS at a time.
    """
    KEY_HALVES: tl.constexpr = 2 if KEY_BITS == 4 else 1
    VALUE_HALVES: tl.constexpr = 2 if VALUE_BITS == 4 else 1
    KEY_LIMIT: tl.constexpr = WIDTH // KEY_HALVES
    VALUE_LIMIT: tl.constexpr = WIDTH // VALUE_HALVES
    share, kv_head, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_shares = tl.num_programs(0)
    slot = tl.load(SLOTS + row)
    length = tl.load(LENGTHS + row)
    group, base, stride = page_of(HEADS, kv_head)

    # Of its own entries each share has a run; a short list is dealt to a few shares only.
    table = (slot * num_groups + group).to(tl.int64)
    count = tl.where(length > 0, tl.load(COUNTS + table), 0)
    size = tl.maximum((count + num_shares - 1) // num_shares, LEAST)
    begin = share * size
    end = tl.minimum(begin + size, count)
    LOGICAL += table * num_entries
    PHYSICAL += table * num_entries

    member = tl.arange(0, ROWS)
    head = kv_head * GROUPS + member
    asks = member < GROUPS
    at_query = row.to(tl.int64) * q_row + head * q_head
    q = load_features(QUERY, at_query, asks, 0, 1, D // KEY_HALVES, KEY_LIMIT, UPCAST)
    other_q = q
    sum_q = tl.sum(q.to(tl.float32), 1)
    if KEY_BITS == 4:
        other_q = load_features(QUERY, at_query, asks, KEY_LIMIT, 1, D // KEY_HALVES, KEY_LIMIT, UPCAST)
        sum_q += tl.sum(other_q.to(tl.float32), 1)

    # The running output, in halves if values are, greatest score and sum of weights, in powers of two.
    acc = tl.zeros([ROWS, D // VALUE_HALVES], tl.float32)
    other_acc = tl.zeros([ROWS, D // VALUE_HALVES], tl.float32)
    most = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    query = tl.zeros([TOKENS], tl.int32) + (length - 1)
    of_head = tl.zeros([TOKENS], tl.int32) + kv_head

    PARTS: tl.constexpr = PAGE // TOKENS
    for i in range(begin * PARTS, end * PARTS):
        entry = i // PARTS
        place = (i % PARTS) * TOKENS + tl.arange(0, TOKENS)
        number = tl.load(PHYSICAL + entry) * stride + base
        token = tl.load(LOGICAL + entry) * PAGE + place
        # Nothing is read that is not seen: what lies there may be anything.
        seen = SEES(query, token, of_head, ATTRIBUTES, num_slots, slot) & (token < length)
        at = number.to(tl.int64) * PAGE + place
        if KEY_BITS == 4:
            codes = load_features(KEY, at, seen, 0, KEY_LIMIT, D // 2, KEY_LIMIT, False)
            score = tl.dot(q, tl.trans((codes & 15).to(q.dtype)), input_precision=PRECISION)
            score = tl.dot(other_q, tl.trans((codes >> 4).to(q.dtype)), score, input_precision=PRECISION)
        else:
            k = load_features(KEY, at, seen, 0, WIDTH, D, WIDTH, UPCAST)
            score = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision=PRECISION)
        if KEY_BITS > 0:
            step, least = load_steps(KEY_SCALES, at, seen)
            score = score * step[None, :] + sum_q[:, None] * least[None, :]
        score = tl.where(seen[None, :], score * scale, float("-inf"))
        new = tl.maximum(most, tl.max(score, 1))
        # A query that has seen nothing yet has minus infinity, from which nothing can be taken.
        from_here = tl.where(new == float("-inf"), 0.0, new)
        weight = tl.exp2(score - from_here[:, None])
        shrink = tl.exp2(most - from_here)
        total = total * shrink + tl.sum(weight, 1)
        acc *= shrink[:, None]
        if VALUE_BITS > 0:
            step, least = load_steps(VALUE_SCALES, at, seen)
            added = tl.sum(weight * least[None, :], 1)
            weight *= step[None, :]
            acc += added[:, None]
        if VALUE_BITS == 4:
            codes = load_features(VALUE, at, seen, 0, VALUE_LIMIT, D // 2, VALUE_LIMIT, False)
            acc = tl.dot(weight.to(q.dtype), (codes & 15).to(q.dtype), acc, input_precision=PRECISION)
            other_acc = other_acc * shrink[:, None] + added[:, None]
            other_acc = tl.dot(weight.to(q.dtype), (codes >> 4).to(q.dtype), other_acc, input_precision=PRECISION)
        else:
            v = load_features(VALUE, at, seen, 0, WIDTH, D, WIDTH, UPCAST)
            acc = tl.dot(weight.to(q.dtype), v.to(q.dtype), acc, input_precision=PRECISION)
        most = new

    total = tl.where(total == 0.0, 1.0, total)
    at_out = (row.to(tl.int64) * num_heads + head) * num_shares + share
    tl.store(LSE + at_out, most + tl.log2(total), mask=asks)
    column = tl.arange(0, D // VALUE_HALVES)
    OUT += (at_out * WIDTH)[:, None] + column[None, :]
    within = asks[:, None] & (column < VALUE_LIMIT)[None, :]
    tl.store(OUT, (acc / total[:, None]).to(OUT.dtype.element_ty), mask=within)
    if VALUE_BITS == 4:
        tl.store(OUT + VALUE_LIMIT, (other_acc / total[:, None]).to(OUT.dtype.element_ty), mask=within)


@triton.jit(do_not_specialize=_ANY)
def join_shares(SHARES, LSE, OUT, num_shares, WIDTH: tl.constexpr, D: tl.constexpr, MOST: tl.constexpr):  # fmt: skip
    """The output [S * H, WIDTH] of the shares [S * H, shares, WIDTH]; 0 of what sees nothing."""
    row = tl.program_id(0).to(tl.int64)
    share = tl.arange(0, MOST)
    column = tl.arange(0, D)
    there = share < num_shares
    lse = tl.load(LSE + row * num_shares + share, mask=there, other=float("-inf"))
    most = tl.max(lse, 0)
    weight = tl.exp2(lse - tl.where(most == float("-inf"), 0.0, most))
    total = tl.sum(weight, 0)
    x = tl.load(
        SHARES + (row * num_shares + share)[:, None] * WIDTH + column[None, :],
        mask=there[:, None] & (column < WIDTH)[None, :],
        other=0.0,
    )
    out = tl.sum(x * weight[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    tl.store(OUT + row * WIDTH + column, out.to(OUT.dtype.element_ty), mask=column < WIDTH)


@triton.jit
def code_of(x, step, least, LEVELS: tl.constexpr):
    """The nearest code, as `lg.inference.formats` rounds it."""
    code = tl.floor(tl.div_rn(x - least, tl.where(step > 0.0, step, 1.0)) + 0.5)
    code = tl.where(step > 0.0, code, 0.0)
    return tl.minimum(tl.maximum(code, 0.0), LEVELS).to(tl.uint8)


@triton.jit
def keep_vector(
    X, ROOM, SCALES, at, WIDTH: tl.constexpr, D: tl.constexpr, BITS: tl.constexpr
):  # fmt: skip
    """Writes one vector to row ``at`` of a room; as it is, if the room is of its type."""
    if BITS == 0:
        column = tl.arange(0, D)
        tl.store(ROOM + at * WIDTH + column, tl.load(X + column, mask=column < WIDTH), mask=column < WIDTH)
    else:
        HALVES: tl.constexpr = 2 if BITS == 4 else 1
        LIMIT: tl.constexpr = WIDTH // HALVES
        LEVELS: tl.constexpr = 15.0 if BITS == 4 else 255.0
        column = tl.arange(0, D // HALVES)
        within = column < LIMIT
        x = tl.load(X + column, mask=within, other=0.0).to(tl.float32)
        smallest = tl.min(tl.where(within, x, float("inf")), 0)
        greatest = tl.max(tl.where(within, x, float("-inf")), 0)
        other = x
        if BITS == 4:
            other = tl.load(X + LIMIT + column, mask=within, other=0.0).to(tl.float32)
            smallest = tl.minimum(smallest, tl.min(tl.where(within, other, float("inf")), 0))
            greatest = tl.maximum(greatest, tl.max(tl.where(within, other, float("-inf")), 0))
        # As they are kept: codes make up for what these lose.
        kept_least = smallest.to(tl.float16)
        least = kept_least.to(tl.float32)
        kept_step = tl.div_rn(tl.maximum(greatest - least, 0.0), LEVELS).to(tl.float16)
        step = kept_step.to(tl.float32)
        codes = code_of(x, step, least, LEVELS)
        if BITS == 4:
            codes |= code_of(other, step, least, LEVELS) << 4
        tl.store(ROOM + at * LIMIT + column, codes, mask=within)
        tl.store(SCALES + at * 2, kept_step)
        tl.store(SCALES + at * 2 + 1, kept_least)


@triton.jit(do_not_specialize=["num_groups"])
def write_pages(
    K, V, KEY, KEY_SCALES, VALUE, VALUE_SCALES, PAGES, TOKENS, HEADS,
    k_token, k_head, v_token, v_head, num_groups,
    WIDTH: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, KEY_BITS: tl.constexpr, VALUE_BITS: tl.constexpr,
):  # fmt: skip
    """Keys and values to their pages; a program has one token in one head."""
    row, kv_head = tl.program_id(0), tl.program_id(1)
    group, base, stride = page_of(HEADS, kv_head)
    page = tl.load(PAGES + row * num_groups + group)
    K += row.to(tl.int64) * k_token + kv_head * k_head
    V += row.to(tl.int64) * v_token + kv_head * v_head
    if page >= 0:
        at = (page * stride + base).to(tl.int64) * PAGE + tl.load(TOKENS + row) % PAGE
        keep_vector(K, KEY, KEY_SCALES, at, WIDTH, D, KEY_BITS)
        keep_vector(V, VALUE, VALUE_SCALES, at, WIDTH, D, VALUE_BITS)
