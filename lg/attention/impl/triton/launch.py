"""Launches the kernels on tensors: grids, strides, and what is compiled into a kernel.

Shapes: B batch, H query heads, G KV heads, L tokens, Lq queries, D head width.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from lg.attention.impl.triton import backward as kernels
from lg.attention.impl.triton.forward import attention_forward
from lg.attention.impl.triton.options import Launch
from lg.attention.impl.triton.plan import Plan
from lg.attention.impl.triton.predicate import function
from lg.attention.impl.triton.work import Work

_LOG2E = 1.4426950408889634
# Queries' statistics are kept for so many at least, so that whole blocks can be read.
_PADDED = 256
# Keys of a block whose shares one program sums.
_SUMMED = 16


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on tensors of the CPU."""
    return not isinstance(attention_forward, triton.JITFunction)


def forward(
    q: Tensor, k: Tensor, v: Tensor, plan: Plan, text: str, first_query: int, scale: float
) -> tuple[Tensor, Tensor]:
    """As `lg.attention.impl.triton.operators.attention`."""
    (batch, heads, num_queries, _), num_keys = q.shape, k.shape[2]
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    launch = plan.options.forward
    queries, keys, values, tma = _blocks(launch, (q, launch.q), (k, launch.k), (v, launch.k))
    with on(q.device):
        attention_forward[_grid(plan.forward, heads // plan.heads, batch)](
            queries, keys, values, out, lse, *plan.forward.lists, *plan.where,
            *_strides(q, k, v, out), plan.forward.of_row, heads, num_queries, num_keys, plan.length,
            first_query, scale * _LOG2E,
            TMA=tma, **_compiled_in(q, k, text, plan, launch),
        )  # fmt: skip
    return out, lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, plan: Plan, text: str, first_query: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """As `lg.attention.impl.triton.operators.attention_backward`."""
    if grad.stride(3) != 1 or not _describable(grad):
        # One number for all, say. Another copy is cheaper than addresses of that kind.
        grad = grad.contiguous()
    dq, statistics = backward_query(grad, q, k, v, out, lse, plan, text, first_query, scale)
    return dq, *backward_key(grad, q, k, v, statistics, plan, text, first_query, scale)


def backward_query(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, plan: Plan, text: str, first_query: int,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradient of the queries, and what `backward_key` needs to know of each query: [B * H, 2, Lq padded]."""
    (batch, heads, num_queries, _), num_keys, launch = q.shape, k.shape[2], plan.options.query
    padded = -(-num_queries // _PADDED) * _PADDED
    statistics = lse.new_zeros((batch * heads, 2, padded))
    dq = torch.empty_like(q)
    queries, keys, values, grads, tma = _blocks(launch, (q, launch.q), (k, launch.k), (v, launch.k), (grad, launch.q))
    with on(q.device):
        kernels.attention_backward_query[_grid(plan.query, heads // plan.heads, batch)](
            queries, keys, values, out, grads, lse.contiguous(), statistics, dq, *plan.query.lists, *plan.where,
            *_strides(q, k, v, out, grad, dq), plan.query.of_row, heads, num_queries, num_keys, padded,
            plan.length, first_query, scale, TMA=tma, **_compiled_in(q, k, text, plan, launch),
        )  # fmt: skip
    return dq, statistics


def backward_key(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, statistics: Tensor, plan: Plan, text: str, first_query: int,
    scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients of keys and values."""
    (batch, _, num_queries, width), (heads_kv, num_keys), launch = q.shape, k.shape[1:3], plan.options.key
    grid, compiled_in = _grid(plan.key, heads_kv // plan.heads, batch), _compiled_in(q, k, text, plan, launch)
    num_slots = plan.key.num_slots(plan.heads * -(-num_keys // launch.k))
    shares = statistics.new_empty((batch, grid[1], num_slots, 2, launch.k, compiled_in["D"]))
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    queries, keys, values, grads, tma = _blocks(launch, (q, launch.q), (k, launch.k), (v, launch.k), (grad, launch.q))
    numbers = TensorDescriptor.from_tensor(statistics, [1, 1, launch.q]) if tma else statistics
    with on(q.device):
        kernels.attention_backward_key[grid](
            queries, keys, values, grads, numbers, dk, dv, shares, *plan.key.lists, *plan.where,
            *_strides(q, k, v, grad, dk, dv), plan.key.of_row, heads_kv, num_slots, num_queries, num_keys,
            statistics.shape[2], plan.length, first_query, scale, TMA=tma, **compiled_in,
        )  # fmt: skip
        if num_slots:
            kernels.sum_of_shares[(len(plan.key.dealt) * (launch.k // _SUMMED), *grid[1:])](
                shares, dk, dv, plan.key.dealt, *_strides(dk, dv), num_slots, num_keys,
                WIDTH=width, D=compiled_in["D"], K=launch.k, ROWS=_SUMMED, enable_fp_fusion=True,
            )  # fmt: skip
    return dk, dv


def _grid(work: Work, heads: int, batch: int) -> tuple[int, int, int]:
    """A program for each item, in each of the heads that see alike, in each row of the batch."""
    return work.items.shape[-2], heads, batch


def _strides(*tensors: Tensor) -> list[int]:
    """Of batch, head and token. Kernels take it that the elements of a head lie side by side."""
    assert all(x.stride(3) == 1 for x in tensors)
    return [stride for x in tensors for stride in x.stride()[:3]]


def _blocks(launch: Launch, *tensors: tuple[Tensor, int]) -> tuple[Any, ...]:
    """How a kernel is handed tensors that it loads in blocks of so many rows: as pointers, or as descriptors; and last
    whether they are the latter.
    """
    tma = bool(launch.tma) and all(_describable(x) for x, _ in tensors)
    return (*((_descriptor(x, rows) if tma else x) for x, rows in tensors), tma)


def _describable(x: Tensor) -> bool:
    """Whether the tensor memory accelerator can be told where the tensor lies: all at multiples of 16 bytes."""
    strides = [stride for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True) if size > 1]
    size = x.element_size()
    return x.data_ptr() % 16 == 0 and all(stride > 0 and stride * size % 16 == 0 for stride in strides)


def _descriptor(x: Tensor, rows: int) -> TensorDescriptor:
    """Of blocks of so many rows of a head."""
    # The stride of a single element is nowhere used, but must be allowed.
    strides = [stride if size > 1 else 16 for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True)]
    return TensorDescriptor(x, list(x.shape), [*strides, 1], [1, 1, rows, _padded(x.shape[3])])


def _padded(width: int) -> int:
    """Of a head, in a kernel."""
    return max(int(triton.next_power_of_2(width)), 16)


def _compiled_in(q: Tensor, k: Tensor, text: str, plan: Plan, launch: Launch) -> dict[str, Any]:
    """What is constant in a kernel."""
    width = q.shape[3]
    return {
        "SEES": function(text),
        "GROUPS": q.shape[1] // k.shape[1],
        "WIDTH": width,
        "D": _padded(width),
        "Q": launch.q,
        "K": launch.k,
        "PACKED": plan.where.starts.numel() > 0,
        "PART": plan.where.query_tokens.numel() > 0,
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
        "UPCAST": interpreted(),
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
        # Triton is changing what it does untold.
        "enable_fp_fusion": True,
    }


def on(device: torch.device) -> AbstractContextManager[None]:
    """Triton launches on the current device, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
