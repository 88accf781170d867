"""A decoder of transformers whose layers each see what a pattern of theirs says; `generate` included.

lg puts this file beside the weights of a model that transformers has no class for; `trust_remote_code=True` loads it.
It needs torch and transformers only. Between the two marks stands what the layers of that model see.

Masks are dense, for attention "sdpa" and "eager": right everywhere, and no faster than full attention. Positions are
counted in each row's document, padding left out, so its first tokens are the sinks whichever side is padded. Where a
pattern is sinks and a window, the cache keeps no other keys.

Shapes: B batch, L tokens, Lq of them asking, H query heads, G KV heads.
"""
# mypy: ignore-errors

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaForCausalLM, LlamaModel


class Pattern(NamedTuple):
    """What a layer may see.

    Attributes:
        text: the predicate, as config.json has it.
        sees: the same, of the query's and the key's position in their document, and the number of the KV head.
        kept: sinks and window, if it is those.
    """

    text: str
    sees: Callable[[Tensor, Tensor, Tensor], Tensor]
    kept: tuple[int, int] | None = None


# <patterns>
PATTERNS = (Pattern("k <= q", lambda q, k, h: k <= q),)
LAYERS = (0,)
# </patterns>

_SPARE = 64  # Keys that may be kept longer than needed, so that not every token moves all others.


class LgConfig(LlamaConfig):
    """The family's, under a name of its own, so that no layer sees anything else where this file is not read."""

    model_type = "lg_llama"


class LgModel(LlamaModel):
    """The family's, with a mask for each pattern."""

    config_class = LgConfig

    def __init__(self, config: LgConfig) -> None:
        super().__init__(config)
        told = [PATTERNS[n].text for n in LAYERS]
        if config.lg["sees"] != told or config.num_hidden_layers != len(LAYERS):
            raise ValueError(f"config.json: lg.sees: {config.lg['sees']} is not what modeling_lg.py computes, {told}")
        for layer in self.layers:
            layer.register_forward_pre_hook(_with_own_mask, with_kwargs=True)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the family's.

        Raises:
            ValueError: for another attention than sdpa and eager, another cache than a `DynamicCache`, or a mask that
                is not [B, L].
        """
        attention = self.config._attn_implementation
        if attention not in ("eager", "sdpa"):
            raise ValueError(
                f"attn_implementation={attention!r} is not allowed; patterns are computed by sdpa or eager"
            )
        embedded = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.use_cache
        if self.gradient_checkpointing and self.training:
            use_cache = False
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        caches = [] if past_key_values is None else _of_layers(past_key_values)
        before = caches[0].get_seq_length() if caches else 0
        tokens = _Tokens.read(attention_mask, position_ids, before, embedded)
        if position_ids is None:
            position_ids = tokens.position[:, before:].long()
        heads = self.config.num_key_value_heads
        masks = {}
        for n, pattern in enumerate(PATTERNS):
            columns = torch.arange(tokens.position.shape[1], device=embedded.device)
            own = [caches[layer] for layer, its in enumerate(LAYERS) if its == n and caches]
            for cache in own:
                columns = cache.ask(pattern, tokens) if isinstance(cache, _Kept) else columns
            seen = tokens.seen(pattern, columns, before, heads, attention)
            if seen is not None and seen.shape[1] > 1:
                seen = seen.repeat_interleave(self.config.num_attention_heads // heads, 1)
            masks[n] = seen if attention == "sdpa" else _added(seen, embedded.dtype)
        # The family's own mask is made of none: one that has 4 dimensions is handed on as it is.
        none = embedded.new_zeros(1, 1, 1, 1)
        return super().forward(
            attention_mask=none,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=embedded,
            use_cache=use_cache,
            lg_masks=[masks[n] for n in LAYERS],
            **kwargs,
        )


class LgForCausalLM(LlamaForCausalLM):
    """The family's, on an `LgModel`."""

    config_class = LgConfig
    _supports_flash_attn = False
    _supports_flex_attn = False

    def __init__(self, config: LgConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)
        self.model = LgModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


