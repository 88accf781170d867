"""The forward pass: one program computes the output of one block of queries in one head.

FlashAttention's online softmax (Dao et al. 2022, arXiv 2205.14135, algorithm 1), over the tiles that the work list
names: full ones without a mask, then partial ones with the predicate compiled into the kernel. They are one loop, so
that the loads of the next tile never wait for the last one of a kind.

Legend: B batch, H query heads, G KV heads, Lq queries, L keys, D head width (padded), Q and K tokens in a block.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lg.attention.impl.triton.tile import begun, document_of, following, load_rows, seen_token, store_rows, token_of

# Else their values would make kernels of their own.
_ANY = ["of_row", "num_heads", "num_queries", "num_keys", "length", "first_query"]


@triton.jit(do_not_specialize=_ANY)
def attention_forward(
    QUERY, KEY, VALUE, OUT, LSE, ITEMS, RUN_FIRST, RUN_COUNT, STARTS, ENDS, ATTRIBUTES,
    QUERY_TOKENS, KEY_TOKENS,
    q_batch, q_head, q_token, k_batch, k_head, k_token, v_batch, v_head, v_token, o_batch, o_head, o_token,
    of_row, num_heads, num_queries, num_keys, length, first_query, scale,
    SEES: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, Q: tl.constexpr, K: tl.constexpr,
    PACKED: tl.constexpr, PART: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Output and natural log-sum-exp. ``scale`` is in powers of two; LSE is [B, H, Lq], contiguous."""
    ITEM = ITEMS + tl.program_id(2) * of_row + tl.program_id(0) * 8
    row = tl.load(ITEM)
    head = tl.load(ITEM + 1) * GROUPS + tl.program_id(1)
    batch = tl.program_id(2)
    kv_head = head // GROUPS
    LSE += (batch * num_heads + head).to(tl.int64) * num_queries

    first = row * Q
    index = first + tl.arange(0, Q)
    token = token_of(QUERY_TOKENS, index, first_query, num_queries, length, PART)
    start, end = document_of(token, STARTS, ENDS, length, Q, PACKED)
    q = load_rows(QUERY, batch, head, first, q_batch, q_head, q_token, num_queries, Q, WIDTH, D, TMA, UPCAST)
    # The running output, greatest score and sum of weights, in powers of two.
    acc = tl.zeros([Q, D], tl.float32)
    most = tl.full([Q], float("-inf"), tl.float32)
    total = tl.zeros([Q], tl.float32)

    num_full = tl.load(ITEM + 5)
    place = begun(ITEM, RUN_FIRST, RUN_COUNT)
    for i in range(tl.load(ITEM + 6)):
        key = place[0] * K
        k = load_rows(KEY, batch, kv_head, key, k_batch, k_head, k_token, num_keys, K, WIDTH, D, TMA, UPCAST)
        v = load_rows(VALUE, batch, kv_head, key, v_batch, v_head, v_token, num_keys, K, WIDTH, D, TMA, UPCAST)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if i >= num_full:
            key_of = seen_token(KEY_TOKENS, key + tl.arange(0, K), 0, num_keys, PART)[None, :]
            seen = SEES((token - start)[:, None], key_of - start[:, None], kv_head, ATTRIBUTES, length, token[:, None])
            seen &= (key_of >= start[:, None]) & (key_of < end[:, None])
            score = tl.where(seen, score, float("-inf"))
        new = tl.maximum(most, tl.max(score, 1) * scale)
        # A query that has seen nothing yet has minus infinity, from which nothing can be taken.
        base = tl.where(new == float("-inf"), 0.0, new)
        weight = tl.exp2(score * scale - base[:, None])
        shrink = tl.exp2(most - base)
        total = total * shrink + tl.sum(weight, 1)
        acc = tl.dot(weight.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        most = new
        place = following(place, RUN_FIRST, RUN_COUNT)

    # Of a query that sees nothing: 0, and minus infinity, which its greatest score is.
    total = tl.where(total == 0.0, 1.0, total)
    acc /= total[:, None]
    store_rows(OUT, acc, batch, head, first, o_batch, o_head, o_token, num_queries, Q, WIDTH, D)
    tl.store(LSE + index, (most + tl.log2(total)) * 0.6931471805599453, mask=index < num_queries)
