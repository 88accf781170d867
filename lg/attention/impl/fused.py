"""torch's fused attention kernels behind one interface, for attention that is merged from parts of the keys.

That needs of a kernel that it tells the log-sum-exp of its scores, and that its backward pass can be handed another
output and log-sum-exp than its own: those of all parts together.

Shapes: B batch, H query heads, G KV heads, L keys, Lq queries, D head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad

_aten = torch.ops.aten

# By preference where several can run; torch's own order takes FlashAttention-2 where cuDNN is much faster (Hopper).
BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]

# cuDNN plans for each new shape, forward and backward, which takes longer than most documents do (0.2 s, by the time of
# steps whose documents were all new); the other kernels take any length at once.
WITHOUT_PLANS = BACKENDS[1:]

# What a forward pass hands to its backward pass besides the usual: the random state of dropout, of which there is none.
_Random = tuple[Tensor, ...]


class Kernel(NamedTuple):
    """One of torch's kernels.

    ``forward(q, k, v, causal, scale)`` gives the output [B, H, Lq, D], the natural log-sum-exp of the scaled scores
    [B, H, Lq] (float32; float64 for float64) and what backward wants back. ``backward(grad, q, k, v, out, lse, random,
    causal, scale)`` gives dq, dk, dv. If ``out`` and ``lse`` are those over more keys than ``k``, they are this part's
    exact share of the gradients: the kernels make the weights anew from ``lse``, and their D = rowsum(grad * out) is
    then that of the whole. ``causal`` takes as many queries as keys.
    """

    forward: Callable[[Tensor, Tensor, Tensor, bool, float], tuple[Tensor, Tensor, _Random]]
    backward: Callable[
        [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, _Random, bool, float], tuple[Tensor, Tensor, Tensor]
    ]


def kernel_for(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, backends: list[SDPBackend] = BACKENDS
) -> Kernel | None:
    """The kernel that `scaled_dot_product_attention` would take of some; None if it has none but plain arithmetic.

    Where it has none for grouped heads only, the kernel that takes the heads repeated.
    """
    kernel = _choice(q, k, v, causal, scale, backends)
    if kernel is None and q.shape[1] != k.shape[1]:
        # Of the repeated heads only the shape matters to the choice.
        k, v = (x[:, :1].expand(-1, q.shape[1], -1, -1) for x in (k, v))
        kernel = _choice(q, k, v, causal, scale, backends)
    return kernel


def is_whole_in_torch(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether one call of `scaled_dot_product_attention` is as good as any: not if it would write out the scores of
    grouped heads where a kernel takes them repeated.
    """
    if q.shape[1] == k.shape[1] or _choice(q, k, v, True, 1.0):
        return True
    return kernel_for(q, k, v, True, 1.0) is None


def _choice(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, backends: list[SDPBackend] = BACKENDS
) -> Kernel | None:
    grouped = q.shape[1] != k.shape[1]
    with sdpa_kernel(backends, set_priority=True):
        choice = torch._fused_sdp_choice(q, k, v, None, 0.0, causal, scale=scale, enable_gqa=grouped)
    return (_CPU if q.device.type == "cpu" else _CUDA).get(SDPBackend(choice))


def _cudnn_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor, _Random]:
    done = _aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal, scale=scale)
    # Its log-sum-exp is [B, H, Lq, 1].
    return done[0], done[1].reshape(q.shape[:3]), (done[6], done[7])


def _cudnn_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, random: _Random, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = _aten._scaled_dot_product_cudnn_attention_backward(
        grad, q, k, v, out, lse[..., None], *random, None, None, None, q.shape[2], k.shape[2], 0.0, causal, scale=scale
    )
    return gradients


def _flash_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor, _Random]:
    done = _aten._scaled_dot_product_flash_attention(*_of_eights(q, k, v), 0.0, causal, scale=scale)
    return done[0][..., : q.shape[3]], done[1], (done[6], done[7])


def _flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, random: _Random, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = _aten._scaled_dot_product_flash_attention_backward(
        *_of_eights(grad, q, k, v, out), lse, None, None, q.shape[2], k.shape[2], 0.0, causal, *random, scale=scale
    )
    width = q.shape[3]
    return dq[..., :width], dk[..., :width], dv[..., :width]


def _of_eights(*tensors: Tensor) -> list[Tensor]:
    """FlashAttention-2 takes head widths that are multiples of 8; zeros change nothing."""
    missing = -tensors[0].shape[-1] % 8
    return [pad(x, (0, missing)) for x in tensors] if missing else list(tensors)


def _efficient_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor, _Random]:
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    out, lse, *random = _aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, causal, scale=scale)
    # Its log-sum-exp is [B, H, Lq filled up to a multiple of 32].
    return out, lse[..., : q.shape[2]], tuple(random)


def _efficient_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, random: _Random, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    heads_kv, groups = k.shape[1], q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    # exp(score - inf) is 0: what fills up has no weight.
    lse = pad(lse, (0, -lse.shape[-1] % 32), value=float("inf"))
    dq, dk, dv, _ = _aten._scaled_dot_product_efficient_attention_backward(
        grad, q, k, v, None, out, lse, *random, 0.0, [True, True, True, False], causal, scale=scale
    )
    if groups > 1:
        dk, dv = (x.unflatten(1, (heads_kv, groups)).sum(2) for x in (dk, dv))
    return dq, dk, dv


def _cpu_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor, _Random]:
    out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
    # Its log-sum-exp is [B, Lq, H] in memory, and backward takes no other.
    return out, lse, ()


def _cpu_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, random: _Random, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, k, v, out, lse, 0.0, causal, scale=scale
    )
    return gradients


_CUDA = {
    SDPBackend.CUDNN_ATTENTION: Kernel(_cudnn_forward, _cudnn_backward),
    SDPBackend.FLASH_ATTENTION: Kernel(_flash_forward, _flash_backward),
    SDPBackend.EFFICIENT_ATTENTION: Kernel(_efficient_forward, _efficient_backward),
}
_CPU = {SDPBackend.FLASH_ATTENTION: Kernel(_cpu_forward, _cpu_backward)}
