"""Layers ranked by what a task loses or gains: with one of them local, with one of them full, and greedily forward."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from lg.evaluation.probe.measure import Finding, Measure, Probe, difference, mean, ranked
from lg.evaluation.probe.tasks import Task

_UNIT = "nats a token"


@dataclass(frozen=True)
class OneOut(Measure):
    """What is lost when one layer is local and all others are full.

    Attributes:
        task: what it is lost of.
    """

    source = "leave one out"
    task: Task

    @property
    def name(self) -> str:
        return f"{self.task.name}_one_out"

    def passes(self, num_layers: int) -> float:
        return self.task.passes * (num_layers + 2)

    def run(self, probe: Probe) -> Finding:
        everything, _ = probe.ends(self.task)
        layers = set(range(probe.num_layers))
        without = probe.values(self.task, [layers - {layer} for layer in sorted(layers)])
        lost = [difference(everything, values) for values in without]
        return ranked([value for value, _ in lost], _UNIT, [error for _, error in lost])


@dataclass(frozen=True)
class OneIn(Measure):
    """What is gained when one layer is full and all others are local.

    Attributes:
        task: what it is gained of.
    """

    source = "one at a time"
    task: Task

    @property
    def name(self) -> str:
        return f"{self.task.name}_one_in"

    def passes(self, num_layers: int) -> float:
        return self.task.passes * (num_layers + 2)

    def run(self, probe: Probe) -> Finding:
        _, nothing = probe.ends(self.task)
        alone = probe.values(self.task, [{layer} for layer in range(probe.num_layers)])
        gained = [difference(values, nothing) for values in alone]
        return ranked([value for value, _ in gained], _UNIT, [error for _, error in gained])


@dataclass(frozen=True)
class Greedy(Measure):
    """Full layers taken one after another, each the one that gains most beside those taken before.

    The second step looks at pairs, since one layer of two that work together gains nothing by itself: the two best
    need not have the best one among them. Tried are the layers that stand highest with one out and with one in.

    A layer's score is what the set gained when it was added; a pair that does not have the best single layer is added
    at once, to none, and shares its gain evenly. So the scores of the last set's layers add up to its gain over none,
    and layers that are not in it have no score.

    Attributes:
        task: what is gained.
        most: full layers at which it ends.
        candidates: layers that are tried, at least ``most``.
    """

    source = "greedy forward selection, begun with pairs"
    task: Task
    most: int = 6
    candidates: int = 8

    @property
    def name(self) -> str:
        return f"{self.task.name}_greedy"

    def passes(self, num_layers: int) -> float:
        tried = min(max(self.candidates, self.most), num_layers)
        pairs = tried * (tried - 1) // 2
        more = sum(tried - taken for taken in range(2, min(self.most, num_layers)))
        return self.task.passes * (2 * num_layers + 2 + pairs + more)

    def run(self, probe: Probe) -> Finding:
        everything, nothing = probe.ends(self.task)
        orders = [
            sorted(range(probe.num_layers), key=lambda layer: -(finding.layers[layer] or 0.0))
            for finding in (OneOut(self.task).run(probe), OneIn(self.task).run(probe))
        ]
        # Alternately from the one and from the other, each layer once.
        tried = list(dict.fromkeys(itertools.chain.from_iterable(zip(*orders, strict=True))))
        tried = tried[: max(self.candidates, self.most)]
        sets = [self._best(probe, [{layer} for layer in range(probe.num_layers)])]
        while len(sets) < min(self.most, probe.num_layers):
            if len(sets) == 1:
                wider = [set(pair) for pair in itertools.combinations(tried, 2)]
            else:
                wider = [{*sets[-1], layer} for layer in tried if layer not in sets[-1]]
            sets.append(self._best(probe, wider))
        values = [mean(nothing), *probe.means(self.task, sets)]
        whole = mean(everything) - mean(nothing)
        layers: list[float | None] = [None] * probe.num_layers
        replaced = len(sets) > 1 and not set(sets[0]) < set(sets[1])
        before, low = set[int](), values[0]
        for chosen, high in list(zip(sets, values[1:], strict=True))[replaced:]:
            for layer in set(chosen) - before:
                layers[layer] = (high - low) / len(set(chosen) - before)
            before, low = set(chosen), high
        return Finding(layers, sets, [(value - values[0]) / whole for value in values[1:]], _UNIT)

    def _best(self, probe: Probe, sets: Sequence[Collection[int]]) -> list[int]:
        """The set that gains most; the first of equals."""
        values = probe.means(self.task, sets)
        return sorted(sets[values.index(max(values))])
