"""What a measure is: it ranks the layers of a decoder by what is lost when they see only the local pattern."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lg.attention import Pattern
from lg.evaluation.probe.notebook import Notebook
from lg.evaluation.probe.sight import restricted
from lg.evaluation.probe.tasks import Task
from lg.models.decoder import Decoder


class Unmeasurable(ValueError):
    """A measure would give a ranking of noise; says by what one sees that."""


@dataclass(frozen=True)
class Probe:
    """A decoder under examination.

    Attributes:
        decoder: in eval mode; it is changed while something is measured, and is afterwards what it was.
        local: what a restricted layer sees.
        notebook: what has been measured.
    """

    decoder: Decoder
    local: Pattern
    notebook: Notebook = field(default_factory=Notebook)

    @property
    def num_layers(self) -> int:
        """The decoder's depth."""
        return len(self.decoder.blocks)

    def values(self, task: Task, full: Collection[int]) -> list[float]:
        """What the task gives when only the layers ``full`` see what the decoder lets them, one value a text."""
        chosen = sorted(set(full))

        def measured() -> list[float]:
            with restricted(self.decoder, self.local, chosen):
                return task.values(self.decoder)

        values: list[float] = self.notebook.get(f"{task.name}: full {','.join(map(str, chosen)) or 'none'}", measured)
        return values

    def value(self, task: Task, full: Collection[int]) -> float:
        """The mean of `values`."""
        return mean(self.values(task, full))

    def ends(self, task: Task) -> tuple[list[float], list[float]]:
        """The task's values with all layers full and with none.

        Raises:
            Unmeasurable: if the two are so near that no layer could be told from another.
        """
        everything, nothing = self.values(task, range(self.num_layers)), self.values(task, ())
        gain, error = difference(everything, nothing)
        if gain < task.least or gain <= 2 * error:
            raise Unmeasurable(
                f"the model gains {mean(everything):.3f} nats a token on {task.name} with all layers full and "
                f"{mean(nothing):.3f} with none, {gain:.3f} more with a standard error of {error:.3f} over "
                f"{len(everything)} texts; {task.least:g} and twice the error are needed, so layers cannot be ranked "
                "by it"
            )
        return everything, nothing


@dataclass(frozen=True)
class Finding:
    """What a measure found.

    Attributes:
        layers: the score of each layer, more for one that needs its context more; None for one that was not tried.
        sets: for 1, 2, 3 ... full layers, which they should be, ascending.
        share: of the whole score, what each of these sets has.
        unit: of the scores.
        errors: the standard error of each layer's score over texts, where it is known.
        heads: the score of each KV head of each layer, where it is known.
    """

    layers: Sequence[float | None]
    sets: Sequence[Sequence[int]]
    share: Sequence[float]
    unit: str
    errors: Sequence[float] | None = None
    heads: Sequence[Sequence[float]] | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {name: value for name, value in vars(self).items() if value is not None}


class Measure(ABC):
    """One way to rank layers.

    Attributes:
        source: the paper, or in a word the idea, that it comes from.
    """

    source: ClassVar[str]

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is called in the scores."""

    @abstractmethod
    def passes(self, num_layers: int) -> float:
        """What it costs at most, in forward passes over the whole length, if nothing was measured before."""

    @abstractmethod
    def run(self, probe: Probe) -> Finding:
        """Measures.

        Raises:
            Unmeasurable: if it would rank noise.
        """


def ranked(
    layers: Sequence[float],
    unit: str,
    errors: Sequence[float] | None = None,
    heads: Sequence[Sequence[float]] | None = None,
) -> Finding:
    """The finding of a measure that judges each layer by itself: the best first, the first of equals first.

    A share is one of the sum of scores, of which those below 0 count as 0.
    """
    order = sorted(range(len(layers)), key=lambda layer: -layers[layer])
    gains = [max(layers[layer], 0.0) for layer in order]
    total = sum(gains) or 1.0
    share = [sum(gains[: n + 1]) / total for n in range(len(order))]
    return Finding(layers, [sorted(order[: n + 1]) for n in range(len(order))], share, unit, errors, heads)


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return sum(values) / len(values)


def difference(more: Sequence[float], less: Sequence[float]) -> tuple[float, float]:
    """The mean of the differences, text by text, and its standard error; 0 where there is only one text."""
    each = [a - b for a, b in zip(more, less, strict=True)]
    middle, n = mean(each), len(each)
    spread = sum((value - middle) ** 2 for value in each) / max(n - 1, 1)
    return middle, math.sqrt(spread / n)
