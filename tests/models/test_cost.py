"""What a decoder costs: figures worked out by hand for published shapes, and the real decoder's weights."""

from dataclasses import dataclass

import pytest
from torch import nn

from lg.attention import Causal, PrefixLM, SinkWindow
from lg.models.config import DecoderConfig
from lg.models.cost import Comparison, compare, model_cost
from lg.models.decoder import Decoder
from lg.models.presets import preset

PATTERNS = {"local": SinkWindow(window=1984, sinks=64), "full": Causal()}


def gain(name: str, num_full: int, length: int) -> Comparison:
    config = preset(name)
    around = config.num_layers - num_full
    schedule = ["local"] * (around // 2) + ["full"] * num_full + ["local"] * (around - around // 2)
    return compare(config, schedule, PATTERNS, length)


# LongGen's setting: full attention in the middle, a budget of 2,048 tokens elsewhere. Attention's share of the work of
# full attention, then for 12, 11 and 10 full layers of 32 the ceiling of the training speed-up.
SEVEN = {
    4: (0.08, (1.01, 1.01, 1.01)),
    8: (0.14, (1.05, 1.05, 1.06)),
    16: (0.25, (1.13, 1.14, 1.15)),
    32: (0.39, (1.28, 1.29, 1.31)),
    64: (0.57, (1.50, 1.53, 1.57)),
    128: (0.72, (1.78, 1.85, 1.93)),
}
# The same for llama-2-70b with 27 full layers of 80.
SEVENTY = {4: (0.04, 1.01), 8: (0.07, 1.03), 16: (0.14, 1.07), 32: (0.24, 1.16), 64: (0.38, 1.31), 128: (0.56, 1.55)}


@pytest.mark.parametrize("kilo", SEVEN)
def test_ceilings_of_training(kilo: int) -> None:
    share, ceilings = SEVEN[kilo]
    gains = [gain("llama-2-7b", num_full, kilo * 1024) for num_full in (12, 11, 10)]
    assert round(gains[0].full.attention_share, 2) == share
    assert tuple(round(each.training, 2) for each in gains) == ceilings
    seventy = gain("llama-2-70b", 27, kilo * 1024)
    assert (round(seventy.full.attention_share, 2), round(seventy.training, 2)) == SEVENTY[kilo]


def test_the_cache_at_128k() -> None:
    shares = [gain("llama-2-7b", num_full, 131_072).kv_share for num_full in (12, 11, 10)]
    assert [round(100 * (1 - share), 1) for share in shares] == [61.5, 64.6, 67.7]
    seven = gain("llama-2-7b", 12, 131_072)
    assert round(seven.full.kv_bytes() / 1e9, 1) == 68.7
    assert round(seven.hybrid.kv_bytes() / 1e9, 1) == 26.4


def test_decoding_reads_no_more_of_the_embedding_than_a_row() -> None:
    seven = gain("llama-2-7b", 12, 131_072)
    assert round(seven.decode, 2) == 2.07
    # With the embedding, which is in memory but not read, 13.5 GB of weights would give 2.06.
    embedding = 2 * 4096 * 32_000
    full, hybrid = seven.full.decode_bytes() + embedding, seven.hybrid.decode_bytes() + embedding
    assert round((full - seven.full.kv_bytes()) / 1e9, 1) == 13.5
    assert round(full / hybrid, 2) == 2.06


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_those_of_the_decoder(tied: bool) -> None:
    config = preset("tiny", tied_embeddings=tied, num_kv_heads=1, head_width=48, ffn_width=80)
    decoder = Decoder(config, [Causal()] * config.num_layers)
    weights = sum(module.weight.numel() for module in decoder.blocks.modules() if isinstance(module, nn.Linear))
    cost = model_cost(config, ["full"] * config.num_layers, {"full": Causal()}, 100)
    assert cost.block_weights == weights
    assert cost.head_weights == decoder.head.weight.numel()
    assert cost.linear_flops == 2 * 100 * (weights + decoder.head.weight.numel())


def test_a_training_step_is_three_times_the_forward_pass() -> None:
    seven = gain("llama-2-7b", 12, 8192).hybrid
    assert seven.training_flops == 3 * seven.forward_flops
    assert seven.prefill_flops == seven.forward_flops - 8191 * 2 * 4096 * 32_000


def test_full_attention_gains_nothing() -> None:
    config = preset("tiny")
    same = compare(config, ["all"] * config.num_layers, {"all": Causal()}, 1000)
    assert (same.training, same.prefill, same.decode, same.kv_share) == (1, 1, 1, 1)


@dataclass(frozen=True)
class Recurrent:
    """A mixer that is no pattern."""

    def build(self, config: DecoderConfig, layer: int) -> None:
        raise NotImplementedError


def test_a_mixer_that_is_no_pattern_is_refused_by_name() -> None:
    schedule = ["state"] * 3 + ["full"] * 3
    with pytest.raises(ValueError, match=r"model\.init_args\.patterns\.state: Recurrent\(\) is no attention pattern"):
        compare(preset("tiny"), schedule, {"state": Recurrent(), "full": Causal()}, 1000)


def test_a_document_attribute_must_be_given() -> None:
    patterns, schedule = {"prefix": PrefixLM()}, ["prefix"] * 6
    with pytest.raises(ValueError, match=r"patterns\.prefix: PrefixLM\(\) asks for doc\.prefix"):
        compare(preset("tiny"), schedule, patterns, 1000)
    assert compare(preset("tiny"), schedule, patterns, 1000, {"prefix": 10}).training < 1
