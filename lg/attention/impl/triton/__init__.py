"""lg's own kernels, in Triton: any pattern, forward and backward, at the tiles its table lists.

Shapes: B batch, H query heads, G KV heads, L tokens, Lq queries, D head width.
"""

from __future__ import annotations

import importlib.util
from functools import cache

import torch
from torch import Tensor

from lg.attention.constant import constant_in_graphs
from lg.attention.impl import Executed
from lg.attention.impl.triton import predicate
from lg.attention.impl.triton.options import Options, options
from lg.attention.tiles import Tiles

_HOPPER = (9, 0)
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def refusal(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> str | None:
    """What the kernels do not take."""
    if q.dtype not in _DTYPES:
        return f"lg's Triton kernels are for {', '.join(str(d)[6:] for d in _DTYPES)}, not {str(q.dtype)[6:]}"
    if not 1 <= q.shape[3] <= 256:
        return f"lg's Triton kernels are for head widths up to 256, not {q.shape[3]}"
    return without(q.device, tiles.text)


def run(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
    """Attention: [B, H, Lq, D]. A query that sees nothing gives 0."""
    return with_lse(q, k, v, tiles, scale)[0]


def with_lse(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> tuple[Tensor, Tensor]:
    """Attention, and the natural log-sum-exp of each query's scaled scores: float32 [B, H, Lq].

    The log-sum-exp has no gradient.
    """
    from lg.attention.impl.triton.operators import attention
    from lg.attention.impl.triton.plan import Packed, packed, plan

    if scale <= 0:
        # The kernels look for the greatest score before they scale.
        q, scale = (-q, -scale) if scale else (q * 0, 1.0)
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    launched = _options(q.dtype, q.shape[3], q.device)

    def make() -> Packed:
        # Kept for whoever comes later, who may take gradients.
        with torch.inference_mode(False):
            return packed(plan(tiles, launched), q.device)

    on = tiles.kept(("triton", launched, q.device), make)
    out, lse = attention(q, k, v, on.lists, on.numbers, tiles.text, tiles.query_ranges[0][0], scale)
    return out, lse


def executed(tiles: Tiles) -> Executed:
    """The tiles on the forward pass's lists at head width 128 in bfloat16 on Hopper, full or partial."""
    launch = options(torch.bfloat16, 128, _HOPPER).forward
    table = tiles.table(launch.q, launch.k)
    return Executed(table.num_listed.view(table.heads, -1).sum(1) * (launch.q * launch.k), scores_again=True)


@constant_in_graphs
def _options(dtype: torch.dtype, width: int, device: torch.device) -> Options:
    """How the kernels are launched there."""
    return options(dtype, width, torch.cuda.get_device_capability(device) if device.type == "cuda" else None)


@constant_in_graphs
def without(device: torch.device, text: str) -> str | None:
    """Why the kernels cannot run there, or cannot say this predicate."""
    return _reason(device, text)


@cache
def _reason(device: torch.device, text: str) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install 'lg[triton]'"
    if device.type == "cpu":
        from lg.attention.impl.triton.launch import interpreted

        if not interpreted():
            return "lg's Triton kernels run on a GPU; on a CPU only in Triton's interpreter (TRITON_INTERPRET=1)"
    elif device.type != "cuda":
        return f"lg's Triton kernels run on CUDA devices, not on {device.type}"
    elif (capability := torch.cuda.get_device_capability(device)) < (8, 0):
        major, minor = capability
        return f"lg's Triton kernels need a GPU of compute capability 8.0 or later, not {major}.{minor}"
    return predicate.refusal(text)
