"""Decoder shapes by name: the published ones exactly, and a tiny one of our own for a laptop."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lg.models.config import KEY, DecoderConfig

# Read from the config.json that each model's authors publish on the Hugging Face hub. What those
# files say beyond these fields is not expressed here: Llama 3.2's `rope_scaling` (type llama3,
# factor 32 over 8,192 positions), the longest position trained on, and the initial weights' spread.
PRESETS: dict[str, DecoderConfig] = {
    # As much as two CPU cores learn with in minutes: narrow attention, and norms that allow a high learning rate.
    "tiny": DecoderConfig(
        num_layers=6,
        width=128,
        num_heads=2,
        num_kv_heads=1,
        head_width=32,
        ffn_width=256,
        vocab_size=256,
        tied_embeddings=True,
        qk_norm=True,
    ),
    "smollm2-135m": DecoderConfig(
        num_layers=30,
        width=576,
        num_heads=9,
        num_kv_heads=3,
        head_width=64,
        ffn_width=1536,
        vocab_size=49152,
        rope_theta=100000.0,
        tied_embeddings=True,
    ),
    "llama-3.2-1b": DecoderConfig(
        num_layers=16,
        width=2048,
        num_heads=32,
        num_kv_heads=8,
        head_width=64,
        ffn_width=8192,
        vocab_size=128256,
        rope_theta=500000.0,
        tied_embeddings=True,
    ),
    "llama-3-8b": DecoderConfig(
        num_layers=32,
        width=4096,
        num_heads=32,
        num_kv_heads=8,
        head_width=128,
        ffn_width=14336,
        vocab_size=128256,
        rope_theta=500000.0,
    ),
    "llama-2-7b": DecoderConfig(
        num_layers=32,
        width=4096,
        num_heads=32,
        num_kv_heads=32,
        head_width=128,
        ffn_width=11008,
        vocab_size=32000,
    ),
    "llama-2-70b": DecoderConfig(
        num_layers=80,
        width=8192,
        num_heads=64,
        num_kv_heads=8,
        head_width=128,
        ffn_width=28672,
        vocab_size=32000,
    ),
    "qwen3-8b": DecoderConfig(
        num_layers=36,
        width=4096,
        num_heads=32,
        num_kv_heads=8,
        head_width=128,
        ffn_width=12288,
        vocab_size=151936,
        rope_theta=1000000.0,
        norm_eps=1e-6,
        qk_norm=True,
    ),
}


def preset(name: str, **changes: int | float | bool) -> DecoderConfig:
    """The shape called ``name``, with the fields in ``changes`` replaced.

    Raises:
        ValueError: no preset has that name, ``DecoderConfig`` has no such field, or the changed
            shape is not one that can be built.
    """
    if name not in PRESETS:
        raise ValueError(f"model.init_args.preset: {name!r} is not a preset; allowed: {', '.join(PRESETS)}")
    return changed(PRESETS[name], changes)


def changed(config: DecoderConfig, changes: Mapping[str, Any]) -> DecoderConfig:
    """A shape with some fields replaced.

    Raises:
        ValueError: ``DecoderConfig`` has no such field, or the changed shape is not one that can be built.
    """
    fields = [field.name for field in dataclasses.fields(DecoderConfig)]
    for field in changes:
        if field not in fields:
            raise ValueError(f"{KEY}: {field!r} is not a field; allowed: {', '.join(fields)}")
    # Lists are what YAML and checkpoints know.
    told = {field: tuple(value) if isinstance(value, list) else value for field, value in changes.items()}
    # dataclasses.replace would do, but type checkers hold `changes` to every field's type at once.
    return DecoderConfig(**{**vars(config), **told})
