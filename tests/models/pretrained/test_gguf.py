"""GGUF files, written by the format's own library, give the weights and the shape that went in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lg.attention import Causal
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder
from lg.models.pretrained import open_pretrained
from lg.models.pretrained.gguf import _BESIDE, _OF_BLOCK
from lg.models.pretrained.weights import state

gguf = pytest.importorskip("gguf", reason="needs `pip install 'lg[hf]'`")

CONFIG = DecoderConfig(2, 64, 4, 2, 16, 96, 97, rope_theta=5e4, norm_eps=1e-5)
SHAPES = {
    "llama": CONFIG,
    "llama, tied": replace(CONFIG, tied_embeddings=True),
    "qwen2": replace(CONFIG, qkv_bias=True),
    "qwen3": replace(CONFIG, qk_norm=True, head_width=32),
}
THEIRS = {theirs: own for own, theirs in (_OF_BLOCK | _BESIDE).items()}


def renamed(name: str) -> str:
    part, kind = name.rsplit(".", 1)
    if part in THEIRS:
        return f"{THEIRS[part]}.{kind}"
    _, _, layer, rest = part.split(".", 3)
    return f"blk.{layer}.{THEIRS[rest]}.{kind}"


def neighbours(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """As llama.cpp's converter lays queries and keys of Llama."""
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)


def written(path: Path, kind: str, decoder: Decoder, more: dict[str, Any], quantised: bool = False) -> None:
    config = decoder.config
    writer = gguf.GGUFWriter(path, kind)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(512)
    writer.add_embedding_length(config.width)
    writer.add_feed_forward_length(config.ffn_width)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_width)
    writer.add_value_length(config.head_width)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    for name, value in more.items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(name, value)
    for name, tensor in state(decoder.state_dict(), config):
        if kind == "llama" and ("q_proj" in name or "k_proj" in name):
            tensor = neighbours(tensor, config.num_heads if "q_proj" in name else config.num_kv_heads)
        if quantised and tensor.ndim == 2:
            four = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(renamed(name), gguf.quants.quantize(tensor.numpy(), four), raw_dtype=four)
        else:
            writer.add_tensor(renamed(name), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def made(config: DecoderConfig) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(config, [Causal()] * config.num_layers, "dense")
    with torch.no_grad():
        for weight in decoder.parameters():
            weight.normal_()
    return decoder.requires_grad_(False)


@pytest.mark.parametrize("name", SHAPES)
def test_weights_come_back(name: str, tmp_path: Path) -> None:
    decoder = made(SHAPES[name])
    written(tmp_path / "it.gguf", name.split(",")[0], decoder, {})
    found = open_pretrained(tmp_path / "it.gguf")
    assert found.config == SHAPES[name]
    back = found.decoder().state_dict()
    assert all(torch.equal(back[name], tensor) for name, tensor in decoder.state_dict().items())


def test_quantised_weights_are_what_they_stand_for(tmp_path: Path) -> None:
    decoder = made(CONFIG)
    written(tmp_path / "it.gguf", "llama", decoder, {}, quantised=True)
    back = open_pretrained(tmp_path / "it.gguf").decoder().state_dict()
    for name, tensor in decoder.state_dict().items():
        # Sixteen steps between the least and the largest of 32 numbers.
        assert (back[name] - tensor).abs().max() < (0.3 if tensor.ndim == 2 else 1e-6), name


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("mamba", {}, "is of architecture 'mamba'; allowed are llama, qwen2, qwen3"),
        ("llama", {"llama.rope.scaling.factor": 4.0}, "llama.rope.scaling.factor: 4.0 is not allowed; it is not known"),
        # Heads of 16 of which a part turns.
        (
            "llama",
            {"llama.rope.dimension_count": 8},
            "llama.rope.dimension_count: 8 is not allowed; a decoder computes",
        ),
        ("qwen2", {}, "missing: model.layers.0.self_attn.k_proj.bias"),
    ],
)
def test_refusals(kind: str, more: dict[str, Any], said: str, tmp_path: Path) -> None:
    written(tmp_path / "it.gguf", kind, made(CONFIG), more)
    with pytest.raises(ValueError) as raised:
        open_pretrained(tmp_path / "it.gguf")
    assert said in str(raised.value)


def test_what_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "it.gguf").write_bytes(b"GGUX" + bytes(100))
    with pytest.raises(ValueError, match="is no GGUF file"):
        open_pretrained(tmp_path / "it.gguf")
    with pytest.raises(ValueError, match="is no GGUF file"):
        open_pretrained(tmp_path / "nowhere.gguf")
