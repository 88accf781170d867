"""lg's attention in the models of transformers: any causal model there takes patterns, layer by layer.

>>> from transformers import LlamaConfig, LlamaForCausalLM
>>> from lg.attention import Causal, SinkWindow
>>> from lg.models.in_transformers import register, use_patterns
>>> register()
>>> config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
...     num_attention_heads=4, num_key_value_heads=2, attn_implementation="lg")
>>> model = LlamaForCausalLM(config)  # or .from_pretrained(path, attn_implementation="lg")
>>> use_patterns(model, {"local": SinkWindow(window=1984, sinks=64), "full": Causal()}, "local, full, local")
['local', 'full', 'local']

Without `use_patterns` every layer sees what the model's own configuration says: a sliding window, or all before it.
Patterns are not saved with the weights, and are not asked while ``set_attn_implementation`` names another attention.
Batches may be padded on either side, or packed by ``position_ids`` that begin again (where transformers looks for it:
without ``attention_mask``, with ``use_cache=False``). KV caches may be used; of a sliding layer transformers' cache
keeps the window only: for a pattern that sees more, hand ``generate`` a ``DynamicCache()``. What lg does not compute
(dropout of attention, soft-capped scores, learned sinks, returned weights, masks of your own) is refused by name. A
model whose attention does not go through transformers' interface never calls lg: `use_patterns` refuses it, and without
patterns it fails on lg's mask, which is no tensor.

Shapes: B batch, L keys, Lq queries, H query heads, G KV heads, D head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lg.attention import Pattern
from lg.attention.attend import IMPLEMENTATIONS
from lg.attention.schedule import KEY, Schedule, layers
from lg.models.transformers_mask import Mask, mask, sees_later

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Tokens of the document on which a pattern is first asked whether it sees later keys. Longer ones are asked when they
# come: a pattern may begin there.
_FIRST_ASKED = 4096

# What models hand on that changes nothing here: the mask says it already, or it is not attention's affair.
_SAID_ELSEWHERE = frozenset(
    {
        "cache_position",
        "num_items_in_batch",
        "output_hidden_states",
        "output_router_logits",
        "past_key_values",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "sliding_window",
        "use_cache",
    }
)
_MEANING = {
    "cu_seq_lens_q": "packing is read from position_ids",
    "cu_seq_lens_k": "packing is read from position_ids",
    "head_mask": "masked heads",
    "output_attentions": "attention weights are never held",
    "position_bias": "a bias on scores",
    "s_aux": "learned sink logits",
    "softcap": "soft-capped scores",
}


def register(name: str = "lg", impl: str = "auto") -> None:
    """Makes lg's attention known to transformers as ``attn_implementation=name``. May be called again.

    Args:
        name: what models are asked to use; one for each implementation, if you name some.
        impl: "auto", or one of `lg.attention.attend.IMPLEMENTATIONS`, which then runs or raises.

    Raises:
        ValueError: if there is no such implementation, or the name is not free.
    """
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

    if impl not in ("auto", *IMPLEMENTATIONS):
        raise ValueError(f"register: impl={impl!r} is unknown; allowed are auto, {', '.join(IMPLEMENTATIONS)}")
    known = ALL_ATTENTION_FUNCTIONS.get(name)
    # transformers takes any name with "flash" in it for FlashAttention, and "eager" for its own.
    if "flash" in name or name == "eager" or (known is not None and _implementation(known) != impl):
        raise ValueError(f"register: name={name!r} is not allowed; it means something else to transformers already")
    AttentionInterface.register(name, partial(_attention, impl=impl))
    AttentionMaskInterface.register(name, mask)


def use_patterns(model: PreTrainedModel, patterns: Mapping[str, Pattern], schedule: str | Schedule) -> list[str]:
    """Gives each layer of a model of transformers its pattern, in place of what its configuration says.

    Args:
        model: a causal language model that was loaded with ``attn_implementation="lg"``.
        patterns: what a layer may see, by the name that the schedule uses.
        schedule: the name of each layer's pattern, as in "10*local, 12*full, 10*local", or a builder.

    Returns:
        The name of each layer's pattern.

    Raises:
        ValueError: if the model does not use lg, a layer has no attention that transformers' interface reaches, the
            schedule does not fit, or a pattern is none, is made for other KV heads, sees later keys, or asks for what
            transformers does not know of its documents.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config = model.config.get_text_config(decoder=True)
    used = config._attn_implementation
    if _implementation(ALL_ATTENTION_FUNCTIONS.get(used)) is None:
        raise ValueError(
            f'{type(model).__name__} uses attn_implementation={used!r}; register() lg\'s, and load it with "lg"'
        )
    heads = getattr(config, "num_key_value_heads", None)
    for name, pattern in patterns.items():
        # Some configurations have a number for each layer: then the layers ask, as they run.
        _check(name, pattern, heads if isinstance(heads, int) else None)
    try:
        names = layers(schedule, config.num_hidden_layers, list(patterns))
    except ValueError as error:
        # There is no YAML here.
        told = str(error).replace(KEY, "use_patterns: schedule").replace(" (model.init_args.patterns)", "")
        raise ValueError(told) from None
    of_layer = {
        getattr(m, "layer_idx", None): m
        for m in model.modules()
        if getattr(m, "config", None) is config and "ALL_ATTENTION_FUNCTIONS" in _globals_of(type(m).forward)
    }
    without = [layer for layer in range(len(names)) if layer not in of_layer]
    if without:
        raise ValueError(
            f"use_patterns: layer {without[0]} of {type(model).__name__} has no attention that goes through "
            "transformers' attention interface, so lg is never called by it"
        )
    for layer, name in enumerate(names):
        # A plain attribute: it goes where the module goes, copies included, and is no part of the weights.
        object.__setattr__(of_layer[layer], "lg_pattern", patterns[name])
    return names


