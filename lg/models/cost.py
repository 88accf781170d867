"""What a decoder costs at a length: work, memory of keys and values, and how much better than full attention it can be.

>>> from lg.attention import Causal, SinkWindow
>>> from lg.attention.schedule import layers
>>> from lg.models.presets import preset
>>> patterns = {"local": SinkWindow(window=1984, sinks=64), "full": Causal()}
>>> schedule = layers("10*local, 12*full, 10*local", 32, list(patterns))
>>> gain = compare(preset("llama-2-7b"), schedule, patterns, 131072)
>>> round(gain.training, 2), round(gain.kv_share, 3)
(1.78, 0.385)

Everything is of one document of that length, batch 1. Work is that of matrix products: norms, activations, rotation,
softmax and the optimizer are left out, and so is what activation checkpointing computes again. Figures are ceilings: a
speed-up is what there would be if every operation, or every byte, took as long as any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lg.attention import Causal, Pattern
from lg.attention.cost import AttentionCost
from lg.models.config import DecoderConfig

_BFLOAT16 = 2
"""Bytes of a value."""


@dataclass(frozen=True)
class LayerKind:
    """Layers that see alike.

    Attributes:
        name: their pattern's, in the schedule.
        num_layers: how many they are.
        attention: what one of them costs.
    """

    name: str
    num_layers: int
    attention: AttentionCost


@dataclass(frozen=True)
class ModelCost:
    """What a decoder costs on one document.

    Attributes:
        config: its shape.
        length: tokens of the document.
        kinds: its layers, by what they see, in the schedule's order.
    """

    config: DecoderConfig
    length: int
    kinds: tuple[LayerKind, ...]

    @property
    def block_weights(self) -> int:
        """Weights that a token is multiplied with in all blocks."""
        c = self.config
        attention = 2 * c.width * c.head_width * (c.num_heads + c.num_kv_heads)
        return c.num_layers * (attention + 3 * c.width * c.ffn_width)

    @property
    def head_weights(self) -> int:
        """Weights of the output head, tied or not. The embedding is looked up, not multiplied with."""
        return self.config.width * self.config.vocab_size

    @property
    def linear_flops(self) -> int:
        """Forward work of projections, MLPs and head: two a weight and token."""
        return 2 * (self.block_weights + self.head_weights) * self.length

    @property
    def attention_flops(self) -> int:
        """Forward work of attention, on the pairs seen."""
        return sum(kind.num_layers * kind.attention.flops.forward for kind in self.kinds)

    @property
    def attention_share(self) -> float:
        """The part of the forward work that is attention's."""
        return self.attention_flops / self.forward_flops

    @property
    def forward_flops(self) -> int:
        """Work of the forward pass, with logits of every token."""
        return self.linear_flops + self.attention_flops

    @property
    def training_flops(self) -> int:
        """Work of a training step: forward, and backward with two products for each of the forward's."""
        backward = sum(kind.num_layers * kind.attention.flops.backward for kind in self.kinds)
        return self.forward_flops + 2 * self.linear_flops + backward

    @property
    def prefill_flops(self) -> int:
        """Work of reading a prompt: forward, with logits of the last token only."""
        return self.forward_flops - 2 * self.head_weights * (self.length - 1)

    def kv_bytes(self, bytes_per_value: int = _BFLOAT16) -> int:
        """Memory of the keys and values held while the last token is computed."""
        return sum(kind.num_layers * kind.attention.kv_bytes(bytes_per_value) for kind in self.kinds)

    def decode_bytes(self, bytes_per_value: int = _BFLOAT16) -> int:
        """What is read to compute the last token: every weight that it is multiplied with, keys and values."""
        return bytes_per_value * (self.block_weights + self.head_weights) + self.kv_bytes(bytes_per_value)


@dataclass(frozen=True)
class Comparison:
    """A decoder beside the same one with full attention in every layer; ratios above 1 are in its favour.

    Attributes:
        hybrid: the decoder as scheduled.
        full: with `Causal` in every layer.
    """

    hybrid: ModelCost
    full: ModelCost

    @property
    def training(self) -> float:
        """Ceiling of the speed-up of a training step, by useful FLOPs."""
        return self.full.training_flops / self.hybrid.training_flops

    @property
    def prefill(self) -> float:
        """Ceiling of the speed-up of reading a prompt, by useful FLOPs."""
        return self.full.prefill_flops / self.hybrid.prefill_flops

    @property
    def decode(self) -> float:
        """Ceiling of the speed-up of writing a token, by bytes read in bfloat16."""
        return self.full.decode_bytes() / self.hybrid.decode_bytes()

    @property
    def kv_share(self) -> float:
        """Keys and values held, as a part of those of full attention."""
        return self.hybrid.kv_bytes() / self.full.kv_bytes()


def model_cost(
    config: DecoderConfig,
    schedule: Sequence[str],
    patterns: Mapping[str, object],
    length: int,
    attributes: Mapping[str, int] | None = None,
) -> ModelCost:
    """What a decoder costs on one document of ``length`` tokens.

    Args:
        config: its shape.
        schedule: the name of each layer's pattern, first layer first.
        patterns: the patterns by name.
        length: tokens of the document.
        attributes: the document's, where a predicate asks for some besides ``doc.length``.

    Raises:
        ValueError: naming a scheduled mixer that is no pattern, whose cost nobody knows; or as `AttentionCost` does.
    """
    kinds = []
    for name, pattern in scheduled(schedule, patterns).items():
        missing = [f"doc.{asked}" for asked in pattern.attributes if asked not in {"length", *(attributes or {})}]
        if missing:
            raise ValueError(
                f"model.init_args.patterns.{name}: {pattern} asks for {', '.join(missing)}, which each document has "
                "of its own; in Python, lg.models.cost.model_cost(..., attributes={...}) takes a value"
            )
        layer = AttentionCost(
            pattern, length, config.num_heads, config.num_kv_heads, config.head_width, attributes or {}
        )
        kinds.append(LayerKind(name, list(schedule).count(name), layer))
    return ModelCost(config, length, tuple(kinds))


def scheduled(schedule: Sequence[str], patterns: Mapping[str, object]) -> dict[str, Pattern]:
    """The patterns that some layer has, by name, in the schedule's order.

    Raises:
        ValueError: naming a scheduled mixer that is no pattern, whose cost nobody knows.
    """
    found = {}
    for name in dict.fromkeys(schedule):
        pattern = patterns[name]
        if not isinstance(pattern, Pattern):
            raise ValueError(
                f"model.init_args.patterns.{name}: {pattern} is no attention pattern, so what it costs is not known; "
                "a cost is counted only where every layer that is scheduled has a pattern"
            )
        found[name] = pattern
    return found


def compare(
    config: DecoderConfig,
    schedule: Sequence[str],
    patterns: Mapping[str, object],
    length: int,
    attributes: Mapping[str, int] | None = None,
) -> Comparison:
    """A decoder beside the same one with full attention; arguments and errors are those of `model_cost`."""
    full = model_cost(config, ["full"] * config.num_layers, {"full": Causal()}, length)
    return Comparison(model_cost(config, schedule, patterns, length, attributes), full)
