"""FlexAttention: torch compiles one kernel for each pattern, and skips the tiles that nobody sees.

The documents and the tile lists are arguments of the compiled function, so other documents do not compile anew. Two
kernels are made from the same mask: `TRITON`, and `FLASH`, which is FlashAttention-4 (package flash-attn-4).

Shapes: B batch, H query heads, G KV heads, L tokens, Lq queries, D head width, T tiles a side.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, FlexKernelOptions, flex_attention

from lg.attention.impl import Executed, flash
from lg.attention.pattern import Pattern
from lg.attention.tiles import Tiles, TileTable

_BLOCK = 128

# Each pattern, device, type and "one length / any length" is a graph of its own: far more than dynamo's default of 8.
_LIMIT = 4096


class _Plan(NamedTuple):
    """A `BlockMask` taken apart, and the documents: all that changes from one batch to the next.

    Of each query [Lq]: its position in its document, that document's first token and end (exclusive), and the
    attributes that the pattern asks for. Of each key [Lk]: the token that it is; None where it is its own number.
    """

    position: Tensor
    start: Tensor
    end: Tensor
    attributes: tuple[Tensor, ...]
    tokens: Tensor | None
    lists: tuple[Tensor, ...]


_Compiled = Callable[[Tensor, Tensor, Tensor, _Plan], Tensor]


def _anything(q: Tensor) -> str | None:
    """What needs nothing beyond FlexAttention itself."""
    return None


@dataclass(frozen=True)
class Flex:
    """FlexAttention by one of its kernels.

    Attributes:
        options: ``kernel_options`` of `flex_attention`.
        any_length: whether one graph may serve every length; if not, each length compiles its own.
        needs: why this kernel cannot take such queries, beyond what FlexAttention itself cannot do; or None.
    """

    options: Mapping[str, object] = field(default_factory=dict, hash=False)
    any_length: bool = True
    needs: Callable[[Tensor], str | None] = _anything

    def refusal(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> str | None:
        """What FlexAttention cannot do, as far as torch 2.11 to 2.13 are concerned."""
        if q.device.type == "cpu" and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
            return "FlexAttention has no backward pass on a CPU; 'gather' has"
        if q.device.type not in ("cuda", "cpu"):
            return f"FlexAttention has no kernel for {q.device.type}"
        if q.dtype == torch.float64:
            return "FlexAttention has no float64 kernel"
        return self.needs(q)

    def run(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
        """Attention by the pattern's compiled kernel: [B, H, Lq, D]."""
        groups = q.shape[1] // k.shape[1]
        plan = tiles.kept(("flex", q.device, groups), lambda: _plan(tiles, groups, q.device))
        compiled = _compiled(self, tiles.pattern, groups, scale)
        # Past its limit of recompilations dynamo would run FlexAttention eagerly, with a score for every pair of
        # tokens: 2 TB at 128K. The limit is raised, and past it stands an error. And all patterns share the code of
        # one function: without `specialize_int` their constants would become arguments of the kernel.
        with torch._dynamo.config.patch(
            recompile_limit=_LIMIT,
            accumulated_recompile_limit=_LIMIT,
            fail_on_recompile_limit_hit=True,
            specialize_int=True,
        ):
            return compiled(q, k, v, plan)

    def executed(self, tiles: Tiles) -> Executed:
        """The tiles on the lists, full or partial."""
        table = tiles.table(_BLOCK, _BLOCK)
        return Executed(table.num_listed.view(table.heads, -1).sum(1) * _BLOCK**2, scores_again=True)


TRITON = Flex()
# Its code generator has no symbolic lengths.
FLASH = Flex({"BACKEND": "FLASH"}, any_length=False, needs=flash.missing)


def block_mask(tiles: Tiles, groups: int, device: torch.device) -> BlockMask:
    """The tiles as a `BlockMask`, on ``groups`` query heads for each KV head."""
    plan = _plan(tiles, groups, device)
    return _mask(tiles.pattern, _doc(tiles.pattern), groups, plan, (tiles.num_queries, tiles.num_keys))


@cache
def _compiled(flex: Flex, pattern: Pattern, groups: int, scale: float) -> _Compiled:
    # Made here: torch's compiler need not follow how a predicate is read as text.
    doc = _doc(pattern)
    options = cast(FlexKernelOptions, dict(flex.options)) or None

    def run(q: Tensor, k: Tensor, v: Tensor, plan: _Plan) -> Tensor:
        mask = _mask(pattern, doc, groups, plan, (q.shape[2], k.shape[2]))
        out = flex_attention(q, k, v, block_mask=mask, scale=scale, enable_gqa=groups > 1, kernel_options=options)
        assert isinstance(out, Tensor)
        return out

    return torch.compile(run, fullgraph=True, dynamic=None if flex.any_length else False)


def _doc(pattern: Pattern) -> Callable[..., Any]:
    """The type of what the predicate is handed for ``doc``: a named tuple, which torch's compiler knows."""
    return namedtuple("_Doc", pattern.attributes)


def _mask(pattern: Pattern, doc: Callable[..., Any], groups: int, plan: _Plan, lengths: tuple[int, int]) -> BlockMask:
    position, start, end, attributes, tokens, lists = plan

    def visible(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        first = start[query]
        if tokens is not None:
            key = tokens[key]
        # A key of an earlier document has a negative index here; "same document" masks it whatever is seen of it.
        seen: Tensor = pattern.read(
            position[query], key - first, h // groups, doc(*[values[query] for values in attributes])
        )
        return (key >= first) & (key < end[query]) & seen

    # The order is BlockMask's own: partial and full tiles by query, then by key.
    partial_q, partial_qi, full_q, full_qi, partial_k, partial_ki, full_k, full_ki = lists
    return BlockMask(
        lengths,
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


def _plan(tiles: Tiles, groups: int, device: torch.device) -> _Plan:
    rows, columns = tiles.table(_BLOCK, _BLOCK), tiles.transposed(_BLOCK, _BLOCK)
    lists = (x.to(device) for x in (*_lists(rows), *_lists(columns)))
    if tiles.heads > 1:
        # A BlockMask's heads are query heads.
        lists = (x.repeat_interleave(groups, 1) for x in lists)
    on, queries = tiles.documents, tiles.query_tokens
    document = on.of_token[queries]

    def of_query(values: Tensor) -> Tensor:
        return values[document].to(device, torch.int32)

    return _Plan(
        on.positions[queries].to(device),
        of_query(on.bounds[0]),
        of_query(on.bounds[1]),
        tuple(of_query(on.attribute(name)) for name in tiles.pattern.attributes),
        None if tiles.all_keys else tiles.key_tokens.to(device, torch.int32),
        tuple(lists),
    )


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
