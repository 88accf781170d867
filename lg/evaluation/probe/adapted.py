"""Sets of full layers, trained a little before they are judged: the better half goes on, for twice as long.

Shapes: L tokens of a row.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lg.attention import Documents, Pattern
from lg.evaluation.probe.crew import Unit
from lg.evaluation.probe.gates import ramp
from lg.evaluation.probe.measure import Finding, Measure, Probe, Unmeasurable, mean, named
from lg.evaluation.probe.sight import restricted
from lg.evaluation.probe.tasks import Task
from lg.models.decoder import Decoder

_BETAS = 0.9, 0.95
_NORM = 1.0  # gradients are clipped at it
_OF_TRAINING = 3  # forward passes that a step costs


@dataclass(frozen=True)
class Adapted(Measure):
    """Successive halving: every set is trained for a few steps and judged by the task, then the better half for twice
    as many, until one is left. Beside the last two, all layers full and none are trained for as long, for its share.

    Each training begins with the weights as they are, with which the decoder is left: so a set is a unit that hangs on
    no other, where training on from the rung before would save at most half of the steps. A layer's score is the mean,
    in the first rung, over the sets that have it. A set whose training diverges goes no further, and counts nowhere.

    Attributes:
        task: what sets are judged by.
        sets: at least two, all of one size; of equals the first is taken.
        rows: int64 [L + 1] each, which the task does not read; a step trains on one, one after another.
        steps: of AdamW in the first rung. The learning rate rises over a fifth of the steps and falls over another.
        learning_rate: its peak.
    """

    source = "successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943, section 3)"
    task: Task
    sets: Sequence[Sequence[int]]
    rows: Sequence[Tensor] = field(repr=False)
    steps: int = 16
    learning_rate: float = 1e-4

    @property
    def name(self) -> str:
        return f"{self.task.name}_adapted"

    @property
    def rungs(self) -> list[tuple[int, int]]:
        """How many sets are trained in each rung, and for how many steps."""
        return rungs(len(self.sets), self.steps)

    def passes(self, num_layers: int) -> float:
        trained = [*self.rungs, (2, self.rungs[-1][1])] if self.rungs else []
        return sum(sets * (self.task.passes + _OF_TRAINING * steps) for sets, steps in trained) + 2 * self.task.passes

    def run(self, probe: Probe) -> Finding:
        if len(self.sets) < 2:
            raise Unmeasurable(
                f"there is only one set of {len(self.sets[0])} layers, so nothing is to be chosen; more --sets or "
                "fewer --full_layers are needed"
            )
        probe.ends(self.task)
        last = self.rungs[-1][1]
        left, first, values = list(self.sets), list[float](), list[float]()
        for _, steps in self.rungs:
            if values:
                order = sorted(range(len(left)), key=lambda number: -values[number])
                left = [left[number] for number in order[: (len(left) + 1) // 2] if values[number] > -math.inf]
            beside = [range(probe.num_layers), ()] if steps == last else []
            values = self._means(probe, [*left, *beside], steps)
            first = first or values[: len(left)]
            if max(values[: len(left)]) == -math.inf:
                raise Unmeasurable(
                    f"all {len(left)} sets diverge in {steps} steps on {self.task.name}; a smaller --adapt_rate than "
                    f"{self.learning_rate:g} is needed"
                )
        *of_left, everything, nothing = values
        if min(everything, nothing) == -math.inf:
            how = "no" if nothing == -math.inf else "all"
            raise Unmeasurable(
                f"the model diverges in {last} steps on {self.task.name} with {how} layers full; "
                f"a smaller --adapt_rate than {self.learning_rate:g} is needed"
            )
        best = left[of_left.index(max(of_left))]
        if min(everything, max(of_left)) - nothing < self.task.least:
            raise Unmeasurable(
                f"after {last} steps the model gains {everything:.3f} nats a token on {self.task.name} with all layers "
                f"full, {nothing:.3f} with none, and {max(of_left):.3f} with the best of {len(self.sets)} sets; "
                f"{self.task.least:g} more than with none is needed, so sets cannot be told apart by it"
            )
        layers: list[float | None] = [None] * probe.num_layers
        for layer in range(probe.num_layers):
            having = [value for chosen, value in zip(self.sets, first, strict=True) if layer in chosen]
            if having := [value for value in having if value > -math.inf]:
                layers[layer] = mean(having)
        smaller = [None] * (len(best) - 1)
        share = (max(of_left) - nothing) / (everything - nothing)
        return Finding(layers, [*smaller, sorted(best)], [*smaller, share], "nats a token")

    def _means(self, probe: Probe, sets: Sequence[Sequence[int]], steps: int) -> list[float]:
        """The task's mean for each set; minus infinity where training diverged."""
        units = [
            _Trained(self.task, tuple(sorted(full)), self.rows[:steps], steps, self.learning_rate) for full in sets
        ]
        means = [mean(values) for values in probe.measured(units)]
        return [value if math.isfinite(value) else -math.inf for value in means]


