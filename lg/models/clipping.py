"""Clips gradients by the norm of all of them together, whether they are whole or lie on many devices in parts."""

from __future__ import annotations

from collections.abc import Iterable
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
    kinds: dict[type, dict[nn.Parameter, Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            kinds.setdefault(type(parameter.grad), {})[parameter] = parameter.grad
    norms = [whole_norm(torch.nn.utils.get_total_norm(gradients.values())) for gradients in kinds.values()]
    # Those that are sharded may lie in the host's memory while others do not.
    norm = torch.linalg.vector_norm(torch.stack([norm.to(norms[0]) for norm in norms])) if norms else torch.zeros(())
    for gradients in kinds.values():
        torch.nn.utils.clip_grads_with_norm_(gradients, most, norm)
    return norm


def whole_norm(norm: Tensor) -> Tensor:
    """A norm of sharded tensors is one of this rank's parts until it is asked for as a whole; on all ranks.

    Returns:
        A plain scalar, on the device by which ranks talk.
    """
    mesh = getattr(norm, "device_mesh", None)
    if mesh is None:
        return norm
    # Shards may lie in the host's memory, from where NCCL sends nothing.
    sharded: Any = norm.to(mesh.device_type)
    whole: Tensor = sharded.full_tensor()
    return whole
