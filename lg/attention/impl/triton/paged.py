"""Attention of single new tokens over pages of keys and values: one launch for a ragged batch, under any pattern.

The grid depends on the sizes of tensors alone, and all that changes from token to token lies on the device, so that the
launches can be recorded once in a CUDA graph and replayed.

Shapes: S sequences of a batch, N slots, H query heads, G KV heads, F groups of KV heads that share pages, E entries of
a list of pages, U pages of one head, P tokens of a page, D head width, n tokens.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lg.attention.impl.triton import without

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_LOG2E = 1.4426950408889634
# The least queries that the tensor cores take, and features in a product.
_ROWS = 16
# Entries of its list that a program reads at least, and the most programs that share a list.
_LEAST = 4
_MOST_SHARES = 128


class Pages(NamedTuple):
    """Which pages each slot's sequence reads, and where they lie: int32, contiguous, on the device.

    Attributes:
        logical: which pages of the sequence, in any order, none twice: page ``n`` has tokens ``P n`` to
            ``P n + P - 1``. [N, F, E].
        physical: where each lies: [N, F, E].
        counts: entries of each list: [N, F].
        heads: of each KV head its group, and then the number of the head's page at 0, and what a step of 1 in
            ``physical`` adds to it: [G, 3].
        attributes: what the predicate asks of each slot's document, in alphabetical order: [attributes, N].
    """

    logical: Tensor
    physical: Tensor
    counts: Tensor
    heads: Tensor
    attributes: Tensor


class Launch(NamedTuple):
    """How the kernel that reads is launched.

    Attributes:
        tokens: of a page that are read at a time.
        num_warps, num_stages: Triton's.
        resident: programs that a multiprocessor has at a time.
    """

    tokens: int
    num_warps: int
    num_stages: int
    resident: int


# To Triton's interpreter a large block is as quick as a small one.
_INTERPRETED = Launch(64, 4, 1, 1)


def refusal(dtype: torch.dtype | None, width: int, device: torch.device, text: str = "True") -> str | None:
    """What the kernels do not take.

    Args:
        dtype: of queries; None while it is not known.
        width: of a head.
        device: of all tensors.
        text: the predicate's; those that only move keys and values ask for none.
    """
    if dtype is not None and dtype not in _DTYPES:
        return f"lg's Triton kernels are for {', '.join(str(d)[6:] for d in _DTYPES)}, not {str(dtype)[6:]}"
    if not 1 <= width <= 256:
        return f"lg's Triton kernels are for head widths up to 256, not {width}"
    return without(device, text)


def attention(
    q: Tensor, keys: tuple[Tensor, ...], values: tuple[Tensor, ...], pages: Pages, slots: Tensor, lengths: Tensor,
    text: str, scale: float, shares: int | None = None, launch: Launch | None = None,
) -> Tensor:  # fmt: skip
    """What the newest token of each sequence gathers: [S, H, D]; 0 of one that sees nothing.

    Args:
        q: [S, H, D].
        keys, values: of one layer: [U, P, D] as they are; or codes, uint8 [U, P, D] of 8 bits or [U, P, D/2] of 4, and
            beside them what codes are multiplied by and what is then added, [U, P, 2].
        pages: what each slot reads. Tokens beyond ``lengths`` are not seen.
        slots: of each sequence: int32 [S].
        lengths: tokens of each, the newest included: int32 [S]; 0 of a place in the batch that is empty.
        text: the predicate's. The query is the token at ``lengths - 1``.
        scale: what scores are multiplied by.
        shares: programs that share a list of pages; by default so many that the device is busy.
        launch: by default lg's own.
    """
    from lg.attention.impl.triton import decode
    from lg.attention.impl.triton.launch import interpreted, on
    from lg.attention.impl.triton.predicate import function

    (rows, num_heads, width), (num_slots, num_groups, num_entries) = q.shape, pages.logical.shape
    num_kv, page = len(pages.heads), keys[0].shape[1]
    q = q if q.stride(2) == 1 else q.contiguous()
    groups, bits = num_heads // num_kv, (_bits(keys, width), _bits(values, width))
    launch = launch or (_INTERPRETED if interpreted() else launch_of(q.dtype, width, bits))
    shares = shares or _shares(rows * num_kv, num_entries, launch.resident * _multiprocessors(q.device))
    out = torch.empty(rows, num_heads, width, dtype=q.dtype, device=q.device)
    partial = q.new_empty(rows, num_heads, shares, width, dtype=torch.float32) if shares > 1 else out
    lse = q.new_empty(rows, num_heads, shares, dtype=torch.float32)
    # Of codes a fourth is multiplied at a time, which 4 warps share best in 32 columns.
    padded = max(_padded(width, bits), 128 if any(bits) else 0)
    with on(q.device):
        decode.paged_attention[shares, num_kv, rows](
            q, keys[0], keys[-1], values[0], values[-1], partial, lse,
            slots, lengths, pages.logical, pages.physical, pages.counts, pages.heads, pages.attributes,
            q.stride(0), q.stride(1), num_groups, num_entries, num_slots, num_heads, scale * _LOG2E,
            SEES=function(text), GROUPS=groups, ROWS=max(_power_of_two(groups), _ROWS), WIDTH=width, D=padded,
            PAGE=page, TOKENS=min(launch.tokens, page), LEAST=_LEAST, KEY_BITS=bits[0], VALUE_BITS=bits[1],
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32", UPCAST=interpreted(),
            HALF=q.dtype != torch.float32,
            num_warps=launch.num_warps, num_stages=launch.num_stages, enable_fp_fusion=True,
        )  # fmt: skip
        if shares > 1:
            decode.join_shares[(rows * num_heads,)](
                partial, lse, out, shares, WIDTH=width, D=padded, MOST=_power_of_two(shares), enable_fp_fusion=True
            )
    return out


def write(
    k: Tensor, v: Tensor, keys: tuple[Tensor, ...], values: tuple[Tensor, ...], heads: Tensor, pages: Tensor,
    tokens: Tensor,
) -> None:  # fmt: skip
    """Keeps keys and values of some tokens, as codes where these are kept.

    Args:
        k, v: [n, G, D].
        keys, values: as those of `attention`.
        heads: those of `Pages`.
        pages: the page that each token lies in, as `Pages.physical` has them; negative where it is not kept: int32
            [n, F].
        tokens: the place of each in its sequence: int32 [n].
    """
    from lg.attention.impl.triton import decode
    from lg.attention.impl.triton.launch import on

    count, num_kv, width = k.shape
    k, v = (_as_kept(x, room) for x, room in ((k, keys), (v, values)))
    bits = (_bits(keys, width), _bits(values, width))
    with on(k.device):
        decode.write_pages[count, num_kv](
            k, v, keys[0], keys[-1], values[0], values[-1], pages, tokens, heads,
            *k.stride()[:2], *v.stride()[:2], pages.shape[1],
            WIDTH=width, D=_padded(width, bits), PAGE=keys[0].shape[1], KEY_BITS=bits[0], VALUE_BITS=bits[1],
            num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip


def read(room: tuple[Tensor, ...], heads: Tensor, pages: Tensor, places: Tensor, out: Tensor) -> None:
    """Lays pages where many tokens read them.

    Args:
        room: keys or values, as those of `attention`.
        heads: those of `Pages`.
        pages: of each group, as `Pages.physical` has them: int32 [F, n].
        places: the row of ``out`` that the first token of each is laid in, the others in those after it; negative where
            there is no page: int32 [F, n].
        out: contiguous [G, rows, D]; tokens beyond its rows are left out.
    """
    from lg.attention.impl.triton import gather
    from lg.attention.impl.triton.launch import interpreted, on

    num_heads, num_rows, width = out.shape
    bits, num_pages = _bits(room, width), pages.shape[1]
    with on(out.device):
        gather.gather_pages[num_pages, num_heads](
            room[0], room[-1], heads, pages, places, out, num_pages, num_rows,
            WIDTH=width, D=_padded(width, (bits, bits)), PAGE=room[0].shape[1], BITS=bits, UPCAST=interpreted(),
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip


def _as_kept(x: Tensor, room: tuple[Tensor, ...]) -> Tensor:
    """In the room's type, if it has no codes; features side by side."""
    x = x.to(room[0].dtype) if len(room) == 1 else x
    return x if x.stride(2) == 1 else x.contiguous()


