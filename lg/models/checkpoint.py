"""What a checkpoint says of the model it holds: plain data only, so that it loads with ``weights_only``."""

from __future__ import annotations

import dataclasses
import importlib
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import torch

FORMAT = 1
"""Raised when an older lg could not read a new checkpoint rightly."""


def plain(**values: object) -> dict[str, Any]:
    """A constructor's arguments as plain data; objects the way YAML writes them, ``class_path`` and ``init_args``."""
    return {name: _plain(value) for name, value in values.items()}


def from_plain(config: dict[str, Any]) -> dict[str, Any]:
    """The constructor's arguments again."""
    return {name: _built(value) for name, value in config.items()}


def stamp(checkpoint: dict[str, Any], config: dict[str, Any]) -> None:
    """Adds configuration and format to what is to be saved."""
    checkpoint["lg"] = {"format": FORMAT, "config": config}


def content(path: str) -> dict[str, Any]:
    """What a checkpoint's file holds; tensors are read when they are used.

    Raises:
        ValueError: if the file is none, or a part of one.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever damage makes of pickled and packed bytes
        is_packed = zipfile.is_zipfile(path)
        why = str(error).splitlines()[0] if is_packed and str(error) else "it is no checkpoint, or a part of one"
        raise ValueError(f"{path!r} cannot be read: {why}; a checkpoint of lg's is needed") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path!r} holds a {type(found).__name__}; a checkpoint of lg's is needed")
    return found


def load(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The configuration that was saved.

    Raises:
        ValueError: if there is none, or its format is later than this version's.
    """
    if "lg" not in checkpoint:
        raise ValueError("this is no checkpoint of lg's: it carries no configuration (key 'lg')")
    if checkpoint["lg"]["format"] > FORMAT:
        raise ValueError(
            f"this checkpoint has format {checkpoint['lg']['format']}; this lg reads formats up to {FORMAT}: update lg"
        )
    config: dict[str, Any] = checkpoint["lg"]["config"]
    return config


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Where two configurations differ: keys with dots between them, and both values.

    >>> list(differences({"decoder": {"width": 64, "num_layers": 2}}, {"decoder": {"width": 32, "num_layers": 2}}))
    [('decoder.width', 64, 32)]
    """
    for key in {**before, **after}:
        was, now = before.get(key), after.get(key)
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            yield from ((f"{key}.{inner}", *values) for inner, *values in differences(was, now))
        elif was != now:
            yield key, was, now


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"class_path": f"{type(value).__module__}.{type(value).__qualname__}", "init_args": fields}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{value!r} cannot be saved in a checkpoint: configuration must be dataclasses and plain values")


def _built(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"class_path", "init_args"}:
        module, _, name = value["class_path"].rpartition(".")
        return getattr(importlib.import_module(module), name)(**from_plain(value["init_args"]))
    if isinstance(value, dict):
        return {key: _built(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_built(item) for item in value]
    return value
