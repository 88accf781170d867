"""Sparse attention in plain torch: each block of queries gathers the key blocks that its row of the tile table names.

What a CPU trains with: linear in the sequence for a window, exact for any pattern, differentiated by autograd itself.

Shapes: B batch, H query heads, G KV heads, L tokens, Lq queries, D head width, R blocks of queries, C blocks of keys,
M gathered blocks a row, N tokens in a block.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from lg.attention.impl import Executed
from lg.attention.tiles import Tiles

# Small blocks waste little at the edges of a window; smaller ones still make many small products.
_BLOCK = 64


class _Plan(NamedTuple):
    """What all layers of one pattern share: key blocks [heads, R, M] and additive mask [heads, R, N, M * N]."""

    blocks: Tensor
    bias: Tensor
    blind: Tensor | None


def refusal(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> str | None:
    """Plain torch takes anything."""
    return None


def run(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
    """Attention over gathered blocks: [B, H, Lq, D]. A query that sees nothing gives 0."""
    batch, heads_q, num_queries, width = q.shape
    heads_kv, n = k.shape[1], _BLOCK
    groups = heads_q // heads_kv
    plan = tiles.kept(("gather", q.dtype, q.device, groups), lambda: _plan(tiles, groups, q.dtype, q.device))
    rows, per_row = plan.blocks.shape[1:]
    columns = -(-k.shape[2] // n)

    # The query heads of one KV head become more rows of its block of queries: keys and values are not repeated.
    q_rows = pad(q, (0, 0, 0, rows * n - num_queries)).view(batch, heads_kv, groups, rows, n, width).transpose(2, 3)
    q_rows = q_rows.reshape(batch * heads_kv, rows, groups * n, width)
    first_of_head = torch.arange(batch * heads_kv, device=q.device).view(batch, heads_kv, 1, 1) * columns
    index = (first_of_head + plan.blocks).flatten()

    def gathered(x: Tensor) -> Tensor:
        blocks = pad(x, (0, 0, 0, columns * n - k.shape[2])).reshape(batch * heads_kv * columns, n * width)
        return blocks.index_select(0, index).view(batch * heads_kv, rows, per_row * n, width)

    bias = plan.bias if tiles.heads == 1 else plan.bias.repeat(batch, 1, 1, 1)
    out = scaled_dot_product_attention(q_rows, gathered(k), gathered(v), attn_mask=bias, scale=scale)
    out = out.view(batch, heads_kv, rows, groups, n, width).transpose(2, 3)
    out = out.reshape(batch, heads_q, rows * n, width)[:, :, :num_queries]
    return out if plan.blind is None else out.masked_fill(plan.blind.repeat_interleave(heads_q // tiles.heads, 0), 0.0)


def executed(tiles: Tiles) -> Executed:
    """As many blocks in every row as in the fullest."""
    table = tiles.table(_BLOCK, _BLOCK)
    most = max(int(table.num_listed.max()), 1)
    return Executed(torch.full((table.heads,), table.num_rows * most * _BLOCK**2), scores_again=True)


def _plan(tiles: Tiles, groups: int, dtype: torch.dtype, device: torch.device) -> _Plan:
    n, table = _BLOCK, tiles.table(_BLOCK, _BLOCK)
    full_pointer, full_index = table.full_lists()
    rows = table.heads * table.num_rows
    row = torch.cat(
        [torch.arange(rows).repeat_interleave(pointer.diff()) for pointer in (full_pointer, table.partial_pointer)]
    )
    row, order = torch.sort(row, stable=True)
    column = torch.cat((full_index, table.partial_index))[order]
    count = torch.bincount(row, minlength=rows)
    slot = torch.arange(row.numel()) - (count.cumsum(0) - count)[row]
    # Rows that see fewer blocks than the fullest are filled up with block number `num_columns`, which no query sees.
    blocks = torch.full((rows, max(int(count.max()), 1)), table.num_columns)
    blocks[row, slot] = column
    blocks = blocks.view(table.heads, table.num_rows, -1)

    # Blocks are filled up with token -1, which neither sees nor is seen.
    query = pad(tiles.query_tokens, (0, table.num_rows * n - tiles.num_queries), value=-1).view(1, table.num_rows, n, 1)
    key_tokens = pad(tiles.key_tokens, (0, (table.num_columns + 1) * n - tiles.num_keys), value=-1)
    key = key_tokens[(blocks[..., None] * n + torch.arange(n)).flatten(2)[:, :, None]]
    head = torch.arange(table.heads, dtype=torch.int32).view(-1, 1, 1, 1)
    seen = tiles.seen(query.clamp(min=0), key.clamp(min=0), head) & (query >= 0) & (key >= 0)

    blind = ~seen.any(-1, keepdim=True)
    bias = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~(seen | blind), float("-inf"))
    blind_of_token = blind.flatten(1, 2)[:, : tiles.num_queries]
    return _Plan(
        blocks.clamp(max=table.num_columns - 1).to(device),
        bias.repeat(1, 1, groups, 1).to(device),
        blind_of_token.to(device) if bool(blind_of_token.any()) else None,
    )
