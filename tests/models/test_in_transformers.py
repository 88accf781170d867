from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    PreTrainedModel,
    StaticCache,
)
from transformers.masking_utils import causal_mask_function

from lg.attention import Causal, Documents, Pattern, PerHead, PrefixLM, SinkWindow, Strided, Window
from lg.models.in_transformers import register, use_patterns
from lg.models.transformers_mask import Mask
from lg.models.transformers_mask import mask as mask_of_pass

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
HYBRID = {"layer_types": ["sliding_attention", "full_attention"] * 2}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "mistral, window 1": {"model_type": "mistral", "sliding_window": 1},
    "mistral, window 7": {"model_type": "mistral", "sliding_window": 7},
    "mistral, window past the text": {"model_type": "mistral", "sliding_window": 200},
    "qwen3, hybrid": {"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 7, **HYBRID},
    "ministral, hybrid": {"model_type": "ministral", "sliding_window": 5, **HYBRID},
}
L = 40


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    register()
    register("lg-dense", "dense")
    register("lg-gather", "gather")


def config_of(model_type: str, **fields: Any) -> Any:
    return AutoConfig.for_model(model_type, **TINY | fields)


def build(config: Any, attention: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """The same weights whatever the attention; wide, so that attention matters to the logits."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=attention)
    for name, parameter in model.named_parameters():
        if "proj" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype).eval()


@pytest.fixture(params=MODELS, scope="module")
def config(request: pytest.FixtureRequest) -> Any:
    return named(request.param)


def named(name: str) -> Any:
    fields = MODELS[name]
    if fields["model_type"] == "ministral":
        pytest.importorskip("transformers.models.ministral")
    return config_of(**fields)


def tokens(*shape: int) -> Tensor:
    return torch.randint(1, 64, shape, generator=torch.Generator().manual_seed(1))


def padding() -> Tensor:
    """Rows padded on the left, on the right, and not at all."""
    mask = torch.ones(3, L, dtype=torch.int64)
    mask[0, :9] = 0
    mask[1, -5:] = 0
    return mask


# The model's own configuration: sdpa of transformers is the reference, since its eager attention rounds to float32.


@pytest.mark.parametrize("attention", ["lg", "lg-dense", "lg-gather"])
def test_logits_are_those_of_transformers(config: Any, attention: str) -> None:
    ids = tokens(2, L)
    expected = build(config, "sdpa")(ids).logits
    torch.testing.assert_close(build(config, attention)(ids).logits, expected, rtol=0, atol=1e-6)


def test_logits_in_float32_are_those_of_eager(config: Any) -> None:
    ids = tokens(2, L)
    expected = build(config, "eager", torch.float32)(ids).logits
    torch.testing.assert_close(build(config, "lg", torch.float32)(ids).logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["mistral, window 1", "mistral, window 7", "qwen3, hybrid", "ministral, hybrid"])
def test_a_window_off_by_one_is_seen(name: str) -> None:
    config, ids = named(name), tokens(2, L)
    window, other = config.sliding_window, copy.deepcopy(config)
    other.sliding_window += 1
    difference = (build(other, "lg")(ids).logits - build(config, "sdpa")(ids).logits).abs().amax((0, 2))
    assert difference[:window].max() < 1e-6 and difference[window] > 1e-2


def test_padded_rows_are_those_of_transformers(config: Any) -> None:
    ids, mask = tokens(3, L), padding()
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    expected = build(config, "sdpa")(**given).logits
    torch.testing.assert_close(
        build(config, "lg")(**given).logits[mask.bool()], expected[mask.bool()], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("padded", [False, True])
def test_gradients_are_those_of_transformers(config: Any, padded: bool) -> None:
    ids, mask = tokens(3, L), padding()
    gradients = []
    for attention in ("sdpa", "lg"):
        model = build(config, attention).train()
        if attention == "lg":
            # The layers run again in the backward pass; the name is that of newer versions, or of older ones.
            newer = getattr(model, "activation_checkpointing_enable", None)
            (newer or model.gradient_checkpointing_enable)()
        logits = model(ids, attention_mask=mask if padded else None, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[mask.bool()], ids[mask.bool()]).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(g.abs().max() > 0 for name, g in gradients[0].items() if "v_proj" in name)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)


def test_position_ids_that_begin_again_are_documents(config: Any) -> None:
    ids = tokens(2, L)
    positions = torch.stack((torch.cat((torch.arange(13), torch.arange(L - 13))), torch.arange(L)))
    logits = build(config, "lg")(ids, position_ids=positions, use_cache=False).logits
    expected = build(config, "sdpa")(ids, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
    alone = build(config, "lg")(ids[:1, 13:]).logits
    torch.testing.assert_close(logits[:1, 13:], alone, rtol=0, atol=1e-6)


# With a cache


def generated(model: PreTrainedModel, ids: Tensor, mask: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=10,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    return out.sequences, torch.stack(out.logits)


@pytest.mark.parametrize("pads", [(0, 0, 0), (4, 0, 1)])
def test_generation_with_a_cache_is_that_of_transformers(config: Any, pads: tuple[int, ...]) -> None:
    if getattr(config, "sliding_window", None) == 1:
        return  # see below
    ids, mask = tokens(3, 9), torch.ones(3, 9, dtype=torch.int64)
    for row, pad in enumerate(pads):
        mask[row, :pad] = 0
    sequences, logits = generated(build(config, "lg"), ids, mask)
    expected_sequences, expected_logits = generated(build(config, "sdpa"), ids, mask)
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-6)
    assert torch.equal(sequences, expected_sequences)


def test_a_prompt_in_chunks_is_the_prompt_at_once(config: Any) -> None:
    ids, model = tokens(2, L), build(config, "lg")
    expected = build(config, "sdpa")(ids).logits
    for cache in (DynamicCache(config=config), DynamicCache()):
        if getattr(config, "sliding_window", None) == 1 and cache.is_sliding[:1] == [True]:
            continue
        parts = [model(part, past_key_values=cache).logits for part in ids.split((11, 1, 17, 11), 1)]
        torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=0, atol=1e-6)


def test_a_cache_that_keeps_other_keys_than_it_says_is_refused() -> None:
    """transformers' sliding cache keeps every key of a window of 1, and says that it keeps none."""
    config = named("mistral, window 1")
    with pytest.raises(ValueError, match="1 queries on 1 keys, but the layer has 1 queries and 9 keys"):
        generated(build(config, "lg"), tokens(1, 8), torch.ones(1, 8, dtype=torch.int64))


# Patterns of lg


def dense(pattern: Pattern, length: int) -> Tensor:
    """The pattern as transformers' own additive mask: [1, H, L, L]."""
    query, key, head = torch.arange(length)[:, None], torch.arange(length), torch.arange(2)[:, None, None]
    seen = pattern.mask(query, key, head).repeat_interleave(2, 0)
    return torch.zeros(1, 4, length, length, dtype=torch.float64).masked_fill(~seen, float("-inf"))


@pytest.mark.parametrize("local", [SinkWindow(window=6, sinks=2), Strided(block=4, local_blocks=2, stride=3)])
def test_patterns_are_masks_written_by_hand(local: Pattern) -> None:
    config, ids = config_of(**MODELS["qwen3, hybrid"]), tokens(2, L)
    model = build(config, "lg")
    assert (
        use_patterns(model, {"local": local, "full": Causal()}, "local, full, local, full")
        == [
            "local",
            "full",
        ]
        * 2
    )
    by_hand = {"sliding_attention": dense(local, L), "full_attention": dense(Causal(), L)}
    expected = build(config, "sdpa")(ids, attention_mask=by_hand).logits
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-6)


