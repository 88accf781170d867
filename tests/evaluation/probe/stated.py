"""A task whose values are stated, for measures that only compare them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lg.attention import Causal
from lg.evaluation.probe import Task
from lg.evaluation.probe.sight import attentions
from lg.models.decoder import Decoder


@dataclass(frozen=True)
class Table(Task):
    """What a function says of the layers that are full; trained or not."""

    worth: Callable[[frozenset[int]], float]
    name = "table"
    least = 0.01
    passes = 1.0

    def values(self, decoder: Decoder) -> list[float]:
        full = frozenset(layer for layer, mixer in enumerate(attentions(decoder)) if mixer.pattern == Causal())
        return [self.worth(full)] * 3
