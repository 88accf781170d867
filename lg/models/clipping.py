"""Clips gradients by the norm of all of them together, whether they are whole or lie on many devices in parts."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def clip_by_norm(parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """Scales all gradients alike, in place, where their norm is above ``most``.

    As `torch.nn.utils.clip_grad_norm_`, which takes no mixture of tensors that are whole with such that are sharded.

    Args:
        parameters: those without a gradient are passed over.
        most: the norm's largest value; infinity leaves gradients as they are.

    Returns:
        The norm before, a plain scalar, the same on all ranks; 0 without any gradient.
    """
    own = [parameter for parameter in parameters if parameter.grad is not None]
    norm = whole_norm([parameter.grad for parameter in own if parameter.grad is not None])
    kinds: dict[type, list[nn.Parameter]] = {}
    for parameter in own:
        kinds.setdefault(type(parameter.grad), []).append(parameter)
    for alike in kinds.values():
        torch.nn.utils.clip_grads_with_norm_(alike, most, norm)
    return norm


def whole_norm(tensors: Iterable[Tensor], dtype: torch.dtype | None = None) -> Tensor:
    """The norm of some tensors together, of which some may be sharded; to be called on all ranks then.

    Args:
        tensors: of one device, but for shards, which may lie in the host's memory.
        dtype: that it is computed in; by default theirs.

    Returns:
        A plain scalar, on the device by which ranks talk; 0 without any tensor.
    """
    kinds: dict[Hashable, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((getattr(tensor, "device_mesh", None), getattr(tensor, "placements", None)), []).append(tensor)
    norms = [_of_kind(alike, dtype) for alike in kinds.values()]
    return _norm_of(norms) if norms else torch.zeros(())


def _of_kind(tensors: Sequence[Tensor], dtype: torch.dtype | None) -> Tensor:
    """Of tensors that are all whole, or all sharded alike."""
    first: Any = tensors[0]
    mesh = getattr(first, "device_mesh", None)
    if mesh is None:
        return _norm_of(torch._foreach_norm(list(tensors), 2, dtype=dtype))
    # Shards may lie in the host's memory, from where NCCL sends nothing: nothing is to be sent before the norm of this
    # rank's parts is where ranks talk. A norm of what is sharded says how those of parts are put together.
    own: list[Any] = list(tensors)
    parts = _norm_of(torch._foreach_norm([tensor.to_local() for tensor in own], 2, dtype=dtype))
    ways = torch.linalg.vector_norm(first).placements
    whole: Tensor = type(first).from_local(parts.to(mesh.device_type), mesh, ways, run_check=False).full_tensor()
    return whole


def _norm_of(norms: Sequence[Tensor]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    return norm