def _with_own_mask(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Hands a layer its mask, in place of that which all share."""
    kwargs = dict(kwargs)
    masks = kwargs.pop("lg_masks")
    return args, {**kwargs, "attention_mask": masks[layer.self_attn.layer_idx]}


class _Tokens(NamedTuple):
    """The tokens of a pass, and those before it.

    Attributes:
        position: of each in its document, int32 [B or 1, L].
        document: its number, int64 [B, L]; None if a row is one document.
        real: whether it is no padding, bool [B, L]; None if all are.
    """

    position: Tensor
    document: Tensor | None
    real: Tensor | None

    @classmethod
    def read(cls, attention_mask: Tensor | None, position_ids: Tensor | None, before: int, embedded: Tensor) -> _Tokens:
        rows, length = embedded.shape[0], before + embedded.shape[1]
        index = torch.arange(length, device=embedded.device, dtype=torch.int32)[None]
        if attention_mask is not None:
            if tuple(attention_mask.shape) != (rows, length):
                raise ValueError(
                    f"attention_mask: {list(attention_mask.shape)} is not allowed; it must be [{rows}, {length}], the "
                    "tokens in the cache and those of this pass: static caches and masks of your own are not computed"
                )
            real = attention_mask.to(embedded.device).bool()
            if bool(real.all()):
                return cls(index, None, None)
            return cls((real.cumsum(1, dtype=torch.int32) - 1).clamp(min=0), None, real)
        # As transformers has it: packed rows are told by positions that begin again, without a mask and a cache.
        if position_ids is not None and not before:
            begins = torch.ones(position_ids.shape, dtype=torch.bool, device=embedded.device)
            begins[:, 1:] = position_ids.diff(dim=1) != 1
            if bool(begins[:, 1:].any()):
                starts = torch.where(begins, index, 0).cummax(1).values
                return cls(index - starts, begins.cumsum(1), None)
        return cls(index, None, None)

    def seen(self, pattern: Pattern, columns: Tensor, before: int, heads: int, attention: str) -> Tensor | None:
        """Which of some keys each query sees: bool [B or 1, G or 1, Lq, keys]; None for all up to its own.

        Raises:
            ValueError: if a query sees none, which eager attention does not compute.
        """
        queries = torch.arange(before, self.position.shape[1], device=columns.device)
        plain = self.document is None and self.real is None and columns.numel() == self.position.shape[1]
        if pattern.text == "k <= q" and plain and attention == "sdpa" and (not before or queries.numel() == 1):
            return None
        k = self.position[:, columns][:, None, None]
        h = torch.arange(heads, device=columns.device, dtype=torch.int32)[:, None, None]
        parts = []
        # In parts, as positions are larger than their answers.
        for rows in queries.split(1024):
            q = self.position[:, rows][:, None, :, None]
            part = (k <= q) & pattern.sees(q, k, h)
            if self.document is not None:
                part = part & (self.document[:, rows][:, None, :, None] == self.document[:, columns][:, None, None])
            if self.real is not None:
                # Padding sees itself: scores of which none is seen may be no numbers.
                asks, there = self.real[:, rows][:, None, :, None], self.real[:, columns][:, None, None]
                part = torch.where(asks, part & there, rows[:, None] == columns)
            parts.append(part)
        seen = torch.cat(parts, 2)
        if attention == "eager" and not bool(seen.any(-1).all()):
            raise ValueError(
                f"attn_implementation='eager' is not allowed; a query sees no key at all by {pattern.text}"
            )
        return seen


class _Kept(DynamicLayer):
    """The keys of a layer that sees sinks and a window: what no later query may see is let go.

    Attributes:
        columns: which tokens are kept, int64 [keys].
    """

    is_croppable = False

    def __init__(self) -> None:
        super().__init__()
        self.num_tokens = 0
        self.columns: Tensor | None = None
        self._keep: Tensor | None = None

    def ask(self, pattern: Pattern, tokens: _Tokens) -> Tensor:
        """Which tokens the next pass computes with; and settles which of them it leaves."""
        now = tokens.position.shape[1]
        new = torch.arange(self.num_tokens, now, device=tokens.position.device)
        columns = new if self.columns is None else torch.cat((self.columns, new))
        sinks, window = pattern.kept
        self._keep = None
        self.columns = columns
        if columns.numel() >= sinks + window + _SPARE:
            k = tokens.position[:, columns]
            later = (k < sinks) | (tokens.position[:, -1:] + 1 - k < window)
            if tokens.real is not None:
                later = later & tokens.real[:, columns]
            self._keep = later.any(0).nonzero()[:, 0]
            self.columns = columns[self._keep]
        return columns

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        self.num_tokens += key_states.shape[-2]
        if self._keep is not None:
            self.keys, self.values = keys[:, :, self._keep], values[:, :, self._keep]
        return keys, values

    def get_seq_length(self, *args: Any) -> int:
        return self.num_tokens

    def crop(self, *args: Any) -> None:
        raise ValueError(
            "this model's cache lets keys go, so it cannot be cut back: assisted generation is not allowed"
        )

    def reset(self) -> None:
        super().reset()
        self.num_tokens, self.columns, self._keep = 0, None, None


def _of_layers(cache: DynamicCache) -> list[DynamicLayer]:
    """The layers of a cache; of one that is empty, those that may let keys go are made so."""
    layers = cache.layers
    for layer, n in enumerate(LAYERS):
        if layer == len(layers):
            layers.append(DynamicLayer())
        if type(layers[layer]) not in (DynamicLayer, _Kept):
            raise ValueError(
                f"past_key_values: {type(layers[layer]).__name__} is not allowed; patterns need a DynamicCache"
            )
        if PATTERNS[n].kept and type(layers[layer]) is DynamicLayer and not layers[layer].get_seq_length():
            layers[layer] = _Kept()
    return layers


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What eager attention adds to scores."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