def _bits(room: tuple[Tensor, ...], width: int) -> int:
    """Of a code; 0 where vectors lie as they are."""
    return 0 if len(room) == 1 else 8 * room[0].shape[-1] // width


def _padded(width: int, bits: tuple[int, int]) -> int:
    """A head's width in a kernel: each half too is one that there are layouts for, if halves are packed."""
    return max(_power_of_two(width), 32 if 4 in bits else 16)


def _power_of_two(number: int) -> int:
    """The least that is not below."""
    return 1 << (number - 1).bit_length()


def launch_of(dtype: torch.dtype, width: int, bits: tuple[int, int]) -> Launch:
    """What the kernel that reads is launched with.

    Args:
        dtype: of queries.
        width: of a head.
        bits: of the codes of keys, and of values; 0 where they lie as they are.
    """
    if dtype == torch.float32:
        # Products are exact to the last bit, on the general cores, and held in registers: larger ones spill.
        return Launch(16, 8, 2, 2)
    if width > 128:
        return Launch(64, 4, 3, 2)
    # What turns codes into numbers is shared by fewer threads: each has fewer instructions around it.
    return Launch(64, 2 if any(bits) else 4, 3, 4)


def _shares(lists: int, entries: int, resident: int) -> int:
    """Programs for each list of pages: the fewest with which the device is nearly as busy as it can be, as
    FlashAttention-2's decoding chooses them.
    """
    allowed = range(1, max(min(-(-entries // _LEAST), _MOST_SHARES), 1) + 1)
    busy = [lists * n / (-(-lists * n // resident) * resident) for n in allowed]
    return next(n for n, share in zip(allowed, busy, strict=True) if share >= 0.85 * max(busy))


@cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else 1
