"""Checkpoints of lg's own as pretrained models: a run that begins with what another one, or `lg merge`, has written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lg.attention import Pattern
from lg.attention.schedule import layers
from lg.models import checkpoint
from lg.models.block import seen_in_use
from lg.models.config import DecoderConfig
from lg.models.presets import changed, preset
from lg.models.pretrained.weights import Form, names

_KEY = "model.init_args.pretrained"


class Saved:
    """The weights of a checkpoint, by transformers' names; read from the disk when they are asked for.

    Args:
        state: the module's weights by their own names.
        config: the shape.
    """

    def __init__(self, state: Mapping[str, Tensor], config: DecoderConfig) -> None:
        called = {f"decoder.{own}": theirs for own, theirs in names(config).items()}
        if config.tied_embeddings:
            called["decoder.head.weight"] = "lm_head.weight"
        self._state = {called.get(name, name): tensor for name, tensor in state.items()}

    @property
    def names(self) -> frozenset[str]:
        """What there is."""
        return frozenset(self._state)

    def form(self, name: str) -> Form:
        """That of one tensor."""
        tensor = self._state[name]
        return Form(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the host."""
        return self._state[name]


def open_saved(path: Path) -> tuple[DecoderConfig, tuple[Pattern, ...], Saved]:
    """What a checkpoint says of its model: the shape, what each layer sees in eval mode, and the weights.

    What layers saw in training alone (`model.init_args.evaluated`) is no part of the model that was validated.

    Raises:
        ValueError: if it is none, or a folder of many files, or holds an adapter beside the weights, or a layer does
            not attend.
    """
    if path.is_dir():
        raise ValueError(f"{_KEY}: {str(path)!r} is a sharded checkpoint; `lg consolidate {path}` makes one file of it")
    if not path.is_file():
        raise ValueError(f"{_KEY}: {str(path)!r} does not exist; a checkpoint is needed")
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever damage makes of pickled and packed bytes
        raise ValueError(f"{_KEY}: {str(path)!r} is damaged: {str(error).splitlines()[0][:200]}") from error
    try:
        told = checkpoint.load(content)
    except ValueError as error:
        raise ValueError(f"{_KEY}: {path}: {error}") from error
    if told.get("adapter") is not None:
        raise ValueError(
            f"{_KEY}: {str(path)!r} holds an adapter beside the weights; `lg export` makes a folder of both that can "
            "be named here"
        )
    built = checkpoint.from_plain({name: told.get(name) for name in ("patterns", "schedule", "evaluated", "decoder")})
    config = changed(preset(told["preset"] or "tiny"), built["decoder"] or {})
    schedule = layers(built["schedule"], config.num_layers, list(built["patterns"]))
    try:
        sees = seen_in_use(built["patterns"], schedule, built["evaluated"] or {})
    except ValueError as error:
        raise ValueError(f"{_KEY}: {path}: {error}") from error
    return config, sees, Saved(content["state_dict"], config)
