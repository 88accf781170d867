"""A decoder of the Llama family whose layers may see different parts of the context. Single-device code.

>>> import torch
>>> from lg.attention import Causal, Documents, SinkWindow
>>> from lg.models.presets import preset
>>> decoder = Decoder(preset("tiny"), [SinkWindow(window=256)] * 3 + [Causal()] * 3)
>>> decoder.logits(torch.randint(256, (1, 100)), Documents(100)).shape
torch.Size([1, 100, 256])

Shapes: B rows, L tokens of a row, N = B * L tokens, W model width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor, nn

from lg.attention import Documents, Pattern
from lg.attention.part import Held
from lg.models.block import Block, Layout, MixerSpec, build_mixer
from lg.models.config import DecoderConfig
from lg.models.layers import RMSNorm
from lg.models.loss import LMHead

Fill = Callable[[nn.Module, str, DecoderConfig], None]
"""Gives a part of a decoder of this shape its first weights; the name is the part's: "embedding", "blocks.3"."""

Place = Callable[[nn.Module], object]
"""What is done to a part of a decoder once it has its weights, and before the next part is made."""


class Decoder(nn.Module):
    """Embedding, one block a layer, norm, head.

    A batch is one packed sequence: its rows are laid end to end, and each row begins a document.

    Parts are made in that order, and each has its first weights before the next one exists. So one generator gives the
    same weights wherever parts are placed meanwhile.

    Args:
        config: the shape.
        mixers: what each layer's mixer is made from: a pattern, for attention, or another `MixerSpec`.
        attention: the implementation that `attend` is asked for.
        place: called with each part that shares no weight with another: blocks, and an embedding and a head that are
            not tied. What it leaves in memory is all that is there when the next part is made.
        fill: what gives each part its weights; by default they are drawn.
    """

    def __init__(
        self,
        config: DecoderConfig,
        mixers: Sequence[Pattern | MixerSpec],
        attention: str = "auto",
        place: Place | None = None,
        fill: Fill | None = None,
    ) -> None:
        super().__init__()
        assert len(mixers) == config.num_layers
        place, fill = place or _leave, fill or draw
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        fill(self.embedding, "embedding", config)
        if not config.tied_embeddings:
            place(self.embedding)
        self.blocks = nn.ModuleList()
        for layer, spec in enumerate(mixers):
            block = Block(config, build_mixer(spec, config, layer, attention))
            fill(block, f"blocks.{layer}", config)
            place(block)
            self.blocks.append(block)
        self.norm = RMSNorm(config.width, config.norm_eps)
        fill(self.norm, "norm", config)
        if config.tied_embeddings:
            self.head = LMHead(config.width, config.vocab_size, cast(nn.Parameter, self.embedding.weight))
        else:
            self.head = LMHead(config.width, config.vocab_size)
            fill(self.head, "head", config)
            place(self.head)

    def forward(
        self, tokens: Tensor, documents: Documents, held: Held | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Final hidden states [B, L, W] of tokens [B, L]; ``documents`` lie in the B * L tokens laid end to end.

        With ``held``, tokens are those of the sequence that are held here, and documents lie in the whole sequence.
        With ``positions`` [B, L], which may be fractions, rotary angles are theirs instead of those of places in the
        documents; what layers see, and a `DynamicNTK` scaling, go by places all the same.
        """
        assert tokens.numel() == (documents.length if held is None else len(held.tokens))
        assert positions is None or positions.shape == tokens.shape
        layout = Layout(documents, self.config, tokens.device, held, None if positions is None else positions.flatten())
        x = self.embedding(tokens.flatten())
        for block in self.blocks:
            x = block(x, layout)
        hidden: Tensor = self.norm(x)
        return hidden.view(*tokens.shape, -1)

    def logits(
        self, tokens: Tensor, documents: Documents, held: Held | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Logits [B, L, V] of the token after each."""
        out: Tensor = self.head(self.forward(tokens, documents, held, positions))
        return out

    def logits_at(self, places: Tensor, tokens: Tensor, documents: Documents) -> Tensor:
        """Logits [P, V] of the token after each of ``places`` [P], counted in the B * L tokens laid end to end."""
        out: Tensor = self.head(self.forward(tokens, documents).flatten(0, 1)[places])
        return out

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        documents: Documents,
        held: Held | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Summed cross-entropy, in nats, over targets [B, L] that are not -100. Whole logits never exist."""
        out: Tensor = self.head(self.forward(tokens, documents, held, positions), targets)
        return out

    def token_losses(
        self,
        tokens: Tensor,
        targets: Tensor,
        documents: Documents,
        held: Held | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy, in nats, of each of targets [B, L], 0 where it is -100; to look at, without a gradient."""
        out: Tensor = self.head(self.forward(tokens, documents, held, positions), targets, "none")
        return out


def draw(part: nn.Module, name: str, config: DecoderConfig) -> None:
    """First weights of one part: normal of variance ``2 / (5 * width)``, less where a layer writes to the stream.

    The variance is that of Nguyen and Salazar 2019 (arXiv 1910.05895, section 2.2); the 2 * num_layers writes shrink by
    the root of their number (Radford et al. 2019, GPT-2, section 2.3). Biases are zero; norms, and whatever else a
    mixer has, stay as their constructors leave them.
    """
    std = math.sqrt(2 / (5 * config.width))
    for inner, module in part.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding | LMHead):
            writes = inner.endswith(("o_proj", "down_proj"))
            nn.init.normal_(module.weight, std=std / math.sqrt(2 * config.num_layers) if writes else std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def _leave(part: nn.Module) -> None:
    """Leaves the part where it was made."""
