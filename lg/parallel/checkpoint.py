"""Reads a checkpoint of one file, as one device writes it, into weights and optimizers that lie on many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.optim import Optimizer


def load_whole(
    path: Path, module: nn.Module, optimizers: Sequence[Optimizer], strict: bool, weights_only: bool
) -> dict[str, Any]:
    """Each rank takes its part of what is in the file.

    Args:
        path: a file as Lightning writes it: "state_dict", and "optimizer_states", whose parameters are numbered in the
            order of the optimizer's groups.
        module: what is sharded.
        optimizers: of its parameters; none where nothing is trained.
        strict: whether module and file must have the same weights.
        weights_only: whether the file may hold plain data only.

    Returns:
        What else is in the file.

    Raises:
        ValueError: if the optimizer that was saved has other groups.
    """
    # Mapped, so that ranks of one host share what they read of it.
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=True)
    options = StateDictOptions(full_state_dict=True, strict=strict)
    set_model_state_dict(module, content.pop("state_dict"), options=options)
    for optimizer, saved in zip(optimizers, content.pop("optimizer_states", ()), strict=False):
        set_optimizer_state_dict(module, optimizer, _by_name(saved, module, optimizer), options=options)
    return content


def _by_name(saved: Mapping[str, Any], module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer's state whose parameters are called by name, not by number."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    sizes, own = (
        [len(group["params"]) for group in groups] for groups in (saved["param_groups"], optimizer.param_groups)
    )
    if sizes != own:
        raise ValueError(
            f"ckpt_path: the checkpoint's optimizer has groups of {sizes} weights, and the run's of {own}; a run with "
            "the same weights is needed"
        )
    state, param_groups = {}, []
    for there, here in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        called = [names[id(parameter)] for parameter in here["params"]]
        state.update({name: saved["state"][number] for name, number in zip(called, there["params"], strict=True)})
        param_groups.append({**there, "params": called})
    return {"state": state, "param_groups": param_groups}
