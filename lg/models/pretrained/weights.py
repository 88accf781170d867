"""Weights under transformers' names: which tensor of a decoder is called what there, and reading them one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lg.models.config import DecoderConfig

INDEX = "model.safetensors.index.json"

# As safetensors call them, and torch.
_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Form(NamedTuple):
    """A tensor's shape, and its type as torch calls it."""

    shape: tuple[int, ...]
    dtype: str


class Weights(Protocol):
    """Tensors of a pretrained model, by transformers' names."""

    @property
    def names(self) -> frozenset[str]:
        """What there is."""

    def form(self, name: str) -> Form:
        """That of one tensor, without reading it."""

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

    def form(self, name: str) -> Form:
        """That of one tensor, without reading it."""
        from safetensors import safe_open

        with safe_open(self._file_of[name], framework="pt") as file:
            part = file.get_slice(name)
            return Form(tuple(part.get_shape()), _TYPES.get(part.get_dtype(), part.get_dtype()))

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
        ValueError: if the decoder is changed from what `check` has seen: a tensor is not there, or of another shape.
    """
    called = names(config)
    wanted = {called[f"{prefix}.{name}" if prefix else name]: own for name, own in part.named_parameters()}
    if missing := sorted(wanted.keys() - weights.names):
        raise ValueError(
            f"model.init_args.decoder: it asks for what the pretrained model does not have: {', '.join(missing)}"
        )
    for theirs, own in wanted.items():
        tensor = weights.tensor(theirs)
        if tensor.shape != own.shape:
            raise ValueError(
                f"model.init_args.decoder: it asks for {list(own.shape)}, where {theirs} of the pretrained model is "
                f"{list(tensor.shape)}"
            )
        with torch.no_grad():
            own.copy_(tensor)


def check(config: DecoderConfig, weights: Weights) -> None:
    """Holds what there is to what a decoder needs, before anything is read.

    Raises:
        ValueError: naming all tensors that are missing, all that nothing would be done with, and all of another shape
            or of no floating-point type; or a head that would be tied, and is not the embedding.
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
    wrong = []
    for name, shape in _shapes(config).items():
        form = weights.form(name)
        if form.shape != shape:
            wrong.append(f"{name} is {list(form.shape)}, where config.json tells of {list(shape)}")
        elif form.dtype not in _TYPES.values():
            wrong.append(f"{name} is of type {form.dtype}; allowed are {', '.join(_TYPES.values())}")
    if wrong:
        raise ValueError(f"model.init_args.pretrained: {'; '.join(wrong)}")
    if config.tied_embeddings and "lm_head.weight" in weights.names:
        head, embedding = weights.tensor("lm_head.weight"), weights.tensor("model.embed_tokens.weight")
        if head.shape != embedding.shape or not torch.equal(head, embedding):
            raise ValueError(
                "model.init_args.pretrained: lm_head.weight is not model.embed_tokens.weight, where config.json says "
                "tie_word_embeddings: true; that must be false, or the tensor must go"
            )


def _shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, by transformers' names."""
    queries, keys = config.num_heads * config.head_width, config.num_kv_heads * config.head_width
    width, ffn, vocab = config.width, config.ffn_width, config.vocab_size
    rows = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "o_proj": width, "gate_proj": ffn, "up_proj": ffn}
    rows |= {"down_proj": width, "embed_tokens": vocab, "lm_head": vocab}
    columns = {"o_proj": queries, "down_proj": ffn}
    found: dict[str, tuple[int, ...]] = {}
    for name in names(config).values():
        part, kind = name.split(".")[-2:]
        if part not in rows:  # a norm, of heads or of the stream
            found[name] = (config.head_width if part in ("q_norm", "k_norm") else width,)
        else:
            found[name] = (rows[part],) if kind == "bias" else (rows[part], columns.get(part, width))
    return found


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
    # As in transformers, one whole file counts before an index, which an earlier save may have left.
    if index.exists() and not (path / "model.safetensors").exists():
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
