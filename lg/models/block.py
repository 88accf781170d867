"""One layer of a decoder: a mixer, which lets tokens see each other, and an MLP.

A layer is three steps: `pre` (norm, projections, rotation), `mix` (the mixer's heart: attention) and `post` (output
projection, MLP). So `pre` and `post` can be compiled and recomputed while `mix` is neither, and collectives of later
parallelism stay between them.

Shapes: N tokens, W model width, H query heads, G KV heads, D head width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lg.attention import Documents, Pattern, Tiles, attend
from lg.attention.part import Held, Part
from lg.models.config import DecoderConfig
from lg.models.layers import RMSNorm, SwiGLU
from lg.models.rope import rotary_angles, rotate

Attend = Callable[[Tensor, Tensor, Tensor, Tiles, str], Tensor]
"""From q [1, H, N, D], k and v [1, G, N, D], tiles and an implementation's name to attention [1, H, N, D]."""


class Layout:
    """What all layers share in one forward pass: documents, rotary angles, and each pattern's tiles.

    Attributes:
        documents: where documents lie in the N tokens.
        held: which tokens of the sequence these are; None if all.
        angles: cosine and sine of each token's position in its document, or of those given, float32 [N, D/2].
        no_angles: the same for layers that do not rotate: ones and zeros.
    """

    def __init__(
        self,
        documents: Documents,
        config: DecoderConfig,
        device: torch.device,
        held: Held | None = None,
        positions: Tensor | None = None,
    ) -> None:
        self.documents = documents
        self.held = held
        if positions is None:
            positions = documents.positions if held is None else documents.positions[held.tokens]
        self.angles = rotary_angles(
            positions.to(device), config.head_width, config.rope_theta, config.rope_scaling, documents.longest
        )
        cos, sin = self.angles
        # Not None: one compiled graph serves all layers.
        self.no_angles = (torch.ones_like(cos), torch.zeros_like(sin)) if config.no_rope_layers else None
        self._num_kv_heads = config.num_kv_heads
        self._tiles: dict[Pattern, Tiles] = {}

    def tiles(self, pattern: Pattern) -> Tiles:
        """The pattern on these documents: built by the first layer that asks, shared by the others.

        Of a sequence that ranks share, those of the queries that are held against all keys.
        """
        if pattern not in self._tiles:
            tiles = pattern.tiles(self.documents, self._num_kv_heads)
            if self.held is not None:
                tiles = Part(tiles, self.held.ranges, tiles.key_ranges, self.held)
            self._tiles[pattern] = tiles
        return self._tiles[pattern]


class Mixer(nn.Module, ABC):
    """How tokens of a layer see each other. Attention is one; a recurrent state would be another.

    Attributes:
        rotates: whether `project` is handed the angles of positions, or those of no rotation.
    """

    rotates = True

    @abstractmethod
    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        """From the normed stream [N, W] to what `mix` takes; part of `pre`."""

    @abstractmethod
    def mix(self, inputs: tuple[Tensor, ...], layout: Layout) -> Tensor:
        """What each token gathers from those that it sees: [N, features]."""

    @abstractmethod
    def output(self, mixed: Tensor) -> Tensor:
        """From `mix` back to the stream [N, W]; part of `post`."""


class MixerSpec(Protocol):
    """Anything besides a `Pattern` that a schedule may name: it builds the mixer of one layer."""

    def build(self, config: DecoderConfig, layer: int) -> Mixer:
        """The mixer of layer number ``layer``."""


class Attention(Mixer):
    """Attention under a pattern, with rotary positions and grouped KV heads.

    Args:
        config: the decoder's shape.
        pattern: what is seen in training.
        impl: the implementation that `attend` is asked for.
        rotates: whether queries and keys are rotated.
        evaluated: what is seen in eval mode; None for the same.

    Attributes:
        attend: what computes it; parallelism puts another in its place, which fetches keys from other ranks.
    """

    def __init__(
        self,
        config: DecoderConfig,
        pattern: Pattern,
        impl: str = "auto",
        rotates: bool = True,
        evaluated: Pattern | None = None,
    ) -> None:
        super().__init__()
        self._trained = pattern
        self._evaluated = evaluated or pattern
        self.rotates = rotates
        self.impl = impl
        self.attend: Attend = attend
        self.head_width = config.head_width
        width_q, width_kv = config.num_heads * config.head_width, config.num_kv_heads * config.head_width
        self.q_proj = nn.Linear(config.width, width_q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.width, width_kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.width, width_kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(width_q, config.width, bias=False)
        self.q_norm = RMSNorm(config.head_width, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_width, config.norm_eps) if config.qk_norm else nn.Identity()

    @property
    def pattern(self) -> Pattern:
        """What is seen now: in training mode, or in eval mode."""
        return self._trained if self.training else self._evaluated

    @contextmanager
    def seeing(self, pattern: Pattern) -> Iterator[None]:
        """Inside it, tokens see the pattern in either mode; afterwards, what they saw before."""
        before = self._trained, self._evaluated
        self._trained = self._evaluated = pattern
        try:
            yield
        finally:
            self._trained, self._evaluated = before

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        """Rotated q [1, H, N, D] and k, and v [1, G, N, D], all laid out token by token.

        So is what attention gives then, and the output projection takes it as it is: a copy by tokens would be kept
        for the backward pass beside it.
        """
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_width)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        cos, sin = cos[:, None], sin[:, None]
        by_token = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin), v
        return tuple(y.transpose(0, 1).unsqueeze(0) for y in by_token)

    def mix(self, inputs: tuple[Tensor, ...], layout: Layout) -> Tensor:
        q, k, v = inputs
        out = self.attend(q, k, v, layout.tiles(self.pattern), self.impl)
        return out.squeeze(0).transpose(0, 1).flatten(1)

    def output(self, mixed: Tensor) -> Tensor:
        out: Tensor = self.o_proj(mixed)
        return out

    def extra_repr(self) -> str:
        other = "" if self._evaluated == self._trained else f", evaluated={self._evaluated}"
        return f"{self._trained}{other}, impl={self.impl}"


