"""A check of gradients that wrong kernels must fail, and right ones pass."""

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lg.attention import Causal, Chunked, Documents, Pattern, PerHead, PrefixLM, SinkWindow, Strided, Tiles, Window
from lg.attention.impl import dense, gather, proof
from lg.attention.impl.proof import Case, Proven, check


def case(pattern: Pattern, dtype: torch.dtype = torch.float32, **kind: Any) -> Case:
    made = Case(pattern, pattern.made_for or 2, 2, 16, dtype, torch.device("cpu"), False)
    return made._replace(**kind)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shorter problem: a CPU takes its time in float64."""
    monkeypatch.setattr(proof, "_LENGTH", 333)
    monkeypatch.setattr(proof, "_CHUNK", 100)


class Altered:
    """Gathered attention, with one of its gradients or its output put through ``alter``."""

    def __init__(self, which: str, alter: Callable[[Tensor], Tensor]) -> None:
        self.which, self.alter = which, alter

    def refusal(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> str | None:
        return None

    def run(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
        values = {"dq": q, "dk": k, "dv": v}
        if self.which in values:
            # On the way back, not on the way out.
            values[self.which] = values[self.which] * 1
            values[self.which].register_hook(self.alter)
        out = gather.run(values["dq"], values["dk"], values["dv"], tiles, scale)
        return self.alter(out) if self.which == "output" else out


@pytest.mark.parametrize(
    "pattern",
    [Causal(), Window(100), PrefixLM(), Strided(64, 2, 4), PerHead((Causal(), Window(9)), (0, 1))],
    ids=str,
)
@pytest.mark.parametrize("chunk", [False, True])
def test_right_implementations_pass(pattern: Pattern, chunk: bool) -> None:
    worst = check(gather, case(pattern, chunk=chunk))
    assert set(worst) == {"output", "dq", "dk", "dv"}
    assert 0 < max(worst.values()) <= 2


def test_in_low_precision_right_implementations_pass() -> None:
    assert max(check(gather, case(Window(100), torch.bfloat16)).values()) <= 2


def one_row(x: Tensor) -> Tensor:
    x = x.clone()
    x[0, 1, 200] *= 1.5
    return x


@pytest.mark.parametrize("which", ["output", "dq", "dk", "dv"])
@pytest.mark.parametrize("alter", [one_row, lambda x: x * 1.02, lambda x: x.clone().fill_(float("nan"))])
def test_wrong_implementations_fail_in_what_is_wrong(which: str, alter: Callable[[Tensor], Tensor]) -> None:
    worst = check(Altered(which, alter), case(Window(100), torch.bfloat16))
    assert worst[which] > 2
    assert all(ratio <= 2 for name, ratio in worst.items() if name != which and which != "output")


def test_one_wrong_launch_of_eight_is_found() -> None:
    launches = []

    def sometimes(x: Tensor) -> Tensor:
        launches.append(x)
        return one_row(x) if len(launches) == 6 else x

    assert check(Altered("dk", sometimes), case(Window(100), torch.bfloat16))["dk"] > 2
    # One document and packed ones.
    assert len(launches) == 2 * 8


def test_launches_that_differ_are_found_though_each_is_near_the_oracle() -> None:
    noise = torch.randn(1, 2, proof._LENGTH, 16, generator=torch.Generator().manual_seed(3))
    budget = check(gather, case(Causal()))
    signs = iter([1.0, -1.0] * 8)
    low = check(Altered("dk", lambda x: x + next(signs) * noise * 1e-6), case(Causal()))
    assert low["dk"] > budget["dk"]


@pytest.mark.parametrize(("pattern", "least"), [(Causal(), 333), (Window(100), 333), (Chunked(1500), 2_671)])
def test_the_problem_is_long_enough_to_hide_something(pattern: Pattern, least: int) -> None:
    problems = list(proof._problems(case(pattern)))
    assert [tiles.documents.length for tiles in problems] == [least, least]
    assert [len(tiles.documents.starts) > 1 for tiles in problems] == [False, True]


def test_the_plain_reference_by_chunks_is_that_of_the_whole() -> None:
    one = case(Window(100), torch.float64)
    tiles = next(iter(proof._problems(one)))
    q, k, v, grad = proof._values(one, tiles)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    out = dense.run(q, k, v, tiles, 0.25)
    for got, want in zip(
        proof._dense([q, k, v, grad], tiles), (out, *torch.autograd.grad(out, inputs, grad)), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


class Counted(Altered):
    """Counts what it is asked to run."""

    def __init__(self, alter: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__("output", alter)
        self.runs = 0

    def run(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
        self.runs += 1
        return super().run(q, k, v, tiles, scale)


def asked(width: int = 16) -> list[Tensor]:
    return [torch.zeros(1, heads, 200, width) for heads in (4, 2, 2)]


def test_a_case_is_checked_once_and_without_traces() -> None:
    counted = Counted()
    proven = Proven("counted", counted)
    state = torch.get_rng_state()
    tiles = Window(50).tiles(Documents(200), 2)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert proven.refusal(*asked(), tiles) is None
    assert counted.runs == 2 * 8
    assert proven.refusal(*asked(), Window(50).tiles(Documents(200, (0, 7)), 2)) is None
    assert counted.runs == 2 * 8
    assert proven.refusal(*asked(32), tiles) is None
    assert proven.refusal(*asked(), Window(51).tiles(Documents(200), 2)) is None
    assert counted.runs == 6 * 8
    assert torch.equal(torch.get_rng_state(), state)
    q, k, v = asked()
    assert torch.equal(proven.run(q, k, v, tiles, 1.0), torch.zeros_like(q))


def test_a_failed_check_is_a_refusal_with_figures_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    proven = Proven("wrong", Counted(lambda x: x * 1.1))
    tiles = SinkWindow(50, 4).tiles(Documents(200), 2)
    for _ in range(3):
        refusal = proven.refusal(*asked(), tiles)
    assert refusal is not None
    assert "failed the check of its gradients on this device: " in refusal
    assert re.search(r"\d+\.\d\d times the error of dense attention, in its \w+, where 2 are allowed", refusal)
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert told == [
        f"attention by wrong of SinkWindow(window=50, sinks=4), head width 16, torch.float32 is not used: {refusal}"
    ]


def test_a_kernel_that_raises_is_refused_with_what_it_raised() -> None:
    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("no such tile")

    refusal = Proven("failing", Counted(fails)).refusal(*asked(), Window(50).tiles(Documents(200), 2))
    assert refusal == "the check of its gradients ended in RuntimeError: no such tile"


def test_its_own_refusal_comes_first_and_costs_no_check() -> None:
    counted = Counted()
    counted.refusal = lambda q, k, v, tiles: "not today"  # type: ignore[method-assign, assignment]
    assert Proven("busy", counted).refusal(*asked(), Window(50).tiles(Documents(200), 2)) == "not today"
    assert counted.runs == 0
