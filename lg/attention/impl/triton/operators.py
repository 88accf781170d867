"""The kernels as operators of torch, ``lg::attention`` and ``lg::attention_backward``.

So `torch.compile` takes them as they are, and selective activation checkpointing may name them and keep their results.
Their arguments are all that they depend on: tensors, numbers, and the predicate's text.

Shapes: B batch, H query heads, G KV heads, L tokens, Lq queries, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lg.attention.impl.triton import launch
from lg.attention.impl.triton.plan import unpacked


@torch.library.custom_op("lg::attention", mutates_args=())
def attention(
    q: Tensor, k: Tensor, v: Tensor, lists: Tensor, numbers: Tensor, text: str, first_query: int, scale: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attention by Triton.

    Args:
        q: [B, H, Lq, D].
        k, v: [B, G, L, D].
        lists, numbers: those of `lg.attention.impl.triton.plan.Packed`.
        text: the predicate's.
        first_query: the token of the sequence that the first query is.
        scale: what scores are multiplied by; above 0.

    Returns:
        Output [B, H, Lq, D] in the type of ``q``; natural log-sum-exp of the scaled scores [B, H, Lq], float32. Of a
        query that sees nothing they are 0 and minus infinity.
    """
    return launch.forward(q, k, v, unpacked(lists, numbers), text, first_query, scale)


@attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, lists: Tensor, numbers: Tensor, text: str, first_query: int, scale: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("lg::attention_backward", mutates_args=())
def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, lists: Tensor, numbers: Tensor,
    text: str, first_query: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients dq, dk and dv of `attention`, in the types of ``q``, ``k`` and ``v``.

    If ``out`` and ``lse`` are those over more keys than ``k``, they are this part's exact share of the gradients.
    """
    return launch.backward(grad, q, k, v, out, lse, unpacked(lists, numbers), text, first_query, scale)


@attention_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, lists: Tensor, numbers: Tensor,
    text: str, first_query: int, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, lists, numbers, *ctx.others = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, lists, numbers)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    gradients = torch.ops.lg.attention_backward(grad, *ctx.saved_tensors, *ctx.others)
    return *gradients, None, None, None, None, None


attention.register_autograd(_differentiate, setup_context=_keep)
