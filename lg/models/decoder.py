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
from collections.abc import Sequence

from torch import Tensor, nn

from lg.attention import Documents, Pattern
from lg.attention.part import Held
from lg.models.block import Block, Layout, MixerSpec, build_mixer
from lg.models.config import DecoderConfig
from lg.models.layers import RMSNorm
from lg.models.loss import LMHead


class Decoder(nn.Module):
    """Embedding, one block a layer, norm, head.

    A batch is one packed sequence: its rows are laid end to end, and each row begins a document.

    Args:
        config: the shape.
        mixers: what each layer's mixer is made from: a pattern, for attention, or another `MixerSpec`.
        attention: the implementation that `attend` is asked for.
    """

    def __init__(self, config: DecoderConfig, mixers: Sequence[Pattern | MixerSpec], attention: str = "auto") -> None:
        super().__init__()
        assert len(mixers) == config.num_layers
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(
            Block(config, build_mixer(spec, config, layer, attention)) for layer, spec in enumerate(mixers)
        )
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = LMHead(config.width, config.vocab_size)
        if config.tied_embeddings:
            self.head.weight = self.embedding.weight  # type: ignore[assignment]  # torch's stub
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights of variance ``2 / (5 * width)``, less where a layer writes to the stream, zero biases.

        The variance is that of Nguyen and Salazar 2019 (arXiv 1910.05895, section 2.2); the 2 * num_layers writes
        shrink by the root of their number (Radford et al. 2019, GPT-2, section 2.3).
        """
        std = math.sqrt(2 / (5 * self.config.width))
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding | LMHead):
                writes = name.endswith(("o_proj", "down_proj"))
                nn.init.normal_(module.weight, std=std / math.sqrt(2 * self.config.num_layers) if writes else std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
            elif isinstance(module, RMSNorm):
                module.reset_parameters()

    def forward(self, tokens: Tensor, documents: Documents, held: Held | None = None) -> Tensor:
        """Final hidden states [B, L, W] of tokens [B, L]; ``documents`` lie in the B * L tokens laid end to end.

        With ``held``, tokens are those of the sequence that are held here, and documents lie in the whole sequence.
        """
        assert tokens.numel() == (documents.length if held is None else len(held.tokens))
        layout = Layout(documents, self.config, tokens.device, held)
        x = self.embedding(tokens.flatten())
        for block in self.blocks:
            x = block(x, layout)
        hidden: Tensor = self.norm(x)
        return hidden.view(*tokens.shape, -1)

    def logits(self, tokens: Tensor, documents: Documents, held: Held | None = None) -> Tensor:
        """Logits [B, L, V] of the token after each."""
        out: Tensor = self.head(self.forward(tokens, documents, held))
        return out

    def logits_at(self, places: Tensor, tokens: Tensor, documents: Documents) -> Tensor:
        """Logits [P, V] of the token after each of ``places`` [P], counted in the B * L tokens laid end to end."""
        out: Tensor = self.head(self.forward(tokens, documents).flatten(0, 1)[places])
        return out

    def loss(self, tokens: Tensor, targets: Tensor, documents: Documents, held: Held | None = None) -> Tensor:
        """Summed cross-entropy, in nats, over targets [B, L] that are not -100. Whole logits never exist."""
        out: Tensor = self.head(self.forward(tokens, documents, held), targets)
        return out

    def token_losses(self, tokens: Tensor, targets: Tensor, documents: Documents, held: Held | None = None) -> Tensor:
        """Cross-entropy, in nats, of each of targets [B, L], 0 where it is -100; to look at, without a gradient."""
        out: Tensor = self.head(self.forward(tokens, documents, held), targets, "none")
        return out
