"""What a model can do with a long context, as one number for each text: what restricted layers are judged by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from lg.evaluation.context_use import losses_by_context
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
        # One token more than `short` goes before the targets, as one more than the length does before all of them.
        contexts = self.short + 1, len(self.texts[0]) - self.targets
        little, all_of_it = losses_by_context(decoder, self.texts, self.targets, contexts).unbind(1)
        gain: list[float] = (little - all_of_it).tolist()
        return gain


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
