"""Sets of full layers that are trained a little: the right one is left, and the weights are what they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import pytest
import torch
from stated import Table
from torch import Tensor

from lg.attention import Causal, Documents, SinkWindow
from lg.evaluation import Haystack
from lg.evaluation.probe import Adapted, Finding, Needle, Notebook, Probe, Task, Unmeasurable, candidates, rungs
from lg.evaluation.probe.adapted import _Trained
from lg.evaluation.probe.sight import attentions
from lg.models.decoder import Decoder

Make = Callable[..., Decoder]
LOCAL = SinkWindow(window=32, sinks=2)


@pytest.fixture(scope="module")
def rows() -> list[Tensor]:
    """Words without order."""
    return [torch.randperm(200, generator=torch.Generator().manual_seed(seed))[:97] + 20 for seed in range(3)]


def test_the_pair_that_works_together_is_left(make: Make, hay: Haystack, rows: list[Tensor]) -> None:
    decoder = make("previous", "find", "idle", "say")
    sets = [[0, 1], [0, 2], [1, 2], [3, 1], [2, 3]]
    measure = Adapted(Needle(hay), sets, rows, steps=2)
    kept: list[dict[str, object]] = []
    found = measure.run(Probe(decoder, LOCAL, Notebook(keep=lambda units: kept.append(dict(units)))))
    assert found.sets == [None, [1, 3]] and found.share[0] is None
    assert found.share[1] == pytest.approx(1, abs=0.05)
    # Layer 0 is in no good set.
    assert max(range(4), key=lambda layer: found.layers[layer] or 0.0) in (1, 3)
    # Three rungs, all layers and none beside the last, and before any training.
    assert measure.rungs == [(5, 2), (3, 4), (2, 8)] and len(kept[-1]) == 5 + 3 + 2 + 2 + 2
    fresh = make("previous", "find", "idle", "say").state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in decoder.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in decoder.parameters())
    # One that was stopped within the second rung goes on there.
    told: list[str] = []
    again = Probe(decoder, LOCAL, Notebook(kept[8], tell=told.append))
    assert measure.run(again) == found and len(told) == len(kept[-1]) - len(kept[8])


def test_training_teaches(make: Make, rows: list[Tensor]) -> None:
    """The loss on what is trained on falls, and as fast where the weights are rounded to bfloat16."""
    curves = []
    for dtype in (torch.float32, torch.bfloat16):
        decoder = make("previous", "idle").to(dtype)
        curves.append(
            [_Trained(_Loss(rows[0]), (0,), rows[:1], steps, 3e-4).measure(decoder, LOCAL)[0] for steps in (0, 10, 20)]
        )
    assert curves[0][0] > curves[0][1] + 1 > curves[0][2] + 2
    assert curves[1] == pytest.approx(curves[0], abs=0.05)


@dataclass(frozen=True)
class _Loss(Task):
    """What the model makes of one row."""

    name = "loss"
    least = 0.0
    passes = 1.0
    row: Tensor

    def values(self, decoder: Decoder) -> list[float]:
        documents = Documents(len(self.row) - 1)
        losses = decoder.token_losses(self.row[None, :-1], self.row[None, 1:], documents)
        return [float(losses.mean())]


def test_what_cannot_be_told(make: Make, hay: Haystack, rows: list[Tensor]) -> None:
    decoder = make("previous", "far")
    with pytest.raises(Unmeasurable, match="there is only one set of 2 layers"):
        Adapted(Needle(hay), [[0, 1]], rows).run(Probe(decoder, LOCAL))
    with pytest.raises(Unmeasurable, match="nats a token on needle with all layers full"):
        Adapted(Needle(hay), [[0], [1]], rows).run(Probe(make("idle", "idle"), LOCAL))
    with pytest.raises(
        Unmeasurable, match=r"after 2 steps .* full, -?0\.0\d\d with none, and -?0\.0\d\d with the best of 2"
    ):
        Adapted(Needle(hay), [[0], [2]], rows, steps=2).run(Probe(make("previous", "far", "idle"), LOCAL))


@dataclass(frozen=True)
class _Diverging(Table):
    """Is no number once the weights were trained in some sets."""

    untrained: Tensor | None = None
    in_sets: Callable[[frozenset[int]], bool] = bool

    def values(self, decoder: Decoder) -> list[float]:
        assert self.untrained is not None
        full = frozenset(layer for layer, mixer in enumerate(attentions(decoder)) if mixer.pattern == Causal())
        trained = not torch.equal(decoder.embedding.weight, self.untrained)
        return [float("nan") if trained and self.in_sets(full) else self.worth(full)] * 3


def test_sets_that_diverge_are_not_proposed(make: Make, rows: list[Tensor]) -> None:
    decoder = make("previous", "idle", "idle", "idle")
    before = decoder.embedding.weight.detach().clone()

    def adapted(*diverge: frozenset[int]) -> Finding:
        task = _Diverging(lambda full: sum(full) / 6, before, lambda full: full in diverge)
        return Adapted(task, [[2, 3], [0, 1], [0, 2], [1, 3]], rows, steps=1).run(Probe(decoder, LOCAL))

    best, nan, first, last = (frozenset(pair) for pair in ((1, 3), (2, 3), (0, 1), (0, 2)))
    found = adapted(nan)
    assert found.sets == [None, [1, 3]] and found.share[1] == pytest.approx(4 / 6)
    # Means over the sets that did not diverge.
    assert found.layers == pytest.approx([0.25, (1 + 4) / 12, 2 / 6, 4 / 6])
    assert adapted(nan, best, first).sets == [None, [0, 2]]
    assert adapted(nan, frozenset((0, 1))).layers[1] == pytest.approx(4 / 6)
    with pytest.raises(Unmeasurable, match=r"^all 4 sets diverge in 1 steps on table; a smaller --adapt_rate than"):
        adapted(nan, best, first, last)
    for ends, how in ((frozenset(), "no"), (frozenset(range(4)), "all")):
        with pytest.raises(Unmeasurable, match=f"the model diverges in 2 steps on table with {how} layers full"):
            adapted(ends)


def test_one_set_costs_nothing(make: Make, rows: list[Tensor]) -> None:
    assert Adapted(Table(len), [[0, 1]], rows).passes(2) == 2


def test_candidates() -> None:
    proposed = [[5, 1], [1, 5], [0, 2]]
    found = candidates(proposed, 8, 2, 6, seed=0)
    assert found[:2] == [[1, 5], [0, 2]] and len({tuple(each) for each in found}) == 6
    assert found == candidates(proposed, 8, 2, 6, seed=0) != candidates(proposed, 8, 2, 6, seed=1)
    assert sorted(candidates([], 4, 2, 99, seed=0)) == [list(pair) for pair in combinations(range(4), 2)]
    assert candidates(proposed, 8, 2, 1, seed=0) == [[1, 5], [0, 2]]


@pytest.mark.parametrize(("sets", "want"), [(1, []), (2, [(2, 3)]), (8, [(8, 3), (4, 6), (2, 12)])])
def test_rungs(sets: int, want: list[tuple[int, int]]) -> None:
    assert rungs(sets, 3) == want
