"""What a measure is: it ranks the layers of a decoder by what is lost when they see only the local pattern."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lg.attention import Pattern
from lg.evaluation.probe.crew import Crew, Unit
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
        crew: who measures; by default this process alone.
    """

    decoder: Decoder
    local: Pattern
    notebook: Notebook = field(default_factory=Notebook)
    crew: Crew = field(default_factory=Crew)

    @property
    def num_layers(self) -> int:
        """The decoder's depth."""
        return len(self.decoder.blocks)

    def measured(self, units: Sequence[Unit]) -> list[Any]:
        """What each unit gives; those that are not known are measured, on all devices at a time.

        Raises:
            ValueError, RuntimeError: as `Crew.measure`.
        """
        unknown = {unit.name: unit for unit in units if unit.name not in self.notebook.units}
        self.crew.measure(list(unknown.values()), self.decoder, self.local, self.notebook)
        return [self.notebook.units[unit.name] for unit in units]

    def values(self, task: Task, sets: Iterable[Collection[int]]) -> list[list[float]]:
        """For each set, what the task gives when only these layers see what the decoder lets them; a value a text.

        Raises:
            Unmeasurable: if a value is no finite number.
        """
        units = [_Restricted(task, tuple(sorted(set(full)))) for full in sets]
        found = self.measured(units)
        for unit, values in zip(units, found, strict=True):
            if not all(map(math.isfinite, values)):
                raise Unmeasurable(
                    f"the model gives {mean(values)} nats a token on {task.name} with full layers "
                    f"{named(unit.full)}; only finite numbers can be compared"
                )
        return found

    def means(self, task: Task, sets: Iterable[Collection[int]]) -> list[float]:
        """The means of `values`."""
        return [mean(values) for values in self.values(task, sets)]

    def ends(self, task: Task) -> tuple[list[float], list[float]]:
        """The task's values with all layers full and with none.

        Raises:
            Unmeasurable: if the two are so near that no layer could be told from another, or as `values`.
        """
        everything, nothing = self.values(task, (range(self.num_layers), ()))
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
class _Restricted(Unit):
    """A task, while only the layers ``full`` see far."""

    task: Task
    full: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.task.name}: full {named(self.full)}"

    def measure(self, decoder: Decoder, local: Pattern) -> list[float]:
        with restricted(decoder, local, self.full):
            return self.task.values(decoder)


@dataclass(frozen=True)
class Finding:
    """What a measure found.

    Attributes:
        layers: the score of each layer, more for one that needs its context more; None for one that has none.
        sets: for 1, 2, 3 ... full layers, which they should be, ascending; None where that was not asked.
        share: of the whole score, what each of these sets has; None likewise.
        unit: of the scores.
        errors: the standard error of each layer's score over texts, where it is known.
        heads: the score of each KV head of each layer, where it is known.
    """

    layers: Sequence[float | None]
    sets: Sequence[Sequence[int] | None]
    share: Sequence[float | None]
    unit: str
    errors: Sequence[float] | None = None
    heads: Sequence[Sequence[float]] | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {name: value for name, value in vars(self).items() if value is not None}


def are_finite(heads: Sequence[Sequence[float]]) -> bool:
    """Whether the scores of all KV heads of all layers are finite numbers."""
    return all(map(math.isfinite, itertools.chain.from_iterable(heads)))


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
            Unmeasurable: if it would rank noise, or what are no finite numbers.
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


def named(layers: Collection[int]) -> str:
    """Layers in the name of a unit."""
    return ",".join(map(str, layers)) or "none"


def mean(values: Sequence[float]) -> float:
    """The mean."""
    return sum(values) / len(values)


def difference(more: Sequence[float], less: Sequence[float]) -> tuple[float, float]:
    """The mean of the differences, text by text, and its standard error; 0 where there is only one text."""
    each = [a - b for a, b in zip(more, less, strict=True)]
    middle, n = mean(each), len(each)
    spread = sum((value - middle) ** 2 for value in each) / max(n - 1, 1)
    return middle, math.sqrt(spread / n)
