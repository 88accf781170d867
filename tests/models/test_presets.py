import dataclasses
import math

import pytest

from lg.models.config import DecoderConfig
from lg.models.presets import PRESETS, preset

PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3-8b": 8_030_261_248,
    "llama-2-7b": 6_738_415_616,
    "llama-2-70b": 68_976_648_192,
    "qwen3-8b": 8_190_735_360,
}


def num_parameters(c: DecoderConfig) -> int:
    """Closed form for a decoder whose mixers are all attention."""
    q_width, kv_width = c.num_heads * c.head_width, c.num_kv_heads * c.head_width
    attention = 2 * c.width * q_width + 2 * c.width * kv_width
    attention += 2 * c.head_width * c.qk_norm + (q_width + 2 * kv_width) * c.qkv_bias
    layer = attention + 3 * c.width * c.ffn_width + 2 * c.width
    return c.num_layers * layer + c.width + (2 - c.tied_embeddings) * c.vocab_size * c.width


def test_every_published_preset_has_a_published_count() -> None:
    assert set(PRESETS) == {"tiny", *PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_equal_the_published_count(name: str) -> None:
    assert num_parameters(preset(name)) == PUBLISHED[name]


def test_tiny_suits_a_laptop_and_bytes() -> None:
    assert preset("tiny").vocab_size == 256
    assert num_parameters(preset("tiny")) < 2_000_000


def test_changes_replace_fields_and_leave_the_preset_alone() -> None:
    changed = preset("tiny", num_layers=2, rope_theta=5e5, qk_norm=True)
    assert dataclasses.replace(PRESETS["tiny"], num_layers=2, rope_theta=5e5, qk_norm=True) == changed
    assert preset("tiny").num_layers == 6


def test_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"model\.init_args\.preset: 'llama-4' .*smollm2-135m"):
        preset("llama-4")


def test_unknown_field_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"model\.init_args\.decoder: 'depth' .*num_layers"):
        preset("tiny", depth=3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field.name, 0) for field in dataclasses.fields(DecoderConfig)),
        ("num_layers", -1),
        ("width", 128.0),
        ("vocab_size", True),
        ("rope_theta", math.inf),
        ("norm_eps", math.nan),
        ("head_width", 33),
        ("num_kv_heads", 3),
        ("num_kv_heads", 8),
    ],
)
def test_a_refusal_names_the_key_and_the_value(field: str, value: int | float) -> None:
    with pytest.raises(ValueError) as refusal:
        preset("tiny", **{field: value})
    assert str(refusal.value).startswith(f"model.init_args.decoder.{field}: {value!r} is not allowed; it must ")


def test_heads_need_not_fill_the_width() -> None:
    assert preset("tiny", num_heads=8, head_width=64).width == 128
