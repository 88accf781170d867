"""The decoder is the published architecture: transformers' logits, the published parameter counts, no leaks."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from lg.attention import Causal, Documents, Pattern, SinkWindow, Window
from lg.models.block import Block, Layout, Mixer
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder
from lg.models.presets import PRESETS, preset

PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3-8b": 8_030_261_248,
    "llama-2-7b": 6_738_415_616,
    "llama-2-70b": 68_976_648_192,
    "qwen3-8b": 8_190_735_360,
}


def test_every_preset_but_our_own_has_a_published_count() -> None:
    assert set(PRESETS) == {"tiny", *PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_a_preset_are_as_many_as_published(name: str) -> None:
    config = preset(name)
    with torch.device("meta"):
        decoder = Decoder(config, [Causal()] * config.num_layers)
    assert sum(p.numel() for p in decoder.parameters()) == PUBLISHED[name]


def test_tiny_suits_a_laptop_and_bytes() -> None:
    decoder = Decoder(preset("tiny"), [Causal()] * preset("tiny").num_layers)
    assert preset("tiny").vocab_size == 256
    assert sum(p.numel() for p in decoder.parameters()) < 2_000_000


SMALL = {"num_layers": 3, "width": 64, "num_heads": 4, "num_kv_heads": 2, "head_width": 16, "ffn_width": 96}


def theirs(kind: str, config: DecoderConfig) -> nn.Module:
    import transformers

    shape = {
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.width,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.ffn_width,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tied_embeddings,
        "attn_implementation": "eager",
    }
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(kind, **shape), dtype=torch.float64
    )
    return model.eval()


NAMES = {
    "model.embed_tokens": "embedding",
    "model.layers": "blocks",
    "self_attn": "mixer",
    "input_layernorm": "mixer_norm",
    "post_attention_layernorm": "mlp_norm",
    "model.norm": "norm",
    "lm_head": "head",
}


def renamed(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, value in state.items():
        for old, new in NAMES.items():
            name = name.replace(old, new)
        yield name, value


@pytest.mark.parametrize(
    ("kind", "differs"),
    [("llama", {}), ("llama", {"tied_embeddings": True}), ("qwen2", {"qkv_bias": True}), ("qwen3", {"qk_norm": True})],
)
def test_logits_are_those_of_transformers(kind: str, differs: dict[str, bool]) -> None:
    config = DecoderConfig(**SMALL, vocab_size=97, rope_theta=5000.0, norm_eps=1e-6, **differs)  # type: ignore[arg-type]
    torch.manual_seed(0)
    other = theirs(kind, config)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    ours = Decoder(config, [Causal()] * 3).double()
    ours.load_state_dict(dict(renamed(other.state_dict())))
    tokens = torch.randint(97, (2, 50))
    with torch.no_grad():
        want = other(tokens).logits
        got = ours.logits(tokens, Documents(100, (0, 50)))
    # Angles are float32 in both; everything else is float64.
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def mixed() -> Decoder:
    torch.manual_seed(0)
    patterns: list[Pattern] = [Window(5), Causal(), SinkWindow(window=4, sinks=2)]
    return Decoder(DecoderConfig(**SMALL, vocab_size=97), patterns).double()  # type: ignore[arg-type]


def test_packed_documents_have_the_logits_that_each_has_alone() -> None:
    decoder, tokens = mixed(), torch.randint(97, (1, 90))
    packed = decoder.logits(tokens, Documents(90, (0, 30, 37)))
    alone = [decoder.logits(part, Documents(part.shape[1])) for part in tokens.split((30, 7, 53), 1)]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=0, atol=1e-6)


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    decoder, tokens = mixed(), torch.randint(97, (3, 40))
    together = decoder.logits(tokens, Documents(120, (0, 40, 80)))
    alone = torch.cat([decoder.logits(row[None], Documents(40)) for row in tokens])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_a_sparse_layer_is_deaf_beyond_its_pattern() -> None:
    config = DecoderConfig(**SMALL, vocab_size=97)  # type: ignore[arg-type]
    torch.manual_seed(0)
    decoder = Decoder(config, [Window(4)] * 3).double()
    tokens = torch.randint(97, (1, 60))
    other = tokens.clone()
    other[0, 20] = (other[0, 20] + 1) % 97
    change = (decoder.logits(tokens, Documents(60)) - decoder.logits(other, Documents(60))).abs().amax(-1)[0]
    # Three layers of four keys reach nine tokens back and no farther.
    assert bool((change[20:30] > 0).all())
    assert not bool(change[:20].any())
    assert not bool(change[30:].any())


def test_loss_is_the_cross_entropy_of_the_logits() -> None:
    decoder, tokens = mixed(), torch.randint(97, (2, 40))
    targets = tokens.roll(-1, 1)
    targets[:, -1] = -100
    documents = Documents(80, (0, 40))
    want = nn.functional.cross_entropy(
        decoder.logits(tokens, documents).flatten(0, 1), targets.flatten(), reduction="sum"
    )
    torch.testing.assert_close(decoder.loss(tokens, targets, documents), want)


def test_tied_embeddings_are_one_parameter() -> None:
    decoder = Decoder(preset("tiny"), [Causal()] * preset("tiny").num_layers)
    assert decoder.head.weight is decoder.embedding.weight
    assert len({id(p) for p in decoder.parameters()}) == len(list(decoder.parameters()))


def test_a_part_is_placed_with_its_weights_before_the_next_is_made() -> None:
    config = DecoderConfig(**SMALL, vocab_size=97)  # type: ignore[arg-type]
    torch.manual_seed(0)
    decoder = Decoder(config, [Causal()] * 3)
    torch.manual_seed(0)
    placed: list[tuple[nn.Module, dict[str, Tensor], Tensor]] = []

    def place(part: nn.Module) -> None:
        state = {name: value.clone() for name, value in part.state_dict().items()}
        placed.append((part, state, torch.get_rng_state()))
        nn.init.zeros_(next(part.parameters()))  # what is placed is not touched again

    Decoder(config, [Causal()] * 3, place=place)
    parts = [decoder.embedding, *decoder.blocks, decoder.head]
    assert [type(part) for part, _, _ in placed] == [type(part) for part in parts]
    for part, (_, state, _) in zip(parts, placed, strict=True):
        torch.testing.assert_close(state, dict(part.state_dict()), rtol=0, atol=0)
    generators = [generator for _, _, generator in placed]
    assert not any(torch.equal(*pair) for pair in itertools.pairwise(generators)), "all was drawn before"
    assert all(bool((next(part.parameters()) == 0).all()) for part, _, _ in placed)


def test_tied_weights_are_not_placed() -> None:
    config = DecoderConfig(**SMALL, vocab_size=97, tied_embeddings=True)  # type: ignore[arg-type]
    placed: list[nn.Module] = []
    decoder = Decoder(config, [Causal()] * 3, place=placed.append)
    assert placed == list(decoder.blocks)


def test_weights_begin_as_small_as_published() -> None:
    config = DecoderConfig(**{**SMALL, "width": 256}, vocab_size=97, qkv_bias=True)  # type: ignore[arg-type]
    torch.manual_seed(0)
    decoder = Decoder(config, [Causal()] * 3)
    for name, weight in decoder.named_parameters():
        if "norm" in name or name.endswith("bias"):
            assert set(weight.tolist()) == {1.0 if "norm" in name else 0.0}
            continue
        writes = name.endswith(("o_proj.weight", "down_proj.weight"))
        std = (2 / 5 / 256) ** 0.5 / (6**0.5 if writes else 1)
        assert float(weight.detach().std()) == pytest.approx(std, rel=0.05), name


class Average(Mixer):
    """A mixer that is no attention: the mean of all tokens so far."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, width)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        return (self.proj(x),)

    def mix(self, inputs: tuple[Tensor, ...], layout: Layout) -> Tensor:
        (x,) = inputs
        return x.cumsum(0) / torch.arange(1, len(x) + 1, dtype=x.dtype)[:, None]

    def output(self, mixed: Tensor) -> Tensor:
        return mixed


class AverageSpec:
    def build(self, config: DecoderConfig, layer: int) -> Mixer:
        return Average(config.width)


def test_a_schedule_may_name_a_mixer_that_is_no_attention() -> None:
    config = DecoderConfig(**SMALL, vocab_size=97)  # type: ignore[arg-type]
    decoder = Decoder(config, [Causal(), AverageSpec(), Causal()])
    block = decoder.blocks[1]
    assert isinstance(block, Block) and isinstance(block.mixer, Average)
    decoder.loss(torch.randint(97, (1, 20)), torch.randint(97, (1, 20)), Documents(20)).backward()
    assert block.mixer.proj.weight.grad is not None
