"""Each measure names the layers that carry what is far, in decoders whose every layer is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from stated import Table
from torch import Tensor

from lg.attention import Causal, Documents, PerHead, Routed, SinkWindow, Tiles, Window, attend
from lg.evaluation import Haystack, score
from lg.evaluation.probe import (
    Context,
    Finding,
    Gates,
    Greedy,
    Mass,
    Measure,
    Needle,
    Notebook,
    OneIn,
    OneOut,
    Probe,
    Task,
    Unmeasurable,
    per_head,
)
from lg.evaluation.probe.mass import mass_beyond
from lg.evaluation.probe.sight import attentions
from lg.models.decoder import Decoder

Make = Callable[..., Decoder]
LOCAL = SinkWindow(window=32, sinks=2)


@pytest.fixture(scope="module")
def texts() -> list[Tensor]:
    """Words without order, of which the last 48 are a repetition of the first."""
    found = []
    for seed in range(2):
        words = torch.randperm(200, generator=torch.Generator().manual_seed(seed))[:112] + 20
        found.append(torch.cat((words, words[:49])))
    return found


def measures(hay: Haystack, texts: list[Tensor]) -> dict[str, Measure]:
    tasks = Needle(hay), Context(texts, targets=40, short=32)
    searches: list[Measure] = [kind(task) for task in tasks for kind in (OneOut, OneIn, Greedy)]
    return {measure.name: measure for measure in (*searches, Mass(texts), Gates(hay, steps=60))}


Run = dict[str, Finding]


def found_in(decoder: Decoder, hay: Haystack, texts: list[Tensor]) -> Run:
    probe = Probe(decoder, LOCAL)
    return {name: measure.run(probe) for name, measure in measures(hay, texts).items()}


@pytest.fixture(scope="module")
def alone(make: Make) -> Decoder:
    """One layer looks far."""
    return make("previous", "idle", "far", "idle")


@pytest.fixture(scope="module")
def pair(make: Make) -> Decoder:
    """Two layers look far, and need each other."""
    return make("previous", "find", "idle", "say")


@pytest.fixture(scope="module")
def of_alone(alone: Decoder, hay: Haystack, texts: list[Tensor]) -> Run:
    return found_in(alone, hay, texts)


def test_the_hand_made_decoders_retrieve(alone: Decoder, pair: Decoder, hay: Haystack) -> None:
    assert score(alone, hay).accuracy.min() == score(pair, hay).accuracy.min() == 1


@pytest.mark.parametrize(
    "name",
    [f"{task}_{way}" for task in ("needle", "context") for way in ("one_out", "one_in", "greedy")] + ["mass", "gates"],
)
def test_one_layer_that_looks_far_is_named(name: str, of_alone: Run) -> None:
    finding = of_alone[name]
    assert finding.sets[0] == [2] and len(finding.sets) == 4
    assert 0.8 < finding.share[0] <= (1 if name == "gates" else 1.001)
    assert max(range(4), key=lambda layer: finding.layers[layer] or 0.0) == 2


def test_two_layers_that_work_together_are_named_as_a_pair(pair: Decoder, hay: Haystack, texts: list[Tensor]) -> None:
    found = found_in(pair, hay, texts)
    for name in ("needle_one_out", "needle_greedy", "gates", "mass"):
        assert found[name].sets[1] == [1, 3], name
    assert found["needle_greedy"].share[1] == pytest.approx(1, abs=1e-3)
    # Neither gains much by itself, which is why pairs are tried.
    assert found["needle_greedy"].share[0] < 0.3


@pytest.mark.parametrize(
    ("worth", "most", "sets", "layers"),
    [
        # The best single layer is not in the best pair, and comes back as the third.
        (lambda s: (0 in s) + 10 * ({2, 3} <= s), 3, [[0], [2, 3], [0, 2, 3]], [1, None, 5, 5]),
        # It does not come back.
        (lambda s: (0 in s) + 10 * ({2, 3} <= s), 2, [[0], [2, 3]], [None, None, 5, 5]),
        # It is in the pair.
        (lambda s: 4 * (0 in s) + 3 * (1 in s) + (2 in s), 3, [[0], [0, 1], [0, 1, 2]], [4, 3, 1, None]),
        (lambda s: 4 * (0 in s) + 3 * (1 in s), 1, [[0]], [4, None, None, None]),
    ],
)
def test_scores_of_greedy_add_up_to_what_its_last_set_gains(
    make: Make,
    worth: Callable[[frozenset[int]], float],
    most: int,
    sets: list[list[int]],
    layers: list[float | None],
) -> None:
    found = Greedy(Table(worth), most).run(Probe(make("idle", "idle", "idle", "idle"), LOCAL))
    assert found.sets == sets and found.layers == layers
    assert sum(score or 0 for score in layers) == worth(frozenset(sets[-1]))


@pytest.mark.parametrize("kind", [OneOut, OneIn, Greedy])
def test_values_that_are_no_numbers_rank_nothing(make: Make, kind: Callable[[Task], Measure]) -> None:
    for full, said in ((frozenset(range(3)), "0,1,2"), (frozenset({1}), "1"), (frozenset({0, 2}), "0,2")):
        if (kind is OneOut and len(full) == 1) or (kind is OneIn and len(full) == 2):
            continue
        task = Table(lambda chosen, full=full: math.nan if chosen == full else float(len(chosen)))  # type: ignore
        with pytest.raises(
            Unmeasurable, match=f"gives nan nats a token on table with full layers {said}; only finite numbers"
        ):
            kind(task).run(Probe(make("idle", "idle", "idle"), LOCAL))


@dataclass(frozen=True)
class _OwnBlock(Routed):
    """Each block of 32 queries sees itself."""

    block_q: int = 32
    block_k: int = 32

    def sees(self, q: Any, k: Any, h: Any) -> Any:
        return k <= q

    def route(self, q: Tensor, k: Tensor, tiles: Tiles) -> Tensor:
        rows = -(-q.shape[2] // self.block_q)
        return torch.arange(rows).view(1, 1, rows, 1).expand(1, k.shape[1], rows, 1)


def test_mass_of_what_is_chosen_by_content_is_refused(make: Make, texts: list[Tensor]) -> None:
    decoder = make("idle", "idle")
    with (
        attentions(decoder)[1].seeing(_OwnBlock()),
        pytest.raises(Unmeasurable, match=r"^layer 1 sees _OwnBlock\(.*\), which chooses keys by content; mass"),
    ):
        Mass(texts).run(Probe(decoder, LOCAL))


def test_a_head_that_looks_far_is_named(of_alone: Run) -> None:
    heads = of_alone["gates"].heads
    assert heads is not None
    plan = per_head(heads, 1, Causal(), LOCAL)
    assert plan.schedule == "2*local, heads_0, local"
    assert plan.patterns["heads_0"] == PerHead((LOCAL, Causal()), (1, 0))


def test_a_decoder_is_afterwards_what_it_was(alone: Decoder, make: Make, hay: Haystack, of_alone: Run) -> None:
    def stop(name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        OneOut(Needle(hay)).run(Probe(alone, LOCAL, Notebook(tell=stop)))
    assert of_alone
    mixers = attentions(alone)
    assert [mixer.pattern for mixer in mixers] == [Causal()] * 4
    assert all(mixer.attend is attend for mixer in mixers)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in alone.parameters())
    fresh = make("previous", "idle", "far", "idle").state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in alone.state_dict().items())


@pytest.mark.parametrize("name", ["needle_one_in", "needle_greedy", "context_one_out", "gates"])
def test_a_decoder_that_retrieves_nothing_is_told_of(make: Make, hay: Haystack, texts: list[Tensor], name: str) -> None:
    with pytest.raises(
        Unmeasurable, match=r"gains -?0\.0\d\d nats a token on \w+ with all layers full and -?0\.0\d\d with none"
    ):
        measures(hay, texts)[name].run(Probe(make("previous", "idle", "idle"), LOCAL))


def test_what_is_written_down_is_not_measured_again(
    alone: Decoder, hay: Haystack, texts: list[Tensor], of_alone: Run
) -> None:
    kept: list[dict[str, object]] = []
    names = ("mass", "gates", "needle_one_in")
    by = measures(hay, texts)
    probe = Probe(alone, LOCAL, Notebook(keep=lambda units: kept.append(dict(units))))
    assert {name: by[name].run(probe) for name in names} == {name: of_alone[name] for name in names}
    # From the middle, in which gates have been learned for 20 of 60 steps, and from the end.
    middle = next(units for units in kept if units.get("gates: 60 steps", {"step": 0})["step"] == 20)  # type: ignore
    for known in (middle, kept[-1]):
        told: list[str] = []
        again = Probe(alone, LOCAL, Notebook(known, tell=told.append))
        assert {name: by[name].run(again) for name in names} == {name: of_alone[name] for name in names}
        assert not set(told) & known.keys()
        assert bool(told) == (known is middle)
        assert "gates: 60 steps: 19" not in told and (known is not middle or "gates: 60 steps: 20" in told)


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_the_mass_is_that_of_whole_weights(chunk: int) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 4, 40, 8), torch.randn(1, 2, 40, 8)
    documents = Documents(40, (0, 25))
    full, local = Causal().tiles(documents, 2), PerHead((Window(5), Causal()), (0, 1)).tiles(documents, 2)
    got = mass_beyond(q, k, full, local, chunk)
    scores = (q[0] @ k[0].repeat_interleave(2, 0).mT) / math.sqrt(8)
    weights = scores.masked_fill(~full.mask(q.device), -math.inf).softmax(-1)
    beyond = full.mask(q.device) & ~local.mask(q.device).repeat_interleave(2, 0)
    asked = beyond.any(-1)
    want = (weights * beyond).sum((1, 2)) / asked.sum(-1).clamp(min=1)
    torch.testing.assert_close(got, want.view(2, 2).mean(1))
    assert got[0] > 0.1 and got[1] == 0


def test_more_heads_than_there_are() -> None:
    with pytest.raises(ValueError, match=r"--full_heads: 5 is not allowed; the model has 4 KV heads"):
        per_head([[0.0, 1.0], [0.0, 1.0]], 5, Causal(), LOCAL)