@dataclass(frozen=True)
class InTraining:
    """A `MixerSpec`: attention under one pattern in training and under another in eval mode.

    Attributes:
        pattern: what is seen in training.
        evaluated: what is seen in eval mode.
        impl: the implementation that `lg.attention.attend` is asked for.
    """

    pattern: Pattern
    evaluated: Pattern
    impl: str = "auto"

    def build(self, config: DecoderConfig, layer: int) -> Mixer:
        """The attention of layer number ``layer``."""
        return Attention(config, self.pattern, self.impl, layer not in config.no_rope_layers, self.evaluated)


class Block(nn.Module):
    """A pre-norm layer: ``x + mixer(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, config: DecoderConfig, mixer: Mixer) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(config.width, config.norm_eps)
        self.mixer = mixer
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = SwiGLU(config.width, config.ffn_width)

    def pre(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        """Norm, projections, rotation."""
        return self.mixer.project(self.mixer_norm(x), cos, sin)

    def post(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Output projection and MLP, each added to the stream [N, W]."""
        x = x + self.mixer.output(mixed)
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """The stream [N, W] after this layer."""
        angles = layout.angles if self.mixer.rotates else layout.no_angles
        assert angles is not None
        return self.post(x, self.mixer.mix(self.pre(x, *angles), layout))


def build_mixer(spec: Pattern | MixerSpec, config: DecoderConfig, layer: int, impl: str) -> Mixer:
    """The mixer that a schedule's entry stands for."""
    if isinstance(spec, Pattern):
        return Attention(config, spec, impl, layer not in config.no_rope_layers)
    return spec.build(config, layer)


def in_both_modes(training: Pattern | MixerSpec, evaluated: Pattern | MixerSpec, impl: str) -> Pattern | MixerSpec:
    """The schedule's entry for a layer that has one pattern in training and perhaps another in eval mode."""
    if not isinstance(training, Pattern) or not isinstance(evaluated, Pattern) or training == evaluated:
        return training
    return InTraining(training, evaluated, impl)


def seen_in_use(
    patterns: Mapping[str, object], names: Sequence[str], evaluated: Mapping[str, str]
) -> tuple[Pattern, ...]:
    """What each layer of a model sees when it is used, which is what it sees in eval mode.

    Args:
        patterns: those of the model, by name.
        names: of each layer's pattern in training.
        evaluated: for such names, that of the pattern in eval mode instead.

    Raises:
        ValueError: if a layer does not attend, so that no pattern says what it sees.
    """
    sees = []
    for name in (evaluated.get(name, name) for name in names):
        pattern = patterns[name]
        if not isinstance(pattern, Pattern):
            raise ValueError(
                f"model.init_args.patterns.{name}: {pattern} is no pattern, and its layers do not attend; layers that "
                "do are needed here"
            )
        sees.append(pattern)
    return tuple(sees)


def check_evaluated(evaluated: Mapping[str, str], patterns: Mapping[str, object]) -> None:
    """Holds the names of patterns in training, and of those in eval mode instead, to the patterns there are.

    Raises:
        ValueError: naming the YAML key.
    """
    known = [name for name, pattern in patterns.items() if isinstance(pattern, Pattern)]
    for name, other in evaluated.items():
        for given, key in ((name, ""), (other, f".{name}")):
            if given not in known:
                raise ValueError(
                    f"model.init_args.evaluated{key}: {given!r} is no pattern; allowed are {', '.join(known)} "
                    "(model.init_args.patterns)"
                )
