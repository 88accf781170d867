"""Models of transformers, real classes with random weights, give the same logits as decoders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from lg.attention import Causal, Documents, Window
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder
from lg.models.presets import changed as overridden
from lg.models.pretrained import open_pretrained
from lg.models.pretrained.config import FAMILIES

N = 70
SMALL: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "initializer_range": 0.3,
}  # fmt: skip
LAYERS = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
SLIDES = {"sliding_window": 9, "layer_types": LAYERS}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "rope_theta": 5e5,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama, tied, wide heads": {"model_type": "llama", "tie_word_embeddings": True, "head_dim": 16},
    "llama, llama3": {"model_type": "llama", "rope_parameters": LLAMA3},
    "llama, yarn": {"model_type": "llama", "rope_parameters": YARN},
    "llama, yarn, nulls": {
        "model_type": "llama",
        "rope_parameters": {**YARN, "beta_fast": None, "beta_slow": None, "attention_factor": None, "truncate": False},
    },
    "llama, linear": {"model_type": "llama", "rope_parameters": LINEAR},
    "llama, dynamic": {
        "model_type": "llama", "max_position_embeddings": 32,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    },
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral, window": {"model_type": "mistral", "sliding_window": 9},
    "ministral": {"model_type": "ministral", "head_dim": 8, **SLIDES},
    "qwen2": {"model_type": "qwen2"},
    "qwen2, windows": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "qwen3, windows": {"model_type": "qwen3", "head_dim": 16, "use_sliding_window": True, **SLIDES},
    "smollm3": {"model_type": "smollm3"},
    "smollm3, windows": {"model_type": "smollm3", "use_sliding_window": True, "sliding_window": 9},
}  # fmt: skip


def made(told: dict[str, Any]) -> Any:
    """A model of transformers with random weights, norms and biases included."""
    torch.manual_seed(0)
    told = {**SMALL, **told}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**told), attn_implementation="eager")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.normal_(1.0 if "norm" in name else 0.0, 0.3)
    return model.float().eval()


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    def saved(name: str) -> tuple[Any, Path]:
        model, path = made(MODELS[name]), tmp_path_factory.mktemp("model")
        model.save_pretrained(path)
        return model, path

    return saved


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name: str, folder_of: Callable[[str], tuple[Any, Path]]) -> None:
    model, path = folder_of(name)
    tokens = torch.randint(97, (1, N), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = model(tokens).logits
        got = open_pretrained(path).decoder("dense").logits(tokens, Documents(N))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


def test_every_family_is_tried() -> None:
    assert {told["model_type"] for told in MODELS.values()} == set(FAMILIES)


def test_what_layers_see(folder_of: Callable[[str], tuple[Any, Path]]) -> None:
    def sees(name: str) -> tuple[object, ...]:
        return open_pretrained(folder_of(name)[1]).sees

    window, full = Window(window=9), Causal()
    assert sees("ministral") == sees("qwen3, windows") == (window, full, full, window)
    assert sees("qwen2, windows") == (full, window, window, window)
    assert sees("mistral, window") == (window,) * 4
    assert sees("smollm3, windows") == (full, full, full, window)
    assert sees("qwen2") == (full,) * 4


def test_several_files(tmp_path: Path) -> None:
    model = made(MODELS["qwen3"])
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    got, want = open_pretrained(tmp_path).decoder().state_dict(), model.state_dict()
    torch.testing.assert_close(got["blocks.3.mlp.up_proj.weight"], want["model.layers.3.mlp.up_proj.weight"])


def changed(path: Path, **told: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **told}))


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"model_type": "gpt2"}, "model_type: 'gpt2' is not allowed; allowed are llama, mistral"),
        ({"attention_bias": True}, "attention_bias: True is not allowed; it means a bias behind attention"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not allowed; a decoder computes with silu only"),
        ({"mlp_bias": True}, "mlp_bias: True is not allowed"),
        ({"attention_dropout": 0.1}, "attention_dropout: 0.1 is not allowed; a decoder computes with 0 only"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: {'bits': 4} is not allowed"),
        ({"residual_multiplier": 0.2}, "residual_multiplier: 0.2 is not allowed; it is not known what it changes"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "rope_type: 'longrope' is not allowed"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7}}, "mscale: 0.7 is not allowed"),
        ({"rope_parameters": [1]}, "rope_parameters: [1] is not allowed; it must map keys to values"),
        # Of both transformers takes this one.
        (
            {"rope_scaling": {"type": "linear", "factor": 4.0}},
            "'factor': 4.0} is not allowed; rope_parameters, {'rope_",
        ),
        ({"num_hidden_layers": 0}, "num_hidden_layers: 0 is not allowed; it must be an integer of at least 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_honoured_is_refused_by_name(
    told: dict[str, Any], said: str, folder_of: Callable[[str], tuple[Any, Path]]
) -> None:
    _, path = folder_of("llama")
    changed(path, **told)
    with pytest.raises(ValueError) as raised:
        open_pretrained(path)
    assert said in str(raised.value)


def test_layers_that_slide_without_a_window_in_use_are_refused(
    folder_of: Callable[[str], tuple[Any, Path]],
) -> None:
    _, path = folder_of("qwen3, windows")
    changed(path, use_sliding_window=False)
    with pytest.raises(ValueError, match="use_sliding_window: False is not allowed; it must be true where layers have"):
        open_pretrained(path)


def test_tensors_that_do_not_fit_are_all_listed(tmp_path: Path) -> None:
    model = made(MODELS["llama"])
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    del kept["model.norm.weight"], kept["model.layers.2.mlp.up_proj.weight"]
    model.save_pretrained(tmp_path, state_dict={**kept, "model.layers.0.self_attn.q_proj.bias": torch.ones(48)})
    with pytest.raises(ValueError) as raised:
        open_pretrained(tmp_path)
    assert str(raised.value) == (
        "model.init_args.pretrained: the tensors do not fit config.json; missing: model.layers.2.mlp.up_proj.weight, "
        "model.norm.weight; not expected: model.layers.0.self_attn.q_proj.bias"
    )


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", "[1]", "holds no object"),
        ("model.safetensors.index.json", "{}", "is damaged: 'weight_map'"),
        ("model.safetensors.index.json", '{"weight_map": []}', "is damaged"),
        ("model.safetensors.index.json", "{", "is damaged"),
    ],
)
def test_damage_is_told(file: str, content: str, said: str, folder_of: Callable[[str], tuple[Any, Path]]) -> None:
    _, path = folder_of("llama")
    (path / file).write_text(content)
    if "index" in file:  # beside a whole file it does not count
        (path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=said) as raised:
        open_pretrained(path)
    assert file in str(raised.value)


def test_another_shape_is_told(folder_of: Callable[[str], tuple[Any, Path]]) -> None:
    _, path = folder_of("llama")
    changed(path, vocab_size=98)
    with pytest.raises(ValueError, match=r"embed_tokens.weight is \[97, 48\], where config.json tells of \[98, 48"):
        open_pretrained(path)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config.json; a folder of transformers is needed"):
        open_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        open_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(made(MODELS["llama"]).config.to_dict()))
    with pytest.raises(ValueError, match=r"has no model.safetensors; safetensors are needed"):
        open_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x10")
    with pytest.raises(ValueError, match="is damaged"):
        open_pretrained(tmp_path)


def test_versions_before_5_are_read_alike(folder_of: Callable[[str], tuple[Any, Path]]) -> None:
    _, path = folder_of("llama, llama3")
    new = open_pretrained(path).config
    told = json.loads((path / "config.json").read_text())
    rope = told.pop("rope_parameters")
    told |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    (path / "config.json").write_text(json.dumps(told))
    assert open_pretrained(path).config == new
    assert int(transformers.__version__.split(".")[0]) >= 4


# Parts that disagree, or say too little


def folder(path: Path, name: str, without: tuple[str, ...] = (), **told: Any) -> Path:
    """A model's folder with another config.json."""
    made(MODELS[name]).save_pretrained(path)
    changed(path, **told)
    file = path / "config.json"
    file.write_text(
        json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key not in without})
    )
    return path


