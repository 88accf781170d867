"""What a model can do with a long context, as one number for each text: what restricted layers are judged by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lg.attention import Documents
from lg.evaluation.needle import Haystack, score
from lg.models.decoder import Decoder


class Task(ABC):
    """Something that is done better by a model that sees far.

    Attributes:
        name: what it is called in the scores.
        least: nats a token that full layers must gain beyond local ones, so that layers can be told apart by it.
    """

    name: ClassVar[str]
    least: ClassVar[float]

    @property
    @abstractmethod
    def passes(self) -> float:
        """Forward passes over the whole length that `values` takes."""

    @abstractmethod
    def values(self, decoder: Decoder) -> list[float]:
        """What the context is worth to the decoder in each text, in nats a token; more is better."""


@dataclass(frozen=True)
class Context(Task):
    """Context use: how much less the last tokens of a text cost when all of it is there than when only its end is.

    Attributes:
        texts: int64 [length + 1] each.
        targets: tokens at the end whose loss is taken, of the same tokens both times.
        short: tokens before the first of them, when only the end is there.
    """

    name = "context"
    least = 0.002
    texts: Sequence[Tensor] = field(repr=False)
    targets: int
    short: int

    @property
    def passes(self) -> float:
        length = len(self.texts[0]) - 1
        return len(self.texts) * (1 + (self.short + self.targets) / length)

    def values(self, decoder: Decoder) -> list[float]:
        ends = (text[-(self.short + self.targets + 1) :] for text in self.texts)
        return [
            self._loss(decoder, end) - self._loss(decoder, text) for text, end in zip(self.texts, ends, strict=True)
        ]

    @torch.no_grad()
    def _loss(self, decoder: Decoder, text: Tensor) -> float:
        """Mean cross-entropy of the last tokens."""
        tokens = text.to(decoder.embedding.weight.device)
        hidden = decoder(tokens[None, :-1], Documents(len(tokens) - 1))
        losses: Tensor = decoder.head(hidden[0, -self.targets :], tokens[-self.targets :], "none")
        return float(losses.double().mean())


@dataclass(frozen=True)
class Needle(Task):
    """Likelihood needles (`lg.evaluation.needle`): what a number told far back makes the answer likelier by.

    Attributes:
        hay: the questions, of one length, one for each depth.
    """

    name = "needle"
    least = 0.1
    hay: Haystack

    @property
    def passes(self) -> float:
        return len(self.hay.packed)

    def values(self, decoder: Decoder) -> list[float]:
        gain: list[float] = score(decoder, self.hay).gain.flatten().tolist()
        return gain