def test_sinks_are_those_of_the_document_past_its_padding() -> None:
    model, ids, mask = build(config_of("llama"), "lg"), tokens(3, L), padding()
    use_patterns(model, {"local": SinkWindow(window=6, sinks=2)}, "4*local")
    logits = model(ids, attention_mask=mask).logits
    for row, real in enumerate(mask.bool()):
        torch.testing.assert_close(logits[row, real], model(ids[row : row + 1, real]).logits[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("pads", [(0, 0), (3, 0)])
def test_patterns_generate_what_they_give_without_a_cache(pads: tuple[int, ...]) -> None:
    model, ids, mask = build(config_of("llama"), "lg"), tokens(2, 9), torch.ones(2, 9, dtype=torch.int64)
    for row, pad in enumerate(pads):
        mask[row, :pad] = 0
    patterns = {"local": SinkWindow(window=6, sinks=2), "strided": Strided(4, 1, 3), "full": Causal()}
    use_patterns(model, patterns, "local, full, strided, local")
    sequences, logits = generated(model, ids, mask)
    expected_sequences, expected_logits = generated(model, ids, mask, use_cache=False)
    torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-6)
    assert torch.equal(sequences, expected_sequences)


def test_a_pattern_that_sees_more_than_the_sliding_cache_keeps_is_refused() -> None:
    config, ids = config_of("mistral", sliding_window=7), tokens(2, 9)
    model, mask = build(config, "lg"), torch.ones(2, 9, dtype=torch.int64)
    for pattern in (SinkWindow(window=6, sinks=2), Window(8), Causal()):
        use_patterns(model, {"local": pattern}, "4*local")
        with pytest.raises(ValueError, match=r"the sliding cache has dropped .*=transformers.DynamicCache\(\)"):
            generated(model, ids, mask)
        # As the refusal advises.
        sequences, _ = generated(model, ids, mask, past_key_values=DynamicCache())
        assert torch.equal(sequences, generated(model, ids, mask, use_cache=False)[0])
    use_patterns(model, {"local": Window(5)}, "4*local")
    assert torch.equal(generated(model, ids, mask)[0], generated(model, ids, mask, use_cache=False)[0])


def test_tiles_are_built_once_for_all_layers_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    built, tiles = [], Pattern.tiles
    model = build(config_of("llama"), "lg")
    use_patterns(model, {"local": Window(6), "full": Causal()}, "2*local, 2*full")
    model(tokens(2, L))

    def counted(self: Pattern, *args: Any) -> Any:
        built.append(self)
        return tiles(self, *args)

    monkeypatch.setattr(Pattern, "tiles", counted)
    model(tokens(2, L))
    assert built == [Window(6), Causal()]


def test_copies_and_saved_weights(tmp_path: Path) -> None:
    model, ids = build(config_of("llama"), "lg"), tokens(1, L)
    use_patterns(model, {"local": Window(3)}, "4*local")
    logits = model(ids).logits
    assert torch.equal(copy.deepcopy(model)(ids).logits, logits)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="lg", dtype=torch.float64).eval()
    assert not torch.equal(loaded(ids).logits, logits)
    use_patterns(loaded, {"local": Window(3)}, "4*local")
    torch.testing.assert_close(loaded(ids).logits, logits, rtol=0, atol=1e-6)