@dataclass(frozen=True)
class _Trained(Unit):
    """A task, of a model that was trained with only the layers ``full`` seeing far."""

    task: Task
    full: tuple[int, ...]
    rows: Sequence[Tensor] = field(repr=False)
    steps: int
    learning_rate: float

    @property
    def name(self) -> str:
        content = b"".join(row.numpy().tobytes() for row in self.rows)
        on = hashlib.blake2b(content, digest_size=4).hexdigest()
        return (
            f"{self.task.name} adapted: full {named(self.full)}: {self.steps} steps at {self.learning_rate:g} on {on}"
        )

    def measure(self, decoder: Decoder, local: Pattern) -> list[float]:
        parameters = list(decoder.parameters())
        before = [(parameter.detach().to("cpu", copy=True), parameter.requires_grad) for parameter in parameters]
        try:
            with restricted(decoder, local, self.full):
                self._train(decoder)
                return self.task.values(decoder)
        finally:
            with torch.no_grad():
                for parameter, (value, asks) in zip(parameters, before, strict=True):
                    parameter.copy_(value)
                    parameter.requires_grad_(asks).grad = None

    def _train(self, decoder: Decoder) -> None:
        parameters = list(decoder.requires_grad_(True).parameters())
        # What a step changes is less than bfloat16 can tell.
        masters = [
            parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
            for parameter in parameters
        ]
        optimizer = torch.optim.AdamW(masters, lr=self.learning_rate, betas=_BETAS, weight_decay=0.0)
        for step in range(self.steps):
            row = self.rows[step % len(self.rows)][None].to(decoder.embedding.weight.device)
            length = row.shape[1] - 1
            loss = decoder.loss(row[:, :-1], row[:, 1:], Documents(length)) / length
            loss.backward()  # type: ignore[no-untyped-call]
            for master, parameter in zip(masters, parameters, strict=True):
                master.grad = None if parameter.grad is None else parameter.grad.to(master.dtype)
                parameter.grad = None
            torch.nn.utils.clip_grad_norm_(masters, _NORM)
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * ramp(step, self.steps)
            optimizer.step()
            with torch.no_grad():
                for master, parameter in zip(masters, parameters, strict=True):
                    parameter.copy_(master)


def rungs(num_sets: int, steps: int) -> list[tuple[int, int]]:
    """How many sets are trained in each rung of successive halving, and for how many steps.

    >>> rungs(6, 10)
    [(6, 10), (3, 20), (2, 40)]
    """
    found = []
    while num_sets > 1:
        found.append((num_sets, steps))
        num_sets, steps = (num_sets + 1) // 2, 2 * steps
    return found


def candidates(proposed: Sequence[Sequence[int]], num_layers: int, size: int, count: int, seed: int) -> list[list[int]]:
    """Sets of one size to try: those that others propose, each once, and random ones up to ``count``.

    Fewer than ``count`` only where there are no more; never fewer than are proposed.

    >>> candidates([[1, 3], [3, 1]], num_layers=4, size=2, count=3, seed=0)
    [[1, 3], [2, 3], [1, 2]]
    """
    found = list(dict.fromkeys(tuple(sorted(each)) for each in proposed))
    assert all(len(each) == size for each in found)
    draw = random.Random(f"{seed} {num_layers} {size}")
    # Most draws are new ones, unless there are few sets; then this is enough to meet nearly all of them.
    for _ in range(50 * count):
        if len(found) >= count:
            break
        drawn = tuple(sorted(draw.sample(range(num_layers), size)))
        if drawn not in found:
            found.append(drawn)
    return [list(each) for each in found]
