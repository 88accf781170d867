"""Weighted averages of models of one shape, tensor by tensor: checkpoints of lg's, or folders of transformers.

LongRecipe (arXiv 2409.00509, section 3.3) ends so: half of the original model, half of the one that was trained.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lg.models import checkpoint
from lg.models.checkpoint import differences
from lg.models.pretrained.weights import Folder

Tell = Callable[[float], None]
"""Is told the share that is done, now and then."""

# What holds weights, and is not copied.
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".ckpt")


def average(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted sum of tensors of one shape, summed in float64 and rounded once to the type of the first.

    >>> average([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])], [0.5, 0.5])
    tensor([2., 4.])
    """
    total = torch.zeros(tensors[0].shape, dtype=torch.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        total.add_(tensor.to(torch.float64), alpha=weight)
    return total.to(tensors[0].dtype)


def merged_checkpoint(paths: Sequence[Path], weights: Sequence[float], tell: Tell) -> tuple[dict[str, Any], list[str]]:
    """A checkpoint of weights alone, with the configuration of the first.

    Memory holds one model; the others are read tensor by tensor.

    Args:
        paths: checkpoints that are one file each.
        weights: as many.
        tell: is told the share that is done.

    Returns:
        What is to be saved, and in what the configurations differ, as `other_values`.

    Raises:
        ValueError: if one is no checkpoint, or the models' weights differ in name or shape.
    """
    opened = [_opened(path) for path in paths]
    told = [checkpoint.load(content) for content in opened]
    states: list[Mapping[str, Tensor]] = [content["state_dict"] for content in opened]
    _check_alike(paths, [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in states])
    merged: dict[str, Tensor] = {}
    # What is tied in all of them stays so.
    done: dict[tuple[int, ...], Tensor] = {}
    for number, name in enumerate(states[0], 1):
        tensors = [state[name] for state in states]
        where = tuple(tensor.data_ptr() for tensor in tensors)
        if where not in done or done[where].shape != tensors[0].shape:
            done[where] = average(tensors, weights)
        merged[name] = done[where]
        tell(number / len(states[0]))
    # Lightning reads the version from it, and `lg validate` the step.
    kept = {key: opened[0][key] for key in ("lg", "pytorch-lightning_version", "epoch", "global_step")}
    return {**kept, "epoch": 0, "global_step": 0, "state_dict": merged}, other_values(paths, told)


def merge_folders(out: Path, paths: Sequence[Path], weights: Sequence[float], tell: Tell) -> None:
    """Writes a folder of transformers with the configuration and the tokenizer of the first; whole or not at all.

    Memory holds one file of the first model's, and one tensor of each other.

    Args:
        out: the folder, which must not exist.
        paths: folders that hold safetensors.
        weights: as many.
        tell: is told the share that is done.

    Raises:
        ValueError: if one holds no safetensors, or weights differ in name or shape, or it cannot be written.
    """
    from safetensors.torch import save_file

    try:
        folders = [Folder(path) for path in paths]
    except ValueError as error:
        raise ValueError(str(error).replace("model.init_args.pretrained", "MODEL")) from error
    _check_alike(paths, [{name: folder.form(name).shape for name in folder.names} for folder in folders])
    part = out.with_name(f".{uuid.uuid4().hex}.part")
    first = folders[0]
    files: dict[str, list[str]] = {}
    for name in sorted(first.names):
        files.setdefault(first.file_of(name).name, []).append(name)
    number = 0
    try:
        part.mkdir()
        for file, names in files.items():
            tensors: dict[str, Tensor] = {}
            for name in names:
                tensors[name] = average([folder.tensor(name) for folder in folders], weights)
                number += 1
                tell(number / len(first.names))
            save_file(tensors, part / file, {"format": "pt"})
        for file_of_first in paths[0].iterdir():
            if file_of_first.is_file() and file_of_first.suffix not in _WEIGHTS:
                shutil.copyfile(file_of_first, part / file_of_first.name)
        part.rename(out)
    except OSError as error:
        raise ValueError(f"OUT: {str(out)!r} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def other_values(paths: Sequence[Path], told: Sequence[Mapping[str, Any]]) -> list[str]:
    """In what the configurations of models differ from that of the first: keys, values and files.

    >>> other_values([Path("a"), Path("b")], [{"decoder": {"rope_theta": 1e4}}, {"decoder": {"rope_theta": 5e5}}])
    ['decoder.rope_theta is 10000.0 in a and 500000.0 in b']
    """
    return [
        f"{key} is {first!r} in {paths[0]} and {other!r} in {path}"
        for path, config in zip(paths[1:], told[1:], strict=True)
        for key, first, other in differences(told[0], config)
    ]


def _opened(path: Path) -> dict[str, Any]:
    """A checkpoint, its tensors left on the disk."""
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever damage makes of pickled and packed bytes
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(f"MODEL: {str(path)!r} cannot be read: {said}") from error
    try:
        config = checkpoint.load(content)
    except (TypeError, ValueError) as error:
        raise ValueError(f"MODEL: {str(path)!r}: {error}") from error
    if config.get("adapter") is not None:
        raise ValueError(
            f"MODEL: {str(path)!r} holds an adapter, whose parts cannot be averaged; `lg export` each, and merge the "
            "folders"
        )
    return content


def _check_alike(paths: Sequence[Path], shapes: Sequence[Mapping[str, tuple[int, ...]]]) -> None:
    """Refuses models that are not of one shape, with all that differs."""
    said: list[str] = []
    for path, other in zip(paths[1:], shapes[1:], strict=True):
        for name in sorted({*shapes[0], *other}):
            was, now = (one.get(name) for one in (shapes[0], other))
            if was != now:
                said.append(f"{name} is {_told(was)} in {paths[0]} and {_told(now)} in {path}")
    if said:
        raise ValueError(f"MODEL: the models have not the same weights: {'; '.join(said)}")


def _told(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else str(list(shape))
