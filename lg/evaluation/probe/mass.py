"""Attention mass beyond the local pattern: how much weight queries give to keys that a restricted layer would not see.

Shapes: H query heads, G KV heads, L tokens, C queries of a chunk, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lg.attention import Documents, Pattern, Routed, Tiles
from lg.evaluation.probe.crew import Unit
from lg.evaluation.probe.measure import Finding, Measure, Probe, Unmeasurable, are_finite, mean, ranked
from lg.evaluation.probe.sight import LocalTiles, attending, attentions
from lg.models.block import Attend
from lg.models.decoder import Decoder

_CHUNK_WEIGHTS = 2**24  # weights that exist at a time


@dataclass(frozen=True)
class Mass(Measure):
    """The share of attention's weights that lies beyond the local pattern, mean over the queries that see so far.

    It tells where a layer looks, not whether it matters: a head may look far and change nothing.

    Attributes:
        texts: int64 [length + 1] each.
    """

    source = "attention weights, as the retrieval heads of Wu et al. 2024 (arXiv 2404.15574) are found by them"
    texts: Sequence[Tensor] = field(repr=False)

    @property
    def name(self) -> str:
        return "mass"

    def passes(self, num_layers: int) -> float:
        return len(self.texts)

    def run(self, probe: Probe) -> Finding:
        for layer, mixer in enumerate(attentions(probe.decoder)):
            if isinstance(mixer.pattern, Routed):
                raise Unmeasurable(
                    f"layer {layer} sees {mixer.pattern}, which chooses keys by content; mass can be told only of "
                    "patterns that do not"
                )
        each = probe.measured([_OfText(number, text) for number, text in enumerate(self.texts)])
        heads = [[mean(of_texts) for of_texts in zip(*of_layer, strict=True)] for of_layer in zip(*each, strict=True)]
        if not are_finite(heads):
            raise Unmeasurable("the model's attention weights, of which mass is the sum, are no finite numbers")
        return ranked([mean(of_layer) for of_layer in heads], "share of weights", heads=heads)


@dataclass(frozen=True)
class _OfText(Unit):
    """Mass beyond of each KV head of each layer, in one text."""

    number: int
    text: Tensor = field(repr=False)

    @property
    def name(self) -> str:
        return f"mass: text {self.number}"

    @torch.no_grad()
    def measure(self, decoder: Decoder, local: Pattern) -> list[list[float]]:
        found = list[list[float]]()
        near = LocalTiles(local, decoder.config.num_kv_heads)

        def looking(layer: int, attend: Attend) -> Attend:
            def attended(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, impl: str) -> Tensor:
                found.append(mass_beyond(q, k, tiles, near.beside(tiles)).tolist())
                return attend(q, k, v, tiles, impl)

            return attended

        tokens = self.text[None, :-1].to(decoder.embedding.weight.device)
        with attending(decoder, looking):
            decoder(tokens, Documents(tokens.shape[1]))
        return found


def mass_beyond(q: Tensor, k: Tensor, tiles: Tiles, local: Tiles, chunk: int | None = None) -> Tensor:
    """The weight that queries give to keys that ``tiles`` let them see and ``local`` would not: float32 [G].

    Mean over query heads of a KV head, and over queries that see any such key; 0 where none does.

    Args:
        q: [1, H, L, D].
        k: [1, G, L, D].
        tiles: what is seen.
        local: what would be.
        chunk: queries at a time; by default as many as keep their weights few.
    """
    heads, length, width = q.shape[1:]
    heads_kv = k.shape[1]
    chunk = chunk or max(_CHUNK_WEIGHTS // (heads * length), 1)
    key = torch.arange(length, device=q.device)
    head = torch.arange(heads_kv, device=q.device).view(-1, 1, 1)
    total, count = q.new_zeros(heads_kv, dtype=torch.float32), q.new_zeros(heads_kv, dtype=torch.float32)
    for first in range(0, length, chunk):
        query = torch.arange(first, min(first + chunk, length), device=q.device)[:, None]
        seen = tiles.seen(query, key, head).expand(heads_kv, -1, -1)
        beyond = seen & ~local.seen(query, key, head)
        asked = q[0, :, first : first + chunk].reshape(heads_kv, -1, width)
        scores = (asked @ k[0].mT).float() * width**-0.5
        weights = scores.view(heads_kv, -1, len(query), length).masked_fill(~seen[:, None], float("-inf")).softmax(-1)
        # A query that sees nothing has no weights: there, nothing is beyond either.
        lost = weights.masked_fill(~beyond[:, None], 0.0).sum(-1).mean(1)
        total += lost.sum(-1)
        count += beyond.any(-1).sum(-1)
    return total / count.clamp(min=1)