def test_patterns_wait_while_other_attention_is_set() -> None:
    model, ids = build(config_of("llama"), "lg"), tokens(1, L)
    full = model(ids).logits
    use_patterns(model, {"local": Window(3)}, "4*local")
    logits = model(ids).logits
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(model(ids).logits, full, rtol=0, atol=1e-6)
    model.set_attn_implementation("lg")
    assert torch.equal(model(ids).logits, logits)


def test_packing_is_seen_where_transformers_looks_for_it() -> None:
    model, ids = build(config_of("llama"), "lg"), tokens(1, L)
    use_patterns(model, {"local": SinkWindow(window=3, sinks=2)}, "4*local")
    packed = torch.arange(L // 2).repeat(1, 2)
    alone = model(ids[:, L // 2 :]).logits
    given: list[dict[str, Any]] = [{}, {"use_cache": True}, {"attention_mask": torch.ones(1, L, dtype=torch.int64)}]
    seen = [
        torch.allclose(model(ids, position_ids=packed, **{"use_cache": False} | more).logits[:, L // 2 :], alone)
        for more in given
    ]
    assert seen == [True, False, False]


@pytest.mark.gpu
def test_training_and_generation_on_a_gpu() -> None:
    config = config_of(**MODELS["qwen3, hybrid"] | {"head_dim": 16, "sliding_window": 100})
    ids, mask = tokens(2, 200).cuda(), torch.ones(2, 200, dtype=torch.int64).cuda()
    mask[0, :70] = 0
    logits, steps = [], []
    for attention in ("sdpa", "lg"):
        model = build(config, attention, torch.float32).cuda()
        out = model(ids, attention_mask=mask).logits[mask.bool()]
        out.float().logsumexp(-1).sum().backward()
        logits.append((out, model.model.layers[0].self_attn.v_proj.weight.grad))
        with torch.no_grad():
            steps.append(model(ids[:, -1:], attention_mask=mask, past_key_values=prefilled(model, ids, mask)).logits)
    for ours, theirs in zip((*logits[1], steps[1]), (*logits[0], steps[0]), strict=True):
        assert (ours - theirs).norm() < 1e-2 * theirs.norm()


def prefilled(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    model(ids[:, :-1], attention_mask=mask[:, :-1], past_key_values=cache)
    return cache


# What is refused


def refused(model: PreTrainedModel, match: str, **given: Any) -> None:
    with pytest.raises(ValueError, match=match):
        model(**{"input_ids": tokens(1, 8)} | given)


def test_what_a_model_asks_of_its_scores_is_refused_by_name() -> None:
    refused(build(config_of("gemma2", attn_logit_softcapping=50.0), "lg"), "layer 0: softcap .*soft-capped scores")
    refused(build(config_of("gpt_oss"), "lg"), "layer 0: s_aux .*learned sink logits")
    dropping = build(config_of("llama", attention_dropout=0.1), "lg")
    dropping(tokens(1, 8))
    refused(dropping.train(), "dropout=0.1 is not allowed; set the configuration's attention_dropout to 0")


# transformers below 5 warns of it before lg refuses.
@pytest.mark.filterwarnings("ignore:.output_attentions=True. is not supported:UserWarning")
def test_what_a_call_asks_is_refused_by_name() -> None:
    model = build(config_of("llama"), "lg")
    refused(model, "Tensor, not made by lg: 4D masks of your own", attention_mask=torch.zeros(1, 1, 8, 8))
    refused(model, "bidirectional_mask_function|not causal", is_causal=False)
    refused(model, "cu_seq_lens_q .*position_ids", cu_seq_lens_q=torch.tensor([0, 8]))
    refused(model, "beside .*unknown", beside=3)
    hole = torch.tensor([[1, 1, 0, 1, 1, 1, 1, 1]])
    refused(model, "padding between the tokens of row 0", attention_mask=hole)
    refused(model, r"it must be \[B, 11\]", attention_mask=torch.ones(1, 8), past_key_values=filled(model.config, 3))
    refused(model, "static caches", past_key_values=StaticCache(config=model.config, max_cache_len=20))
    refused(model, "output_attentions", output_attentions=True)


def filled(config: Any, length: int) -> DynamicCache:
    cache = DynamicCache(config=config)
    build(config, "lg")(tokens(1, length), past_key_values=cache)
    return cache


def test_attention_that_is_not_causal_is_refused() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    tower = AutoConfig.for_model("siglip_vision_model", image_size=16, patch_size=8, **sizes)
    with pytest.raises(ValueError, match=r"not causal|not made by lg|bidirectional_mask_function"):
        AutoModel.from_config(tower, attn_implementation="lg")(torch.zeros(1, 3, 16, 16))


@dataclass(frozen=True)
class FarAhead(Pattern):
    """Causal until token 5,000."""

    def sees(self, q: Any, k: Any, h: Any) -> Any:
        return (k <= q) | (q >= 5000)


def test_a_pattern_that_sees_later_keys_only_in_a_long_text_is_refused_there() -> None:
    use_patterns(build(config_of("llama"), "lg"), {"local": FarAhead()}, "4*local")
    with pytest.raises(ValueError, match="lets a query see later keys"):
        Mask(None, ((0,),), length=6000, num_queries=6000).tiles(FarAhead(), 2)


def test_patterns_that_no_layer_could_follow_are_refused_at_once() -> None:
    model = build(config_of("llama"), "lg")
    for pattern, sentence in (
        (~Window(3), "'local', Not.*, lets a query see later keys"),
        (PrefixLM(), r"'local', PrefixLM\(\), asks for doc.prefix"),
        (PerHead((Causal(), Window(3)), (0, 1, 1)), "'local', PerHead.*, is made for 3 KV heads, but the model has 2"),
        ("Window", "use_patterns: 'local' is 'Window', which is no pattern; hand an instance"),
        (Window, "use_patterns: 'local' is .*Window.*, which is no pattern; hand an instance"),
    ):
        with pytest.raises(ValueError, match=sentence):
            use_patterns(model, {"local": pattern, "full": Causal()}, "4*full")  # type: ignore[dict-item]


def test_masks_with_parts_of_others_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the model's mask has a part .*<lambda>"):
        mask_of_pass(batch_size=1, kv_length=8, kv_offset=0, q_length=8, mask_function=lambda b, h, q, k: k <= q)
    sizes = {"attention_chunk_size": 8, "intermediate_size_mlp": 48, "num_local_experts": 2}
    chunked = build(config_of("llama4_text", **sizes), "lg")
    refused(chunked, "layer 0: lg has no pattern for its mask; name one, such as Chunked, by use_patterns")


def test_a_model_must_use_lg() -> None:
    with pytest.raises(ValueError, match="LlamaForCausalLM uses attn_implementation='sdpa'"):
        use_patterns(build(config_of("llama"), "sdpa"), {"full": Causal()}, "4*full")
    for schedule, sentence in (
        ("3*full", "^use_patterns: schedule: '3.full' gives 3 layers to a model of 4"),
        ("4*fll", "^use_patterns: schedule: layer 0 is 'fll', which is not among the patterns; allowed are full$"),
    ):
        with pytest.raises(ValueError, match=sentence):
            use_patterns(build(config_of("llama"), "lg"), {"full": Causal()}, schedule)
    config = AutoConfig.for_model("bloom", n_layer=4, hidden_size=32, vocab_size=64)
    alibi = AutoModelForCausalLM.from_config(config, attn_implementation="lg")
    with pytest.raises(ValueError, match="layer 0 of BloomForCausalLM has no attention that goes through"):
        use_patterns(alibi, {"full": Causal()}, "4*full")


def test_names_and_implementations() -> None:
    register()
    with pytest.raises(ValueError, match="impl='fast' is unknown; allowed are auto, dense"):
        register("lg-fast", "fast")
    for name in ("lg", "sdpa", "eager", "lg-flash"):
        with pytest.raises(ValueError, match=f"name='{name}' is not allowed"):
            register(name, "dense")


def test_a_named_implementation_runs_or_raises() -> None:
    register("lg-flex", "flex")
    with pytest.raises(ValueError, match="attention implementation 'flex' cannot compute this"):
        build(config_of("llama"), "lg-flex").train()(tokens(1, 8))


def test_padding_is_a_document_of_its_own() -> None:
    made = mask_of_pass(
        batch_size=3, kv_length=L, kv_offset=0, q_length=L, mask_function=causal_mask_function, attention_mask=padding()
    )
    assert made.rows == ((0, 9), (0, L - 5), (0,))


def test_rows_that_differ_are_laid_end_to_end() -> None:
    (tiles,) = Mask(Causal(), ((0, 2), (0,)), length=5, num_queries=5).tiles(Causal(), 2)
    assert tiles.documents == Documents(10, (0, 2, 5))
    by_row = Mask(Causal(), ((0, 2), (0,)), length=5, num_queries=1).tiles(Causal(), 2)
    assert [t.documents for t in by_row] == [Documents(5, (0, 2)), Documents(5)]
    assert [t.queries for t in by_row] == [(4, 5)] * 2
