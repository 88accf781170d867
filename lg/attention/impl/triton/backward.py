"""The backward pass: one program computes the gradient of one block of queries; another, of one of keys and values.

As in FlashAttention-2 (Dao 2023, arXiv 2307.08691, section 3.1.2), scores are computed again from the log-sum-exp.
Each gradient is summed by one program in a fixed order, so there are no atomics and every run gives the same bits. A
block of keys that far more queries see than see others, as sinks are, is dealt to several programs, whose shares are
then summed.

Legend: as in forward.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lg.attention.impl.triton.tile import (
    begun,
    chosen,
    document_of,
    following,
    load_rows,
    seen_token,
    store_rows,
    token_of,
)

# Else their values would make kernels of their own.
_ANY = ["of_row", "num_kv_heads", "num_slots", "num_queries", "num_keys", "padded", "length", "first_query"]
_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["of_row", "num_heads", "num_queries", "num_keys", "padded", "length", "first_query"])
def attention_backward_query(
    QUERY, KEY, VALUE, OUT, GRAD, LSE, STATISTICS, DQ, ITEMS, RUN_FIRST, RUN_COUNT, STARTS, ENDS, ATTRIBUTES,
    QUERY_TOKENS, KEY_TOKENS,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token, o_batch, o_head, o_token,
    g_batch, g_head, g_token, dq_batch, dq_head, dq_token,
    of_row, num_heads, num_queries, num_keys, padded, length, first_query, scale,
    SEES: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, Q: tl.constexpr, K: tl.constexpr,
    PACKED: tl.constexpr, PART: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The gradient of the queries; and STATISTICS [B * H, 2, padded] of each for the other kernel: its log-sum-exp in
    powers of two, and its sum of ``grad * out``.

    ``scale`` is the softmax's own here.
    """
    ITEM = ITEMS + tl.program_id(2) * of_row + tl.program_id(0) * 8
    row = tl.load(ITEM)
    head = tl.load(ITEM + 1) * GROUPS + tl.program_id(1)
    batch = tl.program_id(2)
    kv_head = head // GROUPS
    LSE += (batch * num_heads + head).to(tl.int64) * num_queries
    STATISTICS += (batch * num_heads + head).to(tl.int64) * 2 * padded

    first = row * Q
    index = first + tl.arange(0, Q)
    token = token_of(QUERY_TOKENS, index, first_query, num_queries, length, PART)
    start, end = document_of(token, STARTS, ENDS, length, Q, PACKED)
    q = load_rows(QUERY, batch, head, first, q_batch, q_head, q_token, num_queries, Q, WIDTH, D, TMA, UPCAST)
    grad = load_rows(GRAD, batch, head, first, g_batch, g_head, g_token, num_queries, Q, WIDTH, D, TMA, UPCAST)
    out = load_rows(OUT, batch, head, first, o_batch, o_head, o_token, num_queries, Q, WIDTH, D, False, UPCAST)
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    lse = tl.load(LSE + index, mask=index < num_queries, other=0.0) * _LOG2E
    # A query that sees nothing has minus infinity; all its weights are masked.
    lse = tl.where(lse == float("-inf"), 0.0, lse)
    tl.store(STATISTICS + index, lse, mask=index < num_queries)
    tl.store(STATISTICS + padded + index, delta, mask=index < num_queries)
    dq = tl.zeros([Q, D], tl.float32)

    num_full = tl.load(ITEM + 5)
    place = begun(ITEM, RUN_FIRST, RUN_COUNT)
    for i in range(tl.load(ITEM + 6)):
        key = place[0] * K
        k = load_rows(KEY, batch, kv_head, key, k_batch, k_head, k_token, num_keys, K, WIDTH, D, TMA, UPCAST)
        v = load_rows(VALUE, batch, kv_head, key, v_batch, v_head, v_token, num_keys, K, WIDTH, D, TMA, UPCAST)
        weight = tl.exp2(tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * _LOG2E) - lse[:, None])
        if i >= num_full:
            key_of = seen_token(KEY_TOKENS, key + tl.arange(0, K), 0, num_keys, PART)[None, :]
            seen = SEES((token - start)[:, None], key_of - start[:, None], kv_head, ATTRIBUTES, length, token[:, None])
            seen &= (key_of >= start[:, None]) & (key_of < end[:, None])
            weight = tl.where(seen, weight, 0.0)
        dscore = weight * (tl.dot(grad, tl.trans(v), input_precision=PRECISION) - delta[:, None])
        dq = tl.dot(dscore.to(k.dtype), k, dq, input_precision=PRECISION)
        place = following(place, RUN_FIRST, RUN_COUNT)

    store_rows(DQ, dq * scale, batch, head, first, dq_batch, dq_head, dq_token, num_queries, Q, WIDTH, D)


@triton.jit
def _statistic(STATISTICS, program, number, first, padded, Q: tl.constexpr, TMA: tl.constexpr):
    """The log-sum-exps, or the sums of ``grad * out``, of a block of queries: [Q]."""
    if TMA:
        statistic = STATISTICS.load([program, number, first]).reshape(Q)
    else:
        statistic = tl.load(STATISTICS + (program.to(tl.int64) * 2 + number) * padded + first + tl.arange(0, Q))
    return statistic


