"""Reads a checkpoint that many devices wrote into a folder as what one device would have written into a file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load


def consolidated(folder: Path, tell: Callable[[float], None] = lambda done: None) -> dict[str, Any]:
    """What is in a folder that the strategy wrote, as Lightning keeps it in one file.

    Needs no processes that talk to each other, and host memory for all of it.

    Args:
        folder: a whole one.
        tell: is given the share of the tensors' bytes that was read, now and then.

    Returns:
        "state_dict" of whole tensors by name; "optimizer_states", whose parameters are numbered in the order of the
        optimizer's groups; and what else was saved, as it was.

    Raises:
        OSError: if it is damaged.
    """
    index = FileSystemReader(folder).read_metadata()
    flat = {
        name: torch.empty(kept.size, dtype=kept.properties.dtype) if isinstance(kept, TensorStorageMetadata) else None
        for name, kept in index.state_dict_metadata.items()
    }
    with warnings.catch_warnings():
        # That one process reads alone is what is wanted.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        try:
            load(flat, storage_reader=FileSystemReader(folder), planner=_Told(flat, tell), no_dist=True)
        except CheckpointException as error:  # which is no Exception
            raise OSError(error.failures[0][0]) from error
    tree = _tree({index.planner_data[name]: value for name, value in flat.items()})
    content: dict[str, Any] = torch.load(folder / "meta.pt", map_location="cpu", weights_only=True)
    optimizers = [tree[f"optimizer_{number}"] for number in range(len(tree.keys() - {"state_dict"}))]
    return {**content, "state_dict": tree["state_dict"], "optimizer_states": [_by_number(o) for o in optimizers]}


def missing_part(folder: Path) -> str | None:
    """The name of a file that a sharded checkpoint should have, whole, and has not; None if all are there."""
    index = FileSystemReader(folder).read_metadata()
    needed: dict[str, int] = {}
    for kept in index.storage_data.values():
        needed[kept.relative_path] = max(needed.get(kept.relative_path, 0), kept.offset + kept.length)
    for name, num_bytes in needed.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size < num_bytes:
            return name
    return None


def shapes_in(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each weight in a checkpoint, a file or a folder, by its name; no weight is read."""
    if checkpoint.is_dir():
        index = FileSystemReader(checkpoint).read_metadata()
        return {
            name.removeprefix("state_dict."): tuple(kept.size)
            for name, kept in index.state_dict_metadata.items()
            if name.startswith("state_dict.") and isinstance(kept, TensorStorageMetadata)
        }
    content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    return {name: tuple(tensor.shape) for name, tensor in content["state_dict"].items()}


class _Told(DefaultLoadPlanner):
    """Reads what the flat mapping asks for, and tells how much of it there is already."""

    def __init__(self, flat: Mapping[str, Tensor | None], tell: Callable[[float], None]) -> None:
        super().__init__()
        self._all = sum(value.nbytes for value in flat.values() if value is not None)
        self._read = 0
        self._tell = tell

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        super().commit_tensor(read_item, tensor)
        self._read += tensor.nbytes
        self._tell(self._read / max(self._all, 1))


def _tree(flat: Mapping[tuple[str | int, ...], Any]) -> dict[Any, Any]:
    """Mappings in mappings, from the path to each value."""
    tree: dict[Any, Any] = {}
    for path, value in flat.items():
        inner = tree
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        inner[path[-1]] = value
    return tree


def _by_number(named: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state whose parameters are called by number, as the optimizer itself calls them."""
    groups = [group for _, group in sorted(named["param_groups"].items())]
    names = [name for group in groups for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    return {
        "state": {numbers[name]: state for name, state in named.get("state", {}).items()},
        "param_groups": [{**group, "params": [numbers[name] for name in group["params"]]} for group in groups],
    }
