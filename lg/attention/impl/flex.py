"""FlexAttention on a GPU: torch compiles one kernel for each pattern, and skips the tiles that nobody sees.

The documents and the tile lists are arguments of the compiled function, so other documents do not compile anew.

Shapes: B batch, H query heads, G KV heads, L tokens, D head width, T tiles a side.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from lg.attention.pattern import Pattern
from lg.attention.tiles import Tiles, TileTable

_BLOCK = 128

# Each pattern, device, type and "one length / any length" is a graph of its own: far more than dynamo's default of 8.
_LIMIT = 4096


class _Plan(NamedTuple):
    """A `BlockMask` taken apart: tile lists of queries and of keys, and each token's document start [L]."""

    start: Tensor
    lists: tuple[Tensor, ...]


def refusal(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> str | None:
    """What FlexAttention cannot do, as far as torch 2.11 to 2.13 are concerned."""
    if q.device.type == "cpu" and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        return "FlexAttention has no backward pass on a CPU; 'gather' has"
    if q.device.type not in ("cuda", "cpu"):
        return f"FlexAttention has no kernel for {q.device.type}"
    if q.dtype == torch.float64:
        return "FlexAttention has no float64 kernel"
    return None


def run(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
    """Attention by the pattern's compiled kernel: [B, H, L, D]."""
    groups = q.shape[1] // k.shape[1]
    plan = tiles.kept(("flex", q.device, groups), lambda: _plan(tiles, groups, q.device))
    compiled = _compiled(tiles.pattern, groups, scale)
    # Past its limit of recompilations dynamo would run FlexAttention eagerly, with a score for every pair of tokens:
    # 2 TB at 128K. The limit is raised, and past it stands an error.
    with torch._dynamo.config.patch(
        recompile_limit=_LIMIT, accumulated_recompile_limit=_LIMIT, fail_on_recompile_limit_hit=True
    ):
        return compiled(q, k, v, plan.start, *plan.lists)


@cache
def _compiled(pattern: Pattern, groups: int, scale: float) -> Callable[..., Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor, start: Tensor, *lists: Tensor) -> Tensor:
        def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            first = start[query]
            seen: Tensor = pattern.sees(query - first, key - first, h // groups)
            return (first == start[key]) & seen

        # A key of an earlier document has a negative index here; "same document" masks it whatever is seen of it.
        length = q.shape[2]
        # The order is BlockMask's own: partial and full tiles by query, then by key.
        partial_q, partial_qi, full_q, full_qi, partial_k, partial_ki, full_k, full_ki = lists
        mask = BlockMask(
            (length, length),
            partial_q,
            partial_qi,
            full_q,
            full_qi,
            partial_k,
            partial_ki,
            full_k,
            full_ki,
            BLOCK_SIZE=(_BLOCK, _BLOCK),
            mask_mod=visible,
        )
        out = flex_attention(q, k, v, block_mask=mask, scale=scale, enable_gqa=groups > 1)
        assert isinstance(out, Tensor)
        return out

    return torch.compile(run, fullgraph=True)


def _plan(tiles: Tiles, groups: int, device: torch.device) -> _Plan:
    rows, columns = tiles.table(_BLOCK, _BLOCK), tiles.transposed(_BLOCK, _BLOCK)
    lists = (x.to(device) for x in (*_lists(rows), *_lists(columns)))
    if tiles.heads > 1:
        # A BlockMask's heads are query heads.
        lists = (x.repeat_interleave(groups, 1) for x in lists)
    return _Plan(tiles.documents.start_of_token.to(device), tuple(lists))


def _lists(table: TileTable) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Counts [1, heads, T] and tile numbers [1, heads, T, T] of partial and of full tiles: BlockMask's own form."""
    out: list[Tensor] = []
    for pointer, index in ((table.partial_pointer, table.partial_index), table.full_lists()):
        count = pointer.diff()
        row = torch.arange(count.numel()).repeat_interleave(count)
        slot = torch.arange(index.numel()) - pointer[:-1].repeat_interleave(count)
        listed = torch.zeros(count.numel(), table.num_columns, dtype=torch.int32)
        listed[row, slot] = index.int()
        shape = (1, table.heads, table.num_rows)
        out += [count.int().view(shape), listed.view(*shape, table.num_columns)]
    return out[0], out[1], out[2], out[3]