def as_transformers(path: Path) -> None:
    """Holds lg to the model that transformers makes of the folder."""
    tokens = torch.randint(97, (1, N), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").float().eval()(tokens).logits
        got = open_pretrained(path).decoder("dense").logits(tokens, Documents(N))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("kinds", [["sliding_attention", "full_attention"] * 2, ["full_attention"] * 4], ids=str)
def test_a_mistral_with_kinds_of_layers_is_a_ministral(kinds: list[str], tmp_path: Path) -> None:
    path = folder(tmp_path, "mistral, window", layer_types=kinds)
    as_transformers(path)
    assert open_pretrained(path).sees == tuple(Window(9) if kind[0] == "s" else Causal() for kind in kinds)


@pytest.mark.parametrize("name", ["mistral", "ministral"])
def test_a_window_that_is_not_told_is_the_class_s(name: str, tmp_path: Path) -> None:
    path = folder(tmp_path, name, without=("sliding_window", "layer_types"))
    assert open_pretrained(path).sees == (Window(4096),) * 4
    changed(path, sliding_window=None)
    assert open_pretrained(path).sees == (Causal(),) * 4


def test_kv_heads_that_are_not_told_are_the_class_s(tmp_path: Path) -> None:
    path = folder(tmp_path, "smollm3", without=("num_key_value_heads",), hidden_size=64, num_attention_heads=8)
    with pytest.raises(ValueError, match=r"k_proj.weight is \[16, 48\], where config.json tells of \[32, 64\]"):
        open_pretrained(path)  # 4 of them


def test_of_two_scalings_transformers_and_lg_take_the_same_theta(tmp_path: Path) -> None:
    old = {"type": "linear", "factor": 4.0}
    path = folder(tmp_path, "llama, linear", rope_scaling=old)
    as_transformers(path)
    for theta in ({"rope_theta": 5e4}, {"rope_scaling": {**old, "rope_theta": 1e6}}):
        changed(path, **{"rope_theta": 1e4, "rope_scaling": old, **theta})
        with pytest.raises(ValueError, match=r"config.json: rope_theta: .* it is told twice, as 10000.0 and"):
            open_pretrained(path)


def test_one_whole_file_counts_before_an_index(tmp_path: Path) -> None:
    old = made({**MODELS["llama"], "initializer_range": 0.1})
    old.save_pretrained(tmp_path, max_shard_size="20KB")
    index = (tmp_path / "model.safetensors.index.json").read_text()
    made(MODELS["llama"]).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    as_transformers(tmp_path)


def test_a_head_of_its_own_is_not_tied_in_silence(tmp_path: Path) -> None:
    path = folder(tmp_path, "llama", tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"lm_head.weight is not model.embed_tokens.weight, where config.json says"):
        open_pretrained(path)
    weights = load_file(path / "model.safetensors")
    save_file(
        {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}, path / "model.safetensors",
        metadata={"format": "pt"},
    )  # fmt: skip
    as_transformers(path)


def test_shapes_and_types_that_do_not_fit_are_all_listed(tmp_path: Path) -> None:
    path = folder(tmp_path, "llama")
    weights = load_file(path / "model.safetensors")
    query, norm = "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"
    save_file(
        {**weights, query: weights[query][:7].clone(), norm: weights[norm].to(torch.int8)}, path / "model.safetensors"
    )
    with pytest.raises(ValueError) as raised:
        open_pretrained(path)
    assert f"{query} is [7, 48], where config.json tells of [48, 48]" in str(raised.value)
    assert f"{norm} is of type I8; allowed are float64, float32, float16, bfloat16" in str(raised.value)


@pytest.mark.parametrize(
    ("decoder", "said"),
    [
        (
            {"tied_embeddings": False},
            "model.init_args.decoder: it asks for what the pretrained model does not have: lm_",
        ),
        ({"qkv_bias": True}, "does not have: model.layers.0.self_attn.k_proj.bias, model.layers.0.self_attn.q_proj"),
        ({"vocab_size": 256}, "model.init_args.decoder: it asks for [256, 48], where model.embed_tokens.weight of the"),
    ],
)
def test_what_a_changed_decoder_lacks_is_told(decoder: dict[str, Any], said: str, tmp_path: Path) -> None:
    found = open_pretrained(folder(tmp_path, "llama, tied, wide heads"))
    config = overridden(found.config, decoder)
    assert isinstance(config, DecoderConfig)
    with pytest.raises(ValueError) as raised:
        Decoder(config, found.sees, fill=found.fill)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("name", "told", "said"),
    [
        ("llama", {"layer_types": ["sliding_attention"] * 4}, "layer_types: ['sliding_attention', "),
        (
            "llama",
            {"layer_types": "full_attention"},
            "layer_types: 'full_attention' is not allowed; it must list texts",
        ),
        ("llama", {"layer_types": ["full_attention"]}, "of llama it may name full_attention only, 4 times"),
        ("llama", {"sliding_window": 16}, "sliding_window: 16 is not allowed; llama has no windows"),
        ("llama", {"use_sliding_window": True}, "use_sliding_window: True is not allowed; llama has no windows"),
        ("llama", {"tie_word_embeddings": "false"}, "tie_word_embeddings: 'false' is not allowed; it must be true or"),
        ("llama", {"max_position_embeddings": "64"}, "max_position_embeddings: '64' is not allowed; it must be an int"),
        ("llama", {"rms_norm_eps": None}, "rms_norm_eps: None is not allowed; it must be a number"),
        ("llama", {"rms_norm_eps": "abc"}, "rms_norm_eps: 'abc' is not allowed; it must be a number"),
        (
            "llama",
            {"rope_parameters": None, "rope_theta": None},
            "rope_theta: None is not allowed; it must be a number",
        ),
        ("llama", {"head_dim": 7}, "head_dim: 7 is not allowed"),
        ("llama", {"rope_parameters": {"rope_type": ["yarn"]}}, "rope_type: ['yarn'] is not allowed"),
        (
            "llama, linear",
            {"rope_parameters": {"rope_type": "linear", "factor": 0.5}},
            "config.json: rope_parameters.factor",
        ),
        (
            "llama, yarn",
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "beta_fast": "x"}},
            "beta_fast: 'x' is",
        ),
        (
            "llama, yarn",
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": "32"}},
            "original_max_position_embeddings: '32' is not allowed; it must be an integer",
        ),
        ("qwen2, windows", {"layer_types": None, "max_window_layers": "2"}, "max_window_layers: '2' is not allowed"),
        ("ministral", {"layer_types": 4}, "layer_types: 4 is not allowed; it must list texts"),
        (
            "smollm3",
            {"no_rope_layers": [1, 0]},
            "no_rope_layers: [1, 0] is not allowed; it must list 0 or 1 for each of 4",
        ),
        ("smollm3", {"no_rope_layers": None, "no_rope_layer_interval": 0}, "no_rope_layer_interval: 0 is not allowed"),
    ],
    ids=str,
)
def test_values_of_another_kind_are_told_by_their_key(
    name: str, told: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as raised:
        open_pretrained(folder(tmp_path, name, **told))
    assert said in str(raised.value) and str(raised.value).startswith("config.json: "), str(raised.value)
    assert "model.init_args" not in str(raised.value)
