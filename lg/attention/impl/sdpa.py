"""Full causal attention by torch's own kernels: nothing in torch is faster where all is seen.

A sequence of one document is one plain call. Otherwise each document is a part of its own, and where a chunk of queries
has a past in its document, which torch sends to slower kernels, that part is two calls: the keys before the chunk, seen
by every query, and the chunk's own keys, causal. The two are merged by their log-sum-exps (as in Ring Attention: Liu et
al. 2023, arXiv 2310.01889, section 3), and each is differentiated with the merged output and log-sum-exp, which is
exact. Keys and values are never copied on the way in.

Shapes: B batch, H query heads, G KV heads, L tokens, Lq queries, D head width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from lg.attention.cost import banded_pairs
from lg.attention.impl import Executed
from lg.attention.impl.fused import BACKENDS, Kernel, is_whole_in_torch, kernel_for
from lg.attention.impl.stretches import executed_in_all, stretch_by_stretch
from lg.attention.part import Part
from lg.attention.patterns import Causal
from lg.attention.tiles import Tiles


class _Piece(NamedTuple):
    """One call: keys of the sequence, whether each query sees them all or causally, and the kernel."""

    keys: slice
    causal: bool
    kernel: Kernel


class _Part(NamedTuple):
    """What one document has to do: queries of the chunk, and the one or two calls that their keys take."""

    queries: slice
    pieces: list[_Piece]


def refusal(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> str | None:
    """Only the pattern that sees every earlier key; and in parts only by a kernel that tells its log-sum-exp."""
    if tiles.pattern.text != Causal().text:
        return f"it computes full causal attention only, not {tiles.pattern}"
    if not _whole(tiles) and kernel_for(q, k, v, causal=False, scale=1.0) is None:
        return (
            f"torch has no fused kernel for {q.dtype} at head width {q.shape[3]} on {q.device.type}, "
            "which packed documents and chunks of queries need"
        )
    return None


def run(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
    """Causal attention within each document: [B, H, Lq, D]."""
    if isinstance(tiles, Part):
        return stretch_by_stretch(run, q, k, v, tiles, scale)
    if _whole(tiles) and is_whole_in_torch(q, k, v):
        with sdpa_kernel(BACKENDS, set_priority=True):
            gqa = q.shape[1] != k.shape[1]
            return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=gqa)
    out: Tensor = _Parts.apply(q, k, v, _parts(q, k, v, tiles, scale), scale)  # type: ignore[no-untyped-call]
    return out


def executed(tiles: Tiles) -> Executed:
    """What kernels compute that skip the tiles above the diagonal of each document."""
    if isinstance(tiles, Part):
        return executed_in_all(executed, tiles)
    return Executed(banded_pairs(tiles), scores_again=True)


def _whole(tiles: Tiles) -> bool:
    return tiles.all_queries and tiles.all_keys and not tiles.packed


def _parts(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> list[_Part]:
    first, end = tiles.queries
    parts = []
    for begin, stop in tiles.documents.bounds.T.tolist():
        own = slice(max(begin, first), min(stop, end))
        if own.start >= own.stop:
            continue
        queries = slice(own.start - first, own.stop - first)
        pieces = []
        for keys, causal in ((slice(begin, own.start), False), (own, True)):
            if keys.start < keys.stop:
                # Asked for each call: cuDNN, for one, does not take a single key.
                kernel = kernel_for(q[:, :, queries], k[:, :, keys], v[:, :, keys], causal, scale)
                assert kernel, f"no kernel for queries {queries} and keys {keys}"
                pieces.append(_Piece(keys, causal, kernel))
        parts.append(_Part(queries, pieces))
    return parts


class _Parts(torch.autograd.Function):
    """Attention part by part; the parts' keys do not overlap, so each writes its own gradients."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, parts: list[_Part], scale: float) -> Tensor:
        outs, lses, randoms = [], [], []
        for queries, pieces in parts:
            done = [
                kernel.forward(q[:, :, queries], k[:, :, keys], v[:, :, keys], causal, scale)
                for keys, causal, kernel in pieces
            ]
            out, lse = _merged(*(x[:2] for x in done)) if len(done) == 2 else done[0][:2]
            outs.append(out)
            lses.append(lse)
            randoms.append([random for _, _, random in done])
        out = outs[0] if len(outs) == 1 else torch.cat(outs, 2)
        ctx.save_for_backward(q, k, v, out, *lses)
        ctx.parts, ctx.randoms, ctx.scale = parts, randoms, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *lses = ctx.saved_tensors
        dk, dv = torch.empty_like(k), torch.empty_like(v)
        # The parts' keys lie side by side; what lies around them is not seen.
        seen = slice(ctx.parts[0].pieces[0].keys.start, ctx.parts[-1].pieces[-1].keys.stop)
        for x in (dk, dv):
            x[:, :, : seen.start] = 0
            x[:, :, seen.stop :] = 0
        dqs = []
        for (queries, pieces), lse, randoms in zip(ctx.parts, lses, ctx.randoms, strict=True):
            one = grad[:, :, queries], q[:, :, queries], out[:, :, queries]
            shares = []
            for (keys, causal, kernel), random in zip(pieces, randoms, strict=True):
                share, dk[:, :, keys], dv[:, :, keys] = kernel.backward(
                    one[0], one[1], k[:, :, keys], v[:, :, keys], one[2], lse, random, causal, ctx.scale
                )
                shares.append(share)
            dqs.append(shares[0] if len(shares) == 1 else shares[0].add_(shares[1]))
        return dqs[0] if len(dqs) == 1 else torch.cat(dqs, 2), dk, dv, None, None


def _merged(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp over the keys of both. A side that saw nothing has minus infinity and counts nothing."""
    lse = torch.logaddexp(one[1], other[1])
    weight, other_weight = ((x[1] - lse).exp()[..., None] for x in (one, other))
    # In the log-sum-exp's precision; rounded once, in place.
    return torch.addcmul(one[0] * weight, other[0], other_weight, out=one[0]), lse
