"""Full causal attention by torch's own kernels: nothing in torch is faster where all is seen.

A sequence of one document is one plain call. Otherwise each document is a part of its own, and so is each piece of one
in which the pattern is full causal attention (`Pattern.pieces`), for the KV heads that are cut alike; parts of one
length side by side are one call, a batch. Where a chunk of queries has a past in its document, which torch sends to
slower kernels, that part is two calls: the keys before the chunk, seen by every query, and the chunk's own keys,
causal. The two are merged by their log-sum-exps (as in Ring Attention: Liu et al. 2023, arXiv 2310.01889, section 3),
and each is differentiated with the merged output and log-sum-exp, which is exact. Keys and values are never copied on
the way in, but where a batch has several rows.

Of packed documents only the parts whose lengths come again, since they are whole blocks, go to cuDNN: it plans for each
new length. The others go to FlashAttention-2.

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
from lg.attention.documents import Documents
from lg.attention.impl import Executed
from lg.attention.impl.fused import BACKENDS, WITHOUT_PLANS, Kernel, is_whole_in_torch, kernel_for
from lg.attention.impl.stretches import executed_in_all, stretch_by_stretch
from lg.attention.part import Part
from lg.attention.patterns import Causal
from lg.attention.tiles import Tiles

# Lengths of packed documents that are multiples of it are taken to come again: there are few.
_BLOCK = 1024


class _Cut(NamedTuple):
    """KV heads that see alike, all of them by a slice without bounds, and the documents in which that is full causal
    attention.
    """

    heads: slice
    documents: Documents


class _Place(NamedTuple):
    """Tokens of some heads, as a batch of so many parts of one length."""

    heads: slice
    tokens: slice
    times: int

    def of(self, x: Tensor) -> Tensor:
        """These of [B, H, L, D], as [B * times, own heads, L of a part, D]."""
        part: Tensor = x[:, self.heads, self.tokens]
        return part if self.times == 1 else self._apart(part).flatten(0, 1)

    def put(self, into: Tensor, value: Tensor) -> None:
        """Writes what `of` would give."""
        part = into[:, self.heads, self.tokens]
        if self.times > 1:
            part, value = self._apart(part), value.view(-1, self.times, *value.shape[1:])
        part.copy_(value)

    def _apart(self, part: Tensor) -> Tensor:
        length = part.shape[2] // self.times
        return part.unfold(2, length, length).permute(0, 2, 1, 4, 3)


class _Piece(NamedTuple):
    """One call: its keys, whether each query sees them all or causally, and the kernel."""

    keys: _Place
    causal: bool
    kernel: Kernel


class _Part(NamedTuple):
    """What one document has to do, or several of one length: queries, and the one or two calls that their keys take."""

    queries: _Place
    pieces: list[_Piece]


def refusal(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> str | None:
    """Only the pattern that sees every earlier key, also in pieces; and in parts only by a kernel that tells its
    log-sum-exp.
    """
    cuts = _cuts(tiles)
    if cuts is None or (isinstance(tiles, Part) and tiles.text != Causal().text):
        among = ", of what ranks share" if cuts else ""
        return f"it computes full causal attention only{among}, not {tiles.pattern}"
    if tiles.text != Causal().text and torch.compiler.is_compiling():
        return f"it computes pieces of full causal attention outside of compiled graphs only, not {tiles.pattern}"
    if not _whole(tiles) and kernel_for(q, k, v, causal=False, scale=1.0) is None:
        return (
            f"torch has no fused kernel for {q.dtype} at head width {q.shape[3]} on {q.device.type}, "
            "which packed documents and chunks of queries need"
        )
    return None


def run(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
    """Causal attention within each document, or piece of one: [B, H, Lq, D]."""
    if isinstance(tiles, Part):
        return stretch_by_stretch(run, q, k, v, tiles, scale)
    parts = _parts_of(q, k, v, tiles, scale)
    if parts is None:
        with sdpa_kernel(BACKENDS, set_priority=True):
            gqa = q.shape[1] != k.shape[1]
            return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=gqa)
    out: Tensor = _Parts.apply(q, k, v, parts, scale)  # type: ignore[no-untyped-call]
    return out


def executed(tiles: Tiles) -> Executed:
    """What kernels compute that skip the tiles above the diagonal of each document, or piece of one."""
    if isinstance(tiles, Part):
        return executed_in_all(executed, tiles)
    cuts = _cuts(tiles)
    assert cuts is not None, tiles.pattern
    pairs = [banded_pairs(Causal().tiles(cut.documents, queries=tiles.queries)) for cut in cuts]
    heads = torch.tensor([len(range(tiles.heads)[cut.heads]) for cut in cuts])
    return Executed(torch.cat(pairs).repeat_interleave(heads), scores_again=True)


def _cuts(tiles: Tiles) -> list[_Cut] | None:
    """KV heads, in order, with their documents; None if the pattern is anything but full causal attention."""
    if tiles.text == Causal().text:
        return [_Cut(slice(None), tiles.documents)]
    return tiles.kept("full causal attention", lambda: _cuts_made(tiles))


def _cuts_made(tiles: Tiles) -> list[_Cut] | None:
    cuts: list[_Cut] = []
    for head in range(tiles.heads):
        starts: list[int] = []
        for first, end in tiles.documents.bounds.T.tolist():
            pieces = tiles.pattern.pieces(end - first, head)
            if pieces is None:
                return None
            starts += [first + piece for piece in pieces]
        if cuts and cuts[-1].documents.starts == tuple(starts):
            cuts[-1] = _Cut(slice(cuts[-1].heads.start, head + 1), cuts[-1].documents)
        else:
            cuts.append(_Cut(slice(head, head + 1), Documents(tiles.documents.length, starts)))
    # Of heads that are alike it may not be told how many they are.
    return cuts if len(cuts) > 1 else [_Cut(slice(None), cuts[0].documents)]


def _whole(tiles: Tiles) -> bool:
    cuts = _cuts(tiles)
    one = cuts is not None and len(cuts) == 1 and len(cuts[0].documents.starts) == 1
    return one and tiles.all_queries and tiles.all_keys


def _parts_of(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> list[_Part] | None:
    """As `_parts`, which is asked once for all layers whose tensors are of one form."""
    if torch.compiler.is_compiling():
        return _parts(q, k, v, tiles, scale)
    forms = tuple((x.shape, x.stride(), x.dtype, x.device, x.requires_grad) for x in (q, k, v))
    return tiles.kept(("parts", forms, torch.is_grad_enabled(), scale), lambda: _parts(q, k, v, tiles, scale))


def _parts(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> list[_Part] | None:
    """None where one call of torch's is as good."""
    if _whole(tiles) and is_whole_in_torch(q, k, v):
        return None
    cuts, groups = _cuts(tiles), q.shape[1] // k.shape[1]
    assert cuts is not None, tiles.pattern
    parts = []
    for heads, documents in cuts:
        query_heads = heads if heads == slice(None) else slice(heads.start * groups, heads.stop * groups)
        for keys, own, count in _rows(documents, *tiles.queries):
            queries = _Place(query_heads, slice(own.start - tiles.queries[0], own.stop - tiles.queries[0]), count)
            pieces = []
            for tokens, causal in ((keys, False), (own, True)):
                if tokens.start < tokens.stop:
                    place = _Place(heads, tokens, count)
                    args = queries.of(q), place.of(k), place.of(v)
                    comes_again = len(documents.starts) == 1 or all(x.shape[2] % _BLOCK == 0 for x in args)
                    # Asked for each call: cuDNN, for one, does not take a single key.
                    kernel = None if comes_again else kernel_for(*args, causal, scale, WITHOUT_PLANS)
                    kernel = kernel or kernel_for(*args, causal, scale)
                    assert kernel, f"no kernel for {queries} and {place}"
                    pieces.append(_Piece(place, causal, kernel))
            parts.append(_Part(queries, pieces))
    return parts