@triton.jit(do_not_specialize=_ANY)
def attention_backward_key(
    QUERY, KEY, VALUE, GRAD, STATISTICS, DK, DV, SHARES, ITEMS, RUN_FIRST, RUN_COUNT, STARTS, ENDS, ATTRIBUTES,
    QUERY_TOKENS, KEY_TOKENS, q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token,
    g_batch, g_head, g_token, dk_batch, dk_head, dk_token, dv_batch, dv_head, dv_token,
    of_row, num_kv_heads, num_slots, num_queries, num_keys, padded, length, first_query, scale,
    SEES: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, Q: tl.constexpr, K: tl.constexpr,
    PACKED: tl.constexpr, PART: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The gradients of keys and values; or a share of them, into SHARES [B, programs of a head, slots, 2, K, D].

    ``scale`` is the softmax's own here. Tiles are blocks of queries.
    """
    ITEM = ITEMS + tl.program_id(2) * of_row + tl.program_id(0) * 8
    row = tl.load(ITEM)
    kv_head = tl.load(ITEM + 1) + tl.program_id(1)
    batch = tl.program_id(2)

    first = row * K
    token = token_of(KEY_TOKENS, first + tl.arange(0, K), 0, num_keys, length, PART)
    start, end = document_of(token, STARTS, ENDS, length, K, PACKED)
    k = load_rows(KEY, batch, kv_head, first, k_batch, k_head, k_token, num_keys, K, WIDTH, D, TMA, UPCAST)
    v = load_rows(VALUE, batch, kv_head, first, v_batch, v_head, v_token, num_keys, K, WIDTH, D, TMA, UPCAST)
    dk = tl.zeros([K, D], tl.float32)
    dv = tl.zeros([K, D], tl.float32)

    num_full = tl.load(ITEM + 5)
    num_tiles = tl.load(ITEM + 6)
    # The tiles, once for each head of the group, in one loop.
    i = num_tiles * 0
    head = kv_head * GROUPS
    begin = begun(ITEM, RUN_FIRST, RUN_COUNT)
    place = begin
    for _ in range(GROUPS * num_tiles):
        query = place[0] * Q
        program = batch * num_kv_heads * GROUPS + head
        q = load_rows(QUERY, batch, head, query, q_batch, q_head, q_token, num_queries, Q, WIDTH, D, TMA, UPCAST)
        grad = load_rows(GRAD, batch, head, query, g_batch, g_head, g_token, num_queries, Q, WIDTH, D, TMA, UPCAST)
        lse = _statistic(STATISTICS, program, 0, query, padded, Q, TMA)
        delta = _statistic(STATISTICS, program, 1, query, padded, Q, TMA)
        weight = tl.exp2(tl.dot(k, tl.trans(q), input_precision=PRECISION) * (scale * _LOG2E) - lse[None, :])
        if i >= num_full:
            index = query + tl.arange(0, Q)
            query_of = seen_token(QUERY_TOKENS, index, first_query, num_queries, PART)[None, :]
            seen = SEES(
                query_of - start[:, None], (token - start)[:, None], kv_head, ATTRIBUTES, length, token[:, None]
            )
            seen &= (query_of >= start[:, None]) & (query_of < end[:, None])
            weight = tl.where(seen, weight, 0.0)
        dv = tl.dot(weight.to(grad.dtype), grad, dv, input_precision=PRECISION)
        dscore = weight * (tl.dot(v, tl.trans(grad), input_precision=PRECISION) - delta[None, :])
        dk = tl.dot(dscore.to(q.dtype), q, dk, input_precision=PRECISION)
        place = following(place, RUN_FIRST, RUN_COUNT)
        i += 1
        if GROUPS > 1:
            # Selected, not branched on: what a branch decides cannot be loaded ahead.
            again = i == num_tiles
            i = tl.where(again, 0, i)
            head += again.to(tl.int32)
            place = chosen(again, begin, place)

    slot = tl.load(ITEM + 7)
    if slot < 0:
        store_rows(DK, dk * scale, batch, kv_head, first, dk_batch, dk_head, dk_token, num_keys, K, WIDTH, D)
        store_rows(DV, dv, batch, kv_head, first, dv_batch, dv_head, dv_token, num_keys, K, WIDTH, D)
    else:
        # [programs, slots, 2, K, D]
        of_head = num_slots * (2 * K * D)
        program = batch * tl.num_programs(1) + tl.program_id(1)
        store_rows(SHARES, dk * scale, program, slot, slot * 0, of_head, 2 * K * D, D, K, K, D, D)
        store_rows(SHARES + K * D, dv, program, slot, slot * 0, of_head, 2 * K * D, D, K, K, D, D)


@triton.jit(do_not_specialize=["num_slots", "num_keys"])
def sum_of_shares(
    SHARES, DK, DV, DEALT, dk_batch, dk_head, dk_token, dv_batch, dv_head, dv_token, num_slots, num_keys,
    WIDTH: tl.constexpr, D: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """ROWS of a block of keys whose gradients were dealt to several programs: their shares, summed in order."""
    ONE = DEALT + tl.program_id(0) // (K // ROWS) * 4
    part = tl.program_id(0) % (K // ROWS)
    row = tl.load(ONE)
    kv_head = tl.load(ONE + 1) + tl.program_id(1)
    slot = tl.load(ONE + 2)
    batch = tl.program_id(2)
    of_head = num_slots * (2 * K * D)
    program = batch * tl.num_programs(1) + tl.program_id(1)
    dk = tl.zeros([ROWS, D], tl.float32)
    dv = tl.zeros([ROWS, D], tl.float32)
    for i in range(tl.load(ONE + 3)):
        dk += load_rows(SHARES, program, slot + i, part * ROWS, of_head, 2 * K * D, D, K, ROWS, D, D, False, False)
        dv += load_rows(
            SHARES + K * D, program, slot + i, part * ROWS, of_head, 2 * K * D, D, K, ROWS, D, D, False, False
        )
    first = row * K + part * ROWS
    store_rows(DK, dk, batch, kv_head, first, dk_batch, dk_head, dk_token, num_keys, ROWS, WIDTH, D)
    store_rows(DV, dv, batch, kv_head, first, dv_batch, dv_head, dv_token, num_keys, ROWS, WIDTH, D)
