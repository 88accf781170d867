"""Kernels for one new token of each sequence: its key and value go into their page, and it reads what its pages hold.

One program reads a share of the pages of one sequence for the query heads of one KV head, which see the same keys; a
second kernel joins the shares by their log-sum-exps (Flash-Decoding: Dao et al. 2023; the softmax is that of
FlashAttention, arXiv 2205.14135, algorithm 1). Whatever changes from token to token is read from the device.

Keys and values lie as they are (BITS 0), or as codes of 8 or 4 bits, two of them in a byte: feature ``i`` in the lower
half, ``i + WIDTH / 2`` in the upper. Codes are whole numbers that any type holds exactly: they are multiplied as they
are, and what a code stands for, ``code * step + least``, is mended in the scores and in the weights. To the tensor
cores (HALF) they are float16, and so is what they are multiplied by, whose range is kept within float16's:

- A query is multiplied by a power of two, so that its greatest feature is 1 or more, and below 2. What float16 has no
  bits for is below 2^-25 of that feature, far less than its own rounding to 16 bits.
- A weight times its step is below 2^15, as `_ROOM` says, and the greatest so far is 2^14 or more. What is lost of the
  small ones is below 2^-25 each: of 2^20 tokens together below 2^-19 of what the greatest alone adds.

Legend: S sequences, H query heads, G KV heads, ROWS the query heads of a KV head, padded, D head width, padded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lg.attention.impl.triton.codes import (
    exponent_of,
    load_part,
    load_steps,
    load_words,
    numbers,
    power_of,
    store_part,
)

# The greatest product of a weight and its step has this exponent when it is the first or a new greatest.
_ROOM = tl.constexpr(14.0)
# float16 has no step above 0 and below: a vector of equal features has none, but a weight.
_LEAST_STEP = tl.constexpr(2.0**-25)
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


@triton.jit(do_not_specialize=_ANY)
def paged_attention(
    QUERY, KEY, KEY_SCALES, VALUE, VALUE_SCALES, OUT, LSE,
    SLOTS, LENGTHS, LOGICAL, PHYSICAL, COUNTS, HEADS, ATTRIBUTES,
    q_row, q_head, num_groups, num_entries, num_slots, num_heads, scale,
    SEES: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr,
    PAGE: tl.constexpr, TOKENS: tl.constexpr, LEAST: tl.constexpr, KEY_BITS: tl.constexpr, VALUE_BITS: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """A share's output and log-sum-exp. ``scale`` and LSE are in powers of two; OUT is [S, H, shares, WIDTH], LSE
    [S, H, shares]. A page is read TOKENS at a time.
    """
    VALUE_PARTS: tl.constexpr = 4 if VALUE_BITS > 0 else 1
    PACKED: tl.constexpr = HALF and not UPCAST
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
    of_dot = tl.full([ROWS], scale, tl.float32)
    if KEY_BITS > 0:
        q0 = load_part(QUERY, at_query, asks, 0, WIDTH, D, KEY_BITS)
        q1 = load_part(QUERY, at_query, asks, 1, WIDTH, D, KEY_BITS)
        q2 = load_part(QUERY, at_query, asks, 2, WIDTH, D, KEY_BITS)
        q3 = load_part(QUERY, at_query, asks, 3, WIDTH, D, KEY_BITS)
        of_least = tl.sum(q0 + q1 + q2 + q3, 1) * scale
        if HALF:
            size = tl.maximum(tl.maximum(tl.abs(q0), tl.abs(q1)), tl.maximum(tl.abs(q2), tl.abs(q3)))
            power, inverse = power_of(tl.max(size, 1))
            of_dot *= power
            q0 = (q0 * inverse[:, None]).to(tl.float16)
            q1 = (q1 * inverse[:, None]).to(tl.float16)
            q2 = (q2 * inverse[:, None]).to(tl.float16)
            q3 = (q3 * inverse[:, None]).to(tl.float16)
    else:
        q = load_features(QUERY, at_query, asks, 0, 1, D, WIDTH, UPCAST)

    # The running output, in parts if values are, what weights are taken from, and their sum, in powers of two.
    acc = tl.zeros([ROWS, D // VALUE_PARTS], tl.float32)
    acc1, acc2, acc3 = acc, acc, acc
    most = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    # Beside codes, weights and what the least of codes adds to all features are summed over tokens at the end.
    if VALUE_BITS > 0:
        total = tl.zeros([ROWS, TOKENS], tl.float32)
    added = total
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
        if KEY_BITS > 0:
            k0, k1, k2, k3 = numbers(load_words(KEY, at, seen, WIDTH, D, KEY_BITS), KEY_BITS, HALF, PACKED)
            score = tl.dot(q0, tl.trans(k0), input_precision=PRECISION)
            score = tl.dot(q1, tl.trans(k1), score, input_precision=PRECISION)
            score = tl.dot(q2, tl.trans(k2), score, input_precision=PRECISION)
            score = tl.dot(q3, tl.trans(k3), score, input_precision=PRECISION)
            step, least = load_steps(KEY_SCALES, at, seen)
            score = score * of_dot[:, None] * step[None, :] + of_least[:, None] * least[None, :]
        else:
            k = load_features(KEY, at, seen, 0, WIDTH, D, WIDTH, UPCAST)
            score = tl.dot(q, tl.trans(k.to(q.dtype)), input_precision=PRECISION) * scale
        score = tl.where(seen[None, :], score, float("-inf"))
        if VALUE_BITS > 0:
            step, least = load_steps(VALUE_SCALES, at, seen)
        if VALUE_BITS > 0 and HALF:
            over = exponent_of(tl.maximum(tl.abs(step), _LEAST_STEP)) - _ROOM
            new = tl.maximum(most, tl.max(score + over[None, :], 1))
        else:
            new = tl.maximum(most, tl.max(score, 1))
        # A query that has seen nothing yet has minus infinity, from which nothing can be taken.
        from_here = tl.where(new == float("-inf"), 0.0, new)
        weight = tl.exp2(score - from_here[:, None])
        shrink = tl.exp2(most - from_here)
        acc *= shrink[:, None]
        if VALUE_BITS > 0:
            total = total * shrink[:, None] + weight
            added = added * shrink[:, None] + weight * least[None, :]
            weight *= step[None, :]
            if HALF:
                weight = weight.to(tl.float16)
            v0, v1, v2, v3 = numbers(load_words(VALUE, at, seen, WIDTH, D, VALUE_BITS), VALUE_BITS, HALF, PACKED)
            acc = tl.dot(weight, v0, acc, input_precision=PRECISION)
            acc1 = tl.dot(weight, v1, acc1 * shrink[:, None], input_precision=PRECISION)
            acc2 = tl.dot(weight, v2, acc2 * shrink[:, None], input_precision=PRECISION)
            acc3 = tl.dot(weight, v3, acc3 * shrink[:, None], input_precision=PRECISION)
        else:
            total = total * shrink + tl.sum(weight, 1)
            v = load_features(VALUE, at, seen, 0, WIDTH, D, WIDTH, UPCAST)
            TYPE: tl.constexpr = tl.float32 if UPCAST else QUERY.dtype.element_ty
            acc = tl.dot(weight.to(TYPE), v.to(TYPE), acc, input_precision=PRECISION)
        most = new

    sum_of_weights = total
    if VALUE_BITS > 0:
        sum_of_weights = tl.sum(total, 1)
    sum_of_weights = tl.where(sum_of_weights == 0.0, 1.0, sum_of_weights)
    at_out = (row.to(tl.int64) * num_heads + head) * num_shares + share
    tl.store(LSE + at_out, most + tl.log2(sum_of_weights), mask=asks)
    at_out *= WIDTH
    if VALUE_BITS > 0:
        to_all, over_all = tl.sum(added, 1)[:, None], sum_of_weights[:, None]
        store_part(OUT, (acc + to_all) / over_all, at_out, asks, 0, WIDTH, D, VALUE_BITS)
        store_part(OUT, (acc1 + to_all) / over_all, at_out, asks, 1, WIDTH, D, VALUE_BITS)
        store_part(OUT, (acc2 + to_all) / over_all, at_out, asks, 2, WIDTH, D, VALUE_BITS)
        store_part(OUT, (acc3 + to_all) / over_all, at_out, asks, 3, WIDTH, D, VALUE_BITS)
    else:
        column = tl.arange(0, D)
        within = asks[:, None] & (column < WIDTH)[None, :]
        out = (acc / sum_of_weights[:, None]).to(OUT.dtype.element_ty)
        tl.store(OUT + at_out[:, None] + column[None, :], out, mask=within)


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
