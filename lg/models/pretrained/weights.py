"""Weights under transformers' names: which tensor of a decoder is called what there, and reading them one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from lg.models.config import DecoderConfig

INDEX = "model.safetensors.index.json"


class Weights(Protocol):
    """Tensors of a pretrained model, by transformers' names."""

    @property
    def names(self) -> frozenset[str]:
        """What there is."""

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the host."""


class Folder:
    """The safetensors of a folder, one file or several; a tensor is read when it is asked for.

    Args:
        path: the folder.

    Raises:
        ValueError: if it holds no safetensors, or a file that its index names is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._file_of = _files(path)

    @property
    def names(self) -> frozenset[str]:
        """What there is."""
        return frozenset(self._file_of)

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the host."""
        from safetensors import safe_open

        with safe_open(self._file_of[name], framework="pt") as file:
            return file.get_tensor(name)  # type: ignore[no-any-return]

    def shape(self, name: str) -> tuple[int, ...]:
        """That of one tensor, without reading it."""
        from safetensors import safe_open

        with safe_open(self._file_of[name], framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())

    def file_of(self, name: str) -> Path:
        """Where a tensor lies."""
        return self._file_of[name]


def names(config: DecoderConfig) -> dict[str, str]:
    """What transformers calls each weight of a decoder: lg's name to that; a tied head is not named."""
    found = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    if not config.tied_embeddings:
        found["head.weight"] = "lm_head.weight"
    for layer in range(config.num_layers):
        for own, theirs in _of_block(config):
            found[f"blocks.{layer}.{own}"] = f"model.layers.{layer}.{theirs}"
    return found


def load(part: nn.Module, prefix: str, config: DecoderConfig, weights: Weights) -> None:
    """Copies the weights of one part of a decoder into place, in the type and on the device that the part has.

    Args:
        part: the embedding, a block, the norm, the head, or a whole decoder.
        prefix: how the decoder calls it: "embedding", "blocks.3"; "" for the decoder itself.
        config: the decoder's shape.
        weights: where from.

    Raises:
        ValueError: if a tensor has another shape than the part.
    """
    called = names(config)
    for name, own in part.named_parameters():
        theirs = called[f"{prefix}.{name}" if prefix else name]
        tensor = weights.tensor(theirs)
        if tensor.shape != own.shape:
            raise ValueError(
                f"model.init_args.pretrained: {theirs} is {list(tensor.shape)}, where config.json tells of "
                f"{list(own.shape)}"
            )
        with torch.no_grad():
            own.copy_(tensor)


def check(config: DecoderConfig, weights: Weights) -> None:
    """Holds what there is to what a decoder needs, before anything is read.

    Raises:
        ValueError: naming all tensors that are missing and all that nothing would be done with.
    """
    needed = set(names(config).values())
    # Old files hold what can be computed; a tied head may be there twice.
    spare = {name for name in weights.names if name.endswith("rotary_emb.inv_freq")}
    if config.tied_embeddings:
        spare.add("lm_head.weight")
    missing, more = sorted(needed - weights.names), sorted(weights.names - needed - spare)
    if missing or more:
        raise ValueError(
            "model.init_args.pretrained: the tensors do not fit config.json"
            + (f"; missing: {', '.join(missing)}" if missing else "")
            + (f"; not expected: {', '.join(more)}" if more else "")
        )


def state(decoder: Mapping[str, Tensor], config: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """A decoder's weights under transformers' names, one by one."""
    for own, theirs in names(config).items():
        yield theirs, decoder[own]


def _of_block(config: DecoderConfig) -> Iterator[tuple[str, str]]:
    yield "mixer_norm.weight", "input_layernorm.weight"
    yield "mlp_norm.weight", "post_attention_layernorm.weight"
    for one in ("q_proj", "k_proj", "v_proj", "o_proj"):
        yield f"mixer.{one}.weight", f"self_attn.{one}.weight"
        if config.qkv_bias and one != "o_proj":
            yield f"mixer.{one}.bias", f"self_attn.{one}.bias"
    if config.qk_norm:
        for one in ("q_norm", "k_norm"):
            yield f"mixer.{one}.weight", f"self_attn.{one}.weight"
    for one in ("gate_proj", "up_proj", "down_proj"):
        yield f"mlp.{one}.weight", f"mlp.{one}.weight"


def _files(path: Path) -> dict[str, Path]:
    """In which file each tensor lies."""
    from safetensors import SafetensorError, safe_open

    index = path / INDEX
    if index.exists():
        try:
            told: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = {path / name for name in told.values()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"model.init_args.pretrained: {str(index)!r} is damaged: {error}") from error
    else:
        files = {path / "model.safetensors"}
    found: dict[str, Path] = {}
    for file in sorted(files):
        if not file.exists():
            raise ValueError(f"model.init_args.pretrained: {str(path)!r} has no {file.name}; safetensors are needed")
        try:
            with safe_open(file, framework="pt") as opened:
                found |= dict.fromkeys(opened.keys(), file)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"model.init_args.pretrained: {str(file)!r} is damaged: {error}") from error
    return found
