"""Checkpoints of weights and optimizers that lie on many devices: writes a folder; reads what one device has written.

A folder is written by a thread on a copy, while training goes on.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


def folder_writer(
    path: Path,
    checkpoint: Mapping[str, Any],
    group: dist.ProcessGroup,
    settle: Callable[[], None],
    in_host: bool = False,
) -> Callable[[], None]:
    """What writes a checkpoint into a folder; to be called once on every rank, by whatever thread.

    Args:
        path: the folder, the same on every rank; made if it is not there.
        checkpoint: as Lightning makes it. It is copied now: what training changes later is not written.
        group: all ranks, by gloo; for nothing else meanwhile.
        settle: what rank 0 does when all ranks have written their part.
        in_host: whether shards of weights lie in the host's memory while they are trained, on any device.

    Returns:
        A function that raises OSError on all ranks if one of them could not write, or ``settle`` failed.
    """
    beside = {**checkpoint}
    parts = {"state_dict": _copied(beside.pop("state_dict"), in_host)}
    for number, state in enumerate(beside.pop("optimizer_states", ())):
        parts[f"optimizer_{number}"] = _copied(state, in_host)
    packed = io.BytesIO()
    torch.save(beside, packed)

    def write() -> None:
        path.mkdir(parents=True, exist_ok=True)
        try:
            save(parts, checkpoint_id=path, process_group=group)
        except CheckpointException as error:  # no Exception; the same on all ranks
            rank, (failure, _) = min(error.failures.items())
            raise OSError(f"rank {rank}: {failure}") from error
        told: list[str | None] = [None]
        if dist.get_rank(group) == 0:
            try:
                (path / "meta.pt").write_bytes(packed.getbuffer())
                settle()
            except Exception as error:  # whatever it is, the others wait to be told
                told = [f"rank 0: {error}"]
        dist.broadcast_object_list(told, 0, group)
        if told[0] is not None:
            raise OSError(told[0])

    return write


def _copied(value: Any, in_host: bool) -> Any:
    """A tree of mappings and lists with copies of its tensors, in the host's memory."""
    if isinstance(value, Tensor):
        # Lightning has brought what was elsewhere here, and so copied it already.
        shared = value.is_cpu if not isinstance(value, DTensor) else in_host or value.device_mesh.device_type == "cpu"
        return value.detach().clone() if shared else value.detach()
    if isinstance(value, dict):
        return {name: _copied(inner, in_host) for name, inner in value.items()}
    return [_copied(inner, in_host) for inner in value] if isinstance(value, list) else value


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
