"""Shapes by name, and fields that make no shape."""

import dataclasses
import math

import pytest

from lg.models.config import DecoderConfig
from lg.models.presets import PRESETS, preset


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
