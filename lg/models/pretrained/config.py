"""What a config.json of transformers says, as a decoder's shape and what each of its layers sees; and the way back.

Every key is honoured, known to change nothing that a decoder computes, or refused by name: none is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lg.attention import Causal, Pattern, Window
from lg.models.config import DecoderConfig
from lg.models.pretrained.remote import PREFIX, patterns_of
from lg.models.rope_scaling import NTK, DynamicNTK, Linear, Llama3, RopeScaling, YaRN, ntk_theta

Json = Mapping[str, Any]

FAMILIES = ("llama", "mistral", "ministral", "qwen2", "qwen3", "smollm3")
"""Values of ``model_type`` that can be read."""

MARKS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Keys of config.json that number special tokens."""

# What a decoder's logits do not depend on.
_HARMLESS = frozenset((
    "_attn_implementation", "_name_or_path", "architectures", "auto_map", "bos_token_id", "chunk_size_feed_forward",
    "decoder_start_token_id", "dtype", "eos_token_id", "id2label", "initializer_range", "is_decoder",
    "is_encoder_decoder", "is_llama_config", "keys_to_ignore_at_inference", "label2id", "max_position_embeddings",
    "model_type", "output_attentions", "output_hidden_states", "pad_token_id",
    "pretraining_tp", "problem_type", "return_dict", "sep_token_id", "task_specific_params", "torch_dtype",
    "torchscript", "transformers.js_config", "transformers_version", "use_cache",
))  # fmt: skip
# What must be so, where it is told: another value means arithmetic that a decoder does not have.
_ONLY: dict[str, tuple[object, ...]] = {
    "attention_dropout": (0, None),
    "attention_multiplier": (None,),
    "final_logit_softcapping": (None,),
    "hidden_act": ("silu",),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1, None),
    "quantization_config": (None,),
    "residual_dropout": (0, None),
    "rope_interleaved": (False, None),
}
_READ = frozenset((
    "attention_bias", "head_dim", "hidden_size", "intermediate_size", "layer_types", "max_window_layers",
    "no_rope_layer_interval", "no_rope_layers", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
    "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta", "sliding_window", "tie_word_embeddings",
    "use_sliding_window", "vocab_size",
))  # fmt: skip
# Types of rotary positions, and what each is told by.
_ROPE: dict[str, tuple[str, ...]] = {
    "default": ("factor", "original_max_position_embeddings"),
    "linear": ("factor",),
    "dynamic": ("factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "truncate"),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
}
# What transformers takes where a config.json does not say; a key that is null says that there is none.
_DEFAULTS: dict[str, Json] = {
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "ministral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3": {"num_key_value_heads": 32, "sliding_window": 4096},
    "smollm3": {"num_key_value_heads": 4},
}
_DEFAULT_THETA = {"smollm3": 2e6}
_TIED = {"smollm3"}
# What lg calls otherwise than config.json.
_CALLED = {
    "model.init_args.decoder.": "",
    "model.init_args.": "",
    "num_layers": "num_hidden_layers",
    "num_kv_heads": "num_key_value_heads",
    "num_heads": "num_attention_heads",
    "head_width": "head_dim",
    "ffn_width": "intermediate_size",
    "norm_eps": "rms_norm_eps",
}


@dataclass(frozen=True)
class Read:
    """What a config.json says.

    Attributes:
        family: its ``model_type``.
        config: the decoder's shape.
        sees: the pattern of each layer: `Causal`, or a `Window`; of a folder with a model file of lg's, any.
        longest: positions that it was made for; None if it does not say.
        marks: numbers of the tokens that begin and end texts, and that fill rows, by the keys of config.json.
    """

    family: str
    config: DecoderConfig
    sees: tuple[Pattern, ...]
    longest: int | None
    marks: dict[str, int | list[int]]


def read(told: Json) -> Read:
    """Reads what a config.json holds.

    Raises:
        ValueError: naming the key and the value that cannot be honoured, and what is allowed.
    """
    own = told.get("lg")
    if own is not None:
        # The family's own configuration, and what layers see beside it.
        kind = str(told.get("model_type")).removeprefix(PREFIX)
        told = {key: value for key, value in told.items() if key != "lg"} | {"model_type": kind}
    family = told.get("model_type")
    if family not in FAMILIES:
        raise _refusal("model_type", family, f"allowed are {', '.join(FAMILIES)}")
    assert isinstance(family, str)
    if family == "mistral" and "layer_types" in told:  # as transformers' AutoConfig takes it
        family = "ministral"
    told = {**_DEFAULTS.get(family, {}), **told}
    for key, value in told.items():
        if key in _ONLY and value not in _ONLY[key]:
            raise _refusal(key, value, f"a decoder computes with {_ONLY[key][0]} only")
        if key not in _HARMLESS and key not in _ONLY and key not in _READ:
            raise _refusal(key, value, "it is not known what it changes; take it out of the file if it changes nothing")
    if told.get("pretraining_tp", 1) not in (1, None):
        raise _refusal("pretraining_tp", told["pretraining_tp"], "a decoder computes each product in one piece")
    biased = _flag(told, "attention_bias", False)
    if biased and family != "qwen2":
        raise _refusal("attention_bias", True, "it means a bias behind attention, too, which a decoder does not have")
    num_layers, num_heads = _whole(told, "num_hidden_layers"), _whole(told, "num_attention_heads")
    width = _whole(told, "hidden_size")
    shape: dict[str, Any] = {
        "num_layers": num_layers,
        "width": width,
        "num_heads": num_heads,
        "num_kv_heads": _whole(told, "num_key_value_heads", num_heads),
        "head_width": _whole(told, "head_dim", 128 if family == "qwen3" else width // num_heads),
        "ffn_width": _whole(told, "intermediate_size"),
        "vocab_size": _whole(told, "vocab_size"),
        "norm_eps": _number(told, "rms_norm_eps", 1e-6),
        "tied_embeddings": _flag(told, "tie_word_embeddings", family in _TIED),
        "no_rope_layers": _no_rope(told, num_layers) if family == "smollm3" else (),
    }
    try:
        theta, scaling = _rope(told, family)
        config = DecoderConfig(
            **shape, rope_theta=theta, rope_scaling=scaling, qk_norm=family == "qwen3", qkv_bias=family == "qwen2"
        )
    except ValueError as error:
        raise ValueError(_in_its_words(str(error), told)) from error
    sees = _sees(told, family, num_layers, config.no_rope_layers) if own is None else patterns_of(own)
    if len(sees) != num_layers:
        raise _refusal(
            "lg.schedule", [str(one) for one in sees], f"it must name a pattern for each of {num_layers} layers"
        )
    marks = {key: told[key] for key in MARKS if told.get(key) is not None}
    longest = None if told.get("max_position_embeddings") is None else _whole(told, "max_position_embeddings")
    return Read(family, config, sees, longest, marks)


def written(config: DecoderConfig, sees: Sequence[Pattern], longest: int) -> dict[str, Any] | None:
    """The config.json of a decoder whose layers transformers knows: None if it has no class for what they see.

    Args:
        config: its shape.
        sees: the pattern of each layer.
        longest: positions that it is made for.

    Raises:
        ValueError: if transformers has no class of this shape.
    """
    windows = {pattern.window for pattern in sees if isinstance(pattern, Window)}
    if len(windows) > 1 or any(pattern != Causal() and not isinstance(pattern, Window) for pattern in sees):
        return None
    family = family_of(config)
    more: dict[str, Any] = {}
    if windows and family == "llama":
        family = "ministral"
    if windows or family == "ministral":
        kinds = ["sliding_attention" if isinstance(pattern, Window) else "full_attention" for pattern in sees]
        more = {"layer_types": kinds, "sliding_window": windows.pop()}
        if family != "ministral":
            # Without it the window is forgotten.
            more["use_sliding_window"] = True
    return {**shape(config, family, longest), **more}


def shape(config: DecoderConfig, family: str, longest: int) -> dict[str, Any]:
    """A config.json of one family without what its layers see."""
    classes = {"llama": "Llama", "ministral": "Ministral", "qwen2": "Qwen2", "qwen3": "Qwen3", "smollm3": "SmolLM3"}
    more: dict[str, Any] = {}
    if family == "smollm3":
        more["no_rope_layers"] = [int(layer not in config.no_rope_layers) for layer in range(config.num_layers)]
    if family not in ("qwen2", "smollm3"):
        more["head_dim"] = config.head_width
    if family in ("llama", "qwen3", "smollm3"):
        more["attention_bias"] = False
    if family in ("llama", "smollm3"):
        more["mlp_bias"] = False
    theta, scaling = config.rope_theta, config.rope_scaling
    if isinstance(scaling, NTK):  # nothing but a larger base, which every class has
        theta, scaling = ntk_theta(theta, scaling.factor, config.head_width), None
    rope = rope_parameters(theta, scaling)
    return {
        "model_type": family,
        "architectures": [f"{classes[family]}ForCausalLM"],
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "vocab_size": config.vocab_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        "max_position_embeddings": longest,
        "attention_dropout": 0.0,
        # Where nothing is said, each class has numbers of its own, which may lie outside the vocabulary.
        **dict.fromkeys(MARKS),
        # Of version 5 of transformers, and of those before it.
        "rope_parameters": rope,
        "rope_theta": theta,
        **({"rope_scaling": {k: v for k, v in rope.items() if k != "rope_theta"}} if scaling else {}),
        **more,
    }


def family_of(config: DecoderConfig) -> str:
    """The family of transformers that computes as a decoder of this shape whose layers see everything.

    Raises:
        ValueError: if there is none.
    """
    said = {"qwen2": config.qkv_bias, "qwen3": config.qk_norm, "smollm3": bool(config.no_rope_layers)}
    found = [family for family, has in said.items() if has] or ["llama"]
    if len(found) > 1:
        raise ValueError(
            f"model.init_args.decoder: transformers has no class that has at once what {' and '.join(found)} have "
            "(qwen2: qkv_bias; qwen3: qk_norm; smollm3: no_rope_layers)"
        )
    if found[0] in ("qwen2", "smollm3") and config.head_width * config.num_heads != config.width:
        raise ValueError(
            f"model.init_args.decoder.head_width: {config.head_width} is not allowed for {found[0]} of transformers; "
            f"it must be width / num_heads, {config.width / config.num_heads:g}"
        )
    return found[0]


def rope_parameters(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """What transformers calls by this name.

    Raises:
        ValueError: if it has no such scaling.
    """
    told: dict[str, Any] = {"rope_theta": theta}
    if scaling is None:
        return {**told, "rope_type": "default"}
    if isinstance(scaling, Linear):
        return {**told, "rope_type": "linear", "factor": scaling.factor}
    if isinstance(scaling, YaRN):
        own = {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
        told |= {**own, "attention_factor": scaling.attention_factor}
        kind = "yarn"
    elif isinstance(scaling, Llama3):
        told |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
        kind = "llama3"
    else:
        raise ValueError(
            f"model.init_args.rope_scaling: {scaling} cannot be exported; Linear, NTK, YaRN and Llama3 can"
        )
    return {
        **told, "rope_type": kind, "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_length,
    }  # fmt: skip


def _rope(told: Json, family: str) -> tuple[float, RopeScaling | None]:
    new, old = told.get("rope_parameters"), told.get("rope_scaling")
    # transformers takes the old one, where there are both.
    said: Json = old or new or {}
    key = "rope_scaling" if old else "rope_parameters"
    for name, one in (("rope_parameters", new), ("rope_scaling", old)):
        if one is not None and not isinstance(one, Mapping):
            raise _refusal(name, one, "it must map keys to values")
    if new and old and _without_theta(new) != _without_theta(old):
        raise _refusal("rope_scaling", old, f"rope_parameters, {new!r}, says something else; one of both must go")
    beside = _number(told, "rope_theta", _DEFAULT_THETA.get(family, 10000.0))
    thetas = {str(_number(one, "rope_theta", beside)) for one in (new, old) if one}
    if len(thetas) > 1:
        raise _refusal("rope_theta", told.get("rope_theta"), f"it is told twice, as {' and '.join(sorted(thetas))}")
    theta = _number(said, "rope_theta", beside)
    kind = said.get("rope_type", said.get("type", "default"))
    if not isinstance(kind, str) or kind not in _ROPE:
        raise _refusal(f"{key}.rope_type", kind, f"allowed are {', '.join(_ROPE)}")
    for name, value in said.items():
        if name not in {"rope_theta", "rope_type", "type", *_ROPE[kind]} and not (
            name == "partial_rotary_factor" and value in (1, None)
        ):
            raise _refusal(f"{key}.{name}", value, f"it is not known what it changes where rope_type is {kind}")

    def number(name: str) -> Any:
        value = said.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise _refusal(f"{key}.{name}", value, f"it must be a number where rope_type is {kind}")
        return value

    def trained() -> int:
        name = "original_max_position_embeddings"
        return _whole(said, name) if said.get(name) else _whole(told, "max_position_embeddings")

    scaling: RopeScaling | None = None
    if kind == "linear":
        scaling = Linear(number("factor"))
    elif kind == "dynamic":
        scaling = DynamicNTK(number("factor"), _whole(told, "max_position_embeddings"))
    elif kind == "yarn":
        fast = number("beta_fast") if said.get("beta_fast") else 32.0
        slow = number("beta_slow") if said.get("beta_slow") else 1.0
        own = None if said.get("attention_factor") is None else number("attention_factor")
        truncate = _flag(said, "truncate", True)
        scaling = YaRN(number("factor"), trained(), fast, slow, own, truncate)
    elif kind == "llama3":
        scaling = Llama3(number("factor"), trained(), number("low_freq_factor"), number("high_freq_factor"))
    return theta, scaling


def _without_theta(rope: Json) -> dict[str, Any]:
    """What rotary positions are told by, under today's names."""
    return {{"type": "rope_type"}.get(key, key): value for key, value in rope.items() if key != "rope_theta"}


def _sees(told: Json, family: str, num_layers: int, no_rope: Sequence[int]) -> tuple[Pattern, ...]:
    window, kinds = told.get("sliding_window"), told.get("layer_types")
    if kinds is not None and not (isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)):
        raise _refusal("layer_types", kinds, "it must list texts")
    _flag(told, "use_sliding_window", False)
    if family == "llama":
        for key, nothing in (("sliding_window", None), ("use_sliding_window", False)):
            if told.get(key, nothing) not in (None, False):
                raise _refusal(key, told[key], "llama has no windows; model_type ministral has")
        if set(kinds or ()) - {"full_attention"} or len(kinds or [""] * num_layers) != num_layers:
            raise _refusal("layer_types", kinds, f"of llama it may name full_attention only, {num_layers} times")
        return (Causal(),) * num_layers
    if family == "mistral":
        kinds = ["sliding_attention" if window else "full_attention"] * num_layers
    elif family != "ministral" and not told.get("use_sliding_window"):
        window = None
        if kinds and "sliding_attention" in kinds:
            raise _refusal(
                "use_sliding_window",
                told.get("use_sliding_window"),
                "it must be true where layers have a sliding window",
            )
    if kinds is None:
        first = 0 if family == "ministral" else _whole(told, "max_window_layers", 28, least=0)
        sliding = set(no_rope) if family == "smollm3" else set(range(first, num_layers))
        kinds = ["sliding_attention" if window and n in sliding else "full_attention" for n in range(num_layers)]
    if len(kinds) != num_layers or set(kinds) - {"sliding_attention", "full_attention"}:
        raise _refusal("layer_types", kinds, f"it must name sliding_attention or full_attention {num_layers} times")
    slides = Window(window=_whole(told, "sliding_window")) if "sliding_attention" in kinds else Causal()
    return tuple(slides if kind == "sliding_attention" else Causal() for kind in kinds)


def _no_rope(told: Json, num_layers: int) -> tuple[int, ...]:
    rotated = told.get("no_rope_layers")
    if rotated is None:
        every = _whole(told, "no_rope_layer_interval", 4)
        rotated = [int((layer + 1) % every != 0) for layer in range(num_layers)]
    if not isinstance(rotated, list) or len(rotated) != num_layers or set(map(str, rotated)) - {"0", "1"}:
        raise _refusal("no_rope_layers", rotated, f"it must list 0 or 1 for each of {num_layers} layers")
    return tuple(layer for layer in range(num_layers) if not rotated[layer])


def _whole(told: Json, key: str, default: int | None = None, least: int = 1) -> int:
    """An integer; the default, if there is one, where it is null or not told."""
    value = told.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _refusal(key, value, f"it must be an integer of at least {least}")
    return value


def _number(told: Json, key: str, default: float) -> float:
    """A number; the default where it is not told."""
    value = told.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _refusal(key, value, "it must be a number")
    return float(value)


def _flag(told: Json, key: str, default: bool) -> bool:
    """True or false; null is false, and the default counts where nothing is told."""
    value = told.get(key, default)
    if value is not None and not isinstance(value, bool):
        raise _refusal(key, value, "it must be true or false")
    return bool(value)


def _in_its_words(said: str, told: Json) -> str:
    """A complaint of lg's about what a config.json says, by the file's keys."""
    if not told.get("rope_scaling"):
        said = said.replace("model.init_args.rope_scaling", "rope_parameters")
    for own, theirs in _CALLED.items():
        said = re.sub(rf"\b{re.escape(own)}", theirs, said) if theirs else said.replace(own, "")
    return said if said.startswith("config.json") else f"config.json: {said}"


def _refusal(key: str, value: object, allowed: str) -> ValueError:
    return ValueError(f"config.json: {key}: {value!r} is not allowed; {allowed}")