def _check(name: str, pattern: Pattern, num_kv_heads: int | None) -> None:
    """Refuses a pattern that no layer of such a model could follow."""
    if not isinstance(pattern, Pattern):
        raise ValueError(
            f"use_patterns: {name!r} is {pattern!r}, which is no pattern; hand an instance, as SinkWindow(window=1984)"
        )
    if pattern.attributes:
        raise ValueError(
            f"use_patterns: {name!r}, {pattern}, asks for doc.{pattern.attributes[0]}, which transformers does not "
            "know of its documents"
        )
    if num_kv_heads is not None and pattern.made_for not in (None, num_kv_heads):
        raise ValueError(
            f"use_patterns: {name!r}, {pattern}, is made for {pattern.made_for} KV heads, but the model has "
            f"{num_kv_heads} (num_key_value_heads of its configuration)"
        )
    if sees_later(pattern, num_kv_heads or pattern.made_for or 1, _FIRST_ASKED):
        raise ValueError(
            f"use_patterns: {name!r}, {pattern}, lets a query see later keys, which training would leak and a cache "
            "has not yet; write `& Causal()` into it"
        )


def _globals_of(function: Any) -> tuple[str, ...]:
    """The global names that a function's source mentions, decorators aside."""
    names: tuple[str, ...] = inspect.unwrap(function).__code__.co_names
    return names


def _implementation(function: Any) -> str | None:
    """What a function of transformers' interface was registered with; None if it is not lg's."""
    own = isinstance(function, partial) and function.func is _attention
    return str(function.keywords["impl"]) if own else None


# A model that is compiled is broken here: tiles are built on the host, and what computes them compiles itself.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    *,
    impl: str,
    **said: Any,
) -> tuple[Tensor, None]:
    """What transformers' attention interface calls, in every layer.

    Args:
        module: the layer's attention.
        query: [B, H, Lq, D].
        key: [B, G, L, D].
        value: [B, G, L, D].
        attention_mask: the `Mask` of this pass.
        scaling: what scores are multiplied by; ``D ** -0.5`` by default.
        dropout: must be 0.
        is_causal: False for what lg does not compute.
        impl: "auto", or the name of an implementation.
        said: what else the model hands on.

    Returns:
        Attention [B, Lq, H, D], and None for its weights.

    Raises:
        ValueError: naming what lg does not compute.
    """
    where = f"{type(module).__name__} of layer {getattr(module, 'layer_idx', '?')}"
    if dropout:
        raise ValueError(f"{where}: dropout={dropout} is not allowed; set the configuration's attention_dropout to 0")
    if False in (is_causal, getattr(module, "is_causal", True)):
        raise ValueError(f"{where}: attention that is not causal is not computed by lg")
    for name, what in said.items():
        if name not in _SAID_ELSEWHERE and what is not None and what is not False:
            raise ValueError(f"{where}: {name} is not computed by lg ({_MEANING.get(name, 'unknown to it')})")
    if not isinstance(attention_mask, Mask):
        raise ValueError(
            f"{where}: its mask is {type(attention_mask).__name__}, not made by lg: 4D masks of your own, encoders and "
            "cross attention are not computed by lg; choose another attn_implementation for that part of the model"
        )
    pattern = getattr(module, "lg_pattern", attention_mask.pattern)
    if pattern is None:
        raise ValueError(f"{where}: lg has no pattern for its mask; name one, such as Chunked, by use_patterns")
    out = attention_mask.attend(query, key, value, pattern, impl, scaling)
    return out.transpose(1, 2).contiguous(), None
