"""GGUF files as pretrained models: their metadata as a config.json, their tensors under transformers' names.

Quantised tensors are read as what they stand for, in float32; one is dequantised when it is asked for.

Source: the format's description in https://github.com/ggml-org/ggml, docs/gguf.md
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lg.models.pretrained.weights import Form

ARCHITECTURES = ("llama", "qwen2", "qwen3")

# What llama.cpp calls the parts of a block, and transformers.
_OF_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BESIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
# Metadata of an architecture: what config.json calls it.
_KEYS = {
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "rope.freq_base": "rope_theta",
}
# Tokens that mean something, and what config.json calls their numbers.
_MARKS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
# What the tensors, or the keys above, say already; they are held to them.
_SAID = ("attention.value_length", "rope.dimension_count", "vocab_size")


class Gguf:
    """The tensors of one GGUF file, by transformers' names.

    Args:
        path: the file.

    Attributes:
        told: what a config.json of the same model would say.

    Raises:
        ValueError: if it is no GGUF file, or of an architecture, or with metadata, that is not known here.
    """

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        try:
            reader = GGUFReader(path)
        except (ValueError, IndexError, OSError) as error:
            raise ValueError(f"model.init_args.pretrained: {str(path)!r} is no GGUF file: {error}") from error
        known = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")}
        self._kind = known.get("general.architecture")
        if self._kind not in ARCHITECTURES:
            raise ValueError(
                f"model.init_args.pretrained: {str(path)!r} is of architecture {self._kind!r}; allowed are "
                f"{', '.join(ARCHITECTURES)}"
            )
        self._tensors = {_name(tensor.name): tensor for tensor in reader.tensors}
        self.told = self._config(known)
        for own, key in _MARKS.items():
            if (field := reader.get_field(f"tokenizer.ggml.{own}_token_id")) is not None:
                self.told[key] = field.contents()

    @property
    def names(self) -> frozenset[str]:
        """What there is."""
        return frozenset(self._tensors)

    def form(self, name: str) -> Form:
        """That of one tensor, as `tensor` gives it."""
        return Form(tuple(reversed([int(size) for size in self._tensors[name].shape])), "float32")

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the host, in float32."""
        from gguf.quants import dequantize

        found = self._tensors[name]
        tensor = torch.from_numpy(dequantize(found.data, found.tensor_type).copy()).float()
        # A matrix is told by its row first, and a row's tensor has its shape reversed.
        tensor = tensor.view(*reversed([int(size) for size in found.shape]))
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        if self._kind != "llama" or heads is None:
            return tensor
        # llama.cpp turns neighbours where transformers turns the first half of a head with the second.
        apart = tensor.view(self.told[heads], -1, 2, tensor.shape[-1]).transpose(1, 2)
        return apart.reshape(tensor.shape)

    def _config(self, known: dict[str, Any]) -> dict[str, Any]:
        told: dict[str, Any] = {"model_type": self._kind}
        for name, value in known.items():
            own, _, key = name.partition(".")
            if own != self._kind or key in _SAID:
                continue
            if key not in _KEYS:
                raise ValueError(
                    f"model.init_args.pretrained: {name}: {value!r} is not allowed; it is not known what it changes"
                )
            # Numbers are float32 there: 1e-5 is meant, where 9.999999747e-06 is kept.
            told[_KEYS[key]] = float(f"{value:.7g}") if isinstance(value, float) else value
        width = told.get("head_dim") or told.get("hidden_size", 0) // told.get("num_attention_heads", 1)
        for key in ("attention.value_length", "rope.dimension_count"):
            if (value := known.get(f"{self._kind}.{key}", width)) != width:
                raise ValueError(
                    f"model.init_args.pretrained: {self._kind}.{key}: {value} is not allowed; a decoder computes with "
                    f"the width of a head, {width}, only"
                )
        if "model.embed_tokens.weight" not in self._tensors:
            raise ValueError(
                "model.init_args.pretrained: the file has no tensor token_embd.weight; of a model in several files all "
                "must be joined into one"
            )
        told.setdefault("num_key_value_heads", told.get("num_attention_heads"))
        vocab, _ = reversed([int(size) for size in self._tensors["model.embed_tokens.weight"].shape])
        if (value := known.get(f"{self._kind}.vocab_size", vocab)) != vocab:
            raise ValueError(
                f"model.init_args.pretrained: {self._kind}.vocab_size: {value} is not allowed; token_embd.weight has "
                f"{vocab} rows"
            )
        return {**told, "vocab_size": vocab, "tie_word_embeddings": "lm_head.weight" not in self._tensors}


def _name(theirs: str) -> str:
    """transformers' name of a tensor; what is not known stays, and is told as not expected."""
    part, _, kind = theirs.rpartition(".")
    if part in _BESIDE:
        return f"{_BESIDE[part]}.{kind}"
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)", part)
    if block is None or block[2] not in _OF_BLOCK:
        return theirs
    return f"model.layers.{block[1]}.{_OF_BLOCK[block[2]]}.{kind}"
