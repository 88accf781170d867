"""Each scaling equals the function of the same name in transformers, and its own definition where there is none."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lg.attention import Causal, Documents
from lg.models.decoder import Decoder
from lg.models.presets import preset
from lg.models.rope import rotary_angles
from lg.models.rope_scaling import NTK, DynamicNTK, Linear, Llama3, RopeScaling, YaRN, plain

CPU = torch.device("cpu")
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
CASES: list[tuple[RopeScaling, dict[str, Any]]] = [
    (Linear(8.0), {"rope_type": "linear", "factor": 8.0}),
    (DynamicNTK(2.0, 4096), {"rope_type": "dynamic", "factor": 2.0}),
    (YaRN(16.0, 4096), {"rope_type": "yarn", "factor": 16.0}),
    (YaRN(4.0, 4096, 64.0, 2.0, 1.25, False),
     {"rope_type": "yarn", "factor": 4.0, "beta_fast": 64.0, "beta_slow": 2.0, "attention_factor": 1.25,
      "truncate": False}),
    (Llama3(8.0, 4096), {"rope_type": "llama3", "factor": 8.0, **LLAMA3}),
    (Llama3(32.0, 4096), {"rope_type": "llama3", "factor": 32.0, **LLAMA3}),
]  # fmt: skip


@pytest.mark.parametrize("length", [1, 4096, 50_000])
@pytest.mark.parametrize(("head_width", "theta"), [(128, 5e5), (64, 1e4), (96, 1e6)])
@pytest.mark.parametrize(("scaling", "parameters"), CASES, ids=str)
def test_as_in_transformers(
    scaling: RopeScaling, parameters: dict[str, Any], head_width: int, theta: float, length: int
) -> None:
    told = {"rope_theta": theta, "original_max_position_embeddings": 4096, **parameters}
    if parameters["rope_type"] in ("linear", "dynamic"):
        del told["original_max_position_embeddings"]
    config = LlamaConfig(
        hidden_size=2 * head_width, num_attention_heads=2, max_position_embeddings=4096, rope_parameters=told
    )
    want, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, CPU, seq_len=length)
    got = scaling.frequencies(head_width, theta, length, CPU)
    torch.testing.assert_close(got, want, rtol=3e-6, atol=0)
    assert scaling.attention_factor == pytest.approx(factor)


def test_ntk_slows_the_slowest_pair_by_the_factor_and_the_fastest_not_at_all() -> None:
    own, got = plain(128, 1e4, CPU), NTK(32.0).frequencies(128, 1e4, 1, CPU)
    torch.testing.assert_close(own[-1] / got[-1], torch.tensor(32.0), rtol=1e-5, atol=0)
    assert got[0] == own[0] == 1
    # Llama-2 from 4K to 128K.
    torch.testing.assert_close(got, plain(128, 3.38e5, CPU), rtol=2e-3, atol=0)


def test_dynamic_ntk_changes_nothing_within_the_length_it_was_trained_on() -> None:
    scaling = DynamicNTK(4.0, 2048)
    assert torch.equal(scaling.frequencies(64, 1e4, 2048, CPU), plain(64, 1e4, CPU))
    assert not torch.equal(scaling.frequencies(64, 1e4, 2049, CPU), plain(64, 1e4, CPU))


def test_angles_turn_by_it_and_scores_are_sharpened() -> None:
    positions, scaling = torch.arange(50), YaRN(16.0, 4096)
    cos, sin = rotary_angles(positions, 64, 1e4, scaling)
    angles = positions[:, None] * scaling.frequencies(64, 1e4, 50, CPU)
    factor = 0.1 * math.log(16) + 1
    torch.testing.assert_close(cos, angles.cos() * factor)
    torch.testing.assert_close(sin, angles.sin() * factor)


def test_a_decoder_turns_as_far_as_its_longest_document_asks() -> None:
    scaling = DynamicNTK(2.0, 16)
    config = preset("tiny", num_layers=1)
    plain_one, scaled = (Decoder(one, [Causal()], "dense") for one in (config, replace(config, rope_scaling=scaling)))
    scaled.load_state_dict(plain_one.state_dict())
    tokens = torch.randint(256, (1, 48))
    short, long = Documents(48, (0, 16, 32)), Documents(48, (0, 17))
    torch.testing.assert_close(scaled.logits(tokens, short), plain_one.logits(tokens, short))
    further = replace(config, rope_theta=config.rope_theta * (2 * 31 / 16 - 1) ** (32 / 30))
    raised = Decoder(further, [Causal()], "dense")
    raised.load_state_dict(plain_one.state_dict())
    torch.testing.assert_close(scaled.logits(tokens, long), raised.logits(tokens, long))
    assert (scaled.logits(tokens, long) - plain_one.logits(tokens, long)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Linear(0.5), "rope_scaling.factor: 0.5 is not allowed; it must be a finite number of at least 1"),
        (lambda: NTK(float("nan")), "rope_scaling.factor: nan is not allowed"),
        (lambda: YaRN(2.0, 0), "rope_scaling.original_length: 0 is not allowed; it must be at least 1"),
        (lambda: YaRN(2.0, 10, 1.0, 1.0), "rope_scaling.beta_fast: 1.0 is not allowed; it must be above beta_slow"),
        (lambda: YaRN(2.0, 10, scale=0.0), "rope_scaling.scale: 0.0 is not allowed"),
        (lambda: Llama3(2.0, 10, 4.0, 4.0), "rope_scaling.high_freq_factor: 4.0 is not allowed"),
    ],
)
def test_refusals(make: Any, said: str) -> None:
    with pytest.raises(ValueError) as raised:
        make()
    assert f"model.init_args.{said}" in str(raised.value)