def _rows(documents: Documents, first: int, end: int) -> list[tuple[slice, slice, int]]:
    """Of each document in which queries from ``first`` to ``end`` lie: the keys before these queries, the queries, and
    1; of several documents of one length whose queries are all there, one after another: no keys, their tokens, and
    how many they are.
    """
    rows: list[tuple[slice, slice, int]] = []
    for begin, stop in documents.bounds.T.tolist():
        own = slice(max(begin, first), min(stop, end))
        if own.start >= own.stop:
            continue
        keys, before, count = rows[-1] if rows else (slice(0, 0), slice(0, 0), 0)
        is_like_those = before.stop - before.start == count * (stop - begin) and keys.start == keys.stop
        # A launch takes no more.
        if own == slice(begin, stop) and before.stop == begin and 0 < count < 2**15 and is_like_those:
            rows[-1] = keys, slice(before.start, stop), count + 1
        else:
            rows.append((slice(begin, own.start), own, 1))
    return rows


class _Parts(torch.autograd.Function):
    """Attention part by part; the parts' keys do not overlap, so each writes its own gradients."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, parts: list[_Part], scale: float) -> Tensor:
        out, lses, randoms = torch.empty_like(q), [], []
        for queries, pieces in parts:
            done = [
                kernel.forward(queries.of(q), keys.of(k), keys.of(v), causal, scale) for keys, causal, kernel in pieces
            ]
            own, lse = _merged(*(x[:2] for x in done)) if len(done) == 2 else done[0][:2]
            if len(parts) == 1 and queries.times == 1:
                out = own
            else:
                queries.put(out, own)
            lses.append(lse)
            randoms.append([random for _, _, random in done])
        ctx.save_for_backward(q, k, v, out, *lses)
        ctx.parts, ctx.randoms, ctx.scale = parts, randoms, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *lses = ctx.saved_tensors
        dq = torch.empty_like(q)
        # A chunk of queries does not see all keys.
        make = torch.empty_like if q.shape[2] == k.shape[2] else torch.zeros_like
        dk, dv = make(k), make(v)
        for (queries, pieces), lse, randoms in zip(ctx.parts, lses, ctx.randoms, strict=True):
            one = queries.of(grad), queries.of(q), queries.of(out)
            shares = []
            for (keys, causal, kernel), random in zip(pieces, randoms, strict=True):
                share, *of_keys = kernel.backward(
                    one[0], one[1], keys.of(k), keys.of(v), one[2], lse, random, causal, ctx.scale
                )
                shares.append(share)
                for into, value in zip((dk, dv), of_keys, strict=True):
                    keys.put(into, value)
            queries.put(dq, shares[0] if len(shares) == 1 else shares[0].add_(shares[1]))
        return dq, dk, dv, None, None


def _merged(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp over the keys of both. A side that saw nothing has minus infinity and counts nothing."""
    lse = torch.logaddexp(one[1], other[1])
    weight, other_weight = ((x[1] - lse).exp()[..., None] for x in (one, other))
    # In the log-sum-exp's precision; rounded once, in place.
    return torch.addcmul(one[0] * weight, other[0], other_weight, out=one[0]), lse
