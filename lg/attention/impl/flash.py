"""FlashAttention-4 called directly (Dao-AILab/flash-attention, package flash-attn-4), for windows and full attention.

The fastest there is on Hopper for these two. Young, and with gradients that were wrong at times, so `attend` takes it
only through `lg.attention.impl.proof`.

Shapes: B batch, H query heads, G KV heads, L tokens, Lq queries, D head width, N documents.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from lg.attention.cost import banded_pairs
from lg.attention.impl import Executed
from lg.attention.impl.stretches import executed_in_all, stretch_by_stretch
from lg.attention.part import Part
from lg.attention.pattern import Pattern
from lg.attention.patterns import Causal, Window
from lg.attention.tiles import Tiles


class _Plan(NamedTuple):
    """Keys that some query may see, as a slice of the sequence; and of each document that the queries touch where its
    queries and keys begin: int32 [N + 1], and the most that one has.
    """

    keys: slice
    queries_begin: Tensor
    keys_begin: Tensor
    most_queries: int
    most_keys: int


def refusal(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> str | None:
    """Only full causal attention and windows, where the kernels run."""
    if not _is_causal(tiles.pattern) and _window(tiles.pattern) is None:
        return f"it computes full causal attention and windows only, not {tiles.pattern}"
    return missing(q)


def missing(q: Tensor) -> str | None:
    """What FlashAttention-4 needs and is not there, for such queries; None if it can run."""
    if q.device.type != "cuda":
        return f"FlashAttention-4 has no kernel for {q.device.type}"
    if not _installed():
        return "flash-attn-4 is not installed: pip install 'lg[gpu]'"
    major, minor = torch.cuda.get_device_capability(q.device)
    if major < 9:
        return f"FlashAttention-4 needs a GPU of compute capability 9.0 or later, not {major}.{minor}"
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"FlashAttention-4 has kernels for bfloat16 and float16 only, not {q.dtype}"
    width = q.shape[3]
    if width % 8 or not 8 <= width <= 128:
        # 256 cannot be used: flash-attention issue 2903.
        return f"FlashAttention-4 is used at head widths that are multiples of 8 up to 128, not {width}"
    return None


def run(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
    """Attention within each document: [B, H, Lq, D]."""
    if isinstance(tiles, Part):
        return stretch_by_stretch(run, q, k, v, tiles, scale)
    from flash_attn.cute import (  # type: ignore[import-not-found, unused-ignore]
        flash_attn_func,
        flash_attn_varlen_func,
    )

    plan = tiles.kept(("flash", q.device, q.shape[0]), lambda: _plan(tiles, q.shape[0], q.device))
    # Ours counts keys, self included; theirs counts those to the left of it. Where there are more keys than queries
    # theirs is aligned to the last of both, which is what a chunk of queries is.
    window = _window(tiles.pattern)
    sides = (None if window is None else window - 1, 0)
    if (k.shape[2], 0) != (plan.keys.stop, plan.keys.start):
        k, v = k[:, :, plan.keys], v[:, :, plan.keys]
    # They take [B, L, H, D].
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if len(plan.queries_begin) == len(q) + 1:
        out, _ = flash_attn_func(q, k, v, softmax_scale=scale, causal=True, window_size=sides)
    else:
        rows, _ = flash_attn_varlen_func(
            q.flatten(0, 1),
            k.flatten(0, 1),
            v.flatten(0, 1),
            cu_seqlens_q=plan.queries_begin,
            cu_seqlens_k=plan.keys_begin,
            max_seqlen_q=plan.most_queries,
            max_seqlen_k=plan.most_keys,
            softmax_scale=scale,
            causal=True,
            window_size=sides,
        )
        out = rows.unflatten(0, q.shape[:2])
    result: Tensor = out.transpose(1, 2)
    return result


def executed(tiles: Tiles) -> Executed:
    """The tiles of each document that its window, or the diagonal, reaches."""
    if isinstance(tiles, Part):
        return executed_in_all(executed, tiles)
    return Executed(banded_pairs(tiles, _window(tiles.pattern)), scores_again=True)


@cache
def _installed() -> bool:
    try:
        return importlib.util.find_spec("flash_attn.cute") is not None
    except ImportError:
        return False


@cache
def _is_causal(pattern: Pattern) -> bool:
    return pattern.text == Causal().text


@cache
def _window(pattern: Pattern) -> int | None:
    """The window, self included, of a pattern that reads as `Window` does; None of any other."""
    number = 1234567
    says = re.escape(Window(number).text).replace(str(number), "([0-9]+)")
    found = re.fullmatch(says, pattern.text)
    return int(found[1]) if found else None


def _plan(tiles: Tiles, batch: int, device: torch.device) -> _Plan:
    first, end = tiles.queries
    bounds = [(begin, stop) for begin, stop in tiles.documents.bounds.T.tolist() if begin < end and stop > first]
    queries = [min(stop, end) - max(begin, first) for begin, stop in bounds]
    keys = [min(stop, end) - begin for begin, stop in bounds]

    def begin(lengths: list[int]) -> Tensor:
        # Every row of the batch has these documents, one row after the other.
        return torch.tensor([0, *lengths * batch], device=device).cumsum(0, dtype=torch.int32)

    return _Plan(slice(bounds[0][0], end), begin(queries), begin(keys), max(queries), max(keys))
