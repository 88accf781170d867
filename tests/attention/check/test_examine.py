"""A check that wrong kernels must fail, each in what is wrong with it, and right ones pass."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from cases import case
from torch import Tensor
from wrong import Altered, Traced, Unwritten, key_before, previous_document

from lg.attention import Causal, Chunked, Pattern, PerHead, PrefixLM, SinkWindow, Strided, Window
from lg.attention.check import Case, Verdict, Yardstick, budget, examine, examined
from lg.attention.check.case import problem
from lg.attention.impl import Implementation, dense, flex, gather, sdpa


def verdict(implementation: Implementation, on: Case) -> Verdict:
    return examined(implementation, Yardstick.of(on))


def one_row(x: Tensor) -> Tensor:
    x = x.clone()
    x[0, 1, 20] *= 1.5
    return x


@pytest.mark.parametrize(
    "pattern",
    [
        Causal(),
        Window(1),
        Window(100),
        PrefixLM(),
        Strided(64, 1, 3),
        PerHead((Causal(), Window(9)), (0, 1)),
        Causal() & ~Window(50),
    ],
    ids=str,
)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("chunk", [False, True])
def test_right_implementations_pass(pattern: Pattern, packed: bool, chunk: bool) -> None:
    found = verdict(gather, case(pattern, packed=packed, chunk=chunk))
    assert found.failure is None and not found.is_wrong
    assert set(found.errors) == {"output", "dq", "dk", "dv"} == set(found.repeats)
    assert 0 < found.worst <= 2 and found.seconds > 0


def test_the_oracle_and_torch_pass() -> None:
    assert verdict(dense, case(Causal())).failure is None
    assert verdict(sdpa, case(Causal())).failure is None


def test_in_low_precision_right_implementations_pass() -> None:
    assert 0.3 < verdict(gather, case(Window(100), dtype=torch.bfloat16)).worst <= 2


@pytest.mark.parametrize("which", ["output", "dq", "dk", "dv"])
@pytest.mark.parametrize("alter", [one_row, lambda x: x * 1.02], ids=["one row of one head", "all of it"])
def test_what_is_wrong_is_told(which: str, alter: Callable[[Tensor], Tensor]) -> None:
    found = verdict(Altered(which, alter), case(Window(100), dtype=torch.bfloat16))
    assert found.is_wrong and found.worst > 2
    assert re.fullmatch(
        r"it failed the check of its gradients on this device: \d+\.\d\d times the error of dense attention, in its "
        rf"{which}, where 2 are allowed",
        str(found.failure),
    )
    assert all(error <= 2 for name, error in found.errors.items() if error and name != which and which != "output")


def test_the_gradient_of_one_head_is_held_on_its_own() -> None:
    def one_head(x: Tensor) -> Tensor:
        return torch.stack((x[:, 0], 1.02 * x[:, 1]), 1)

    found = verdict(Altered("dk", one_head), case(SinkWindow(100, 7), dtype=torch.bfloat16, packed=False))
    assert ", in its dk, where 2 are allowed" in str(found.failure)


def test_what_is_not_finite_is_told() -> None:
    found = verdict(Altered("dv", lambda x: torch.full_like(x, float("nan"))), case(Window(100)))
    assert found.errors["dv"] is None and found.worst == float("inf")
    assert str(found.failure).endswith("its dv is not finite, where memory holds NaN until it is written")


def test_one_wrong_launch_of_eight_is_found() -> None:
    launches = []

    def sometimes(x: Tensor) -> Tensor:
        launches.append(x)
        return one_row(x) if len(launches) == 6 else x

    found = verdict(Altered("dk", sometimes), case(Window(100), dtype=torch.bfloat16))
    assert (found.errors["dk"] or 0) > 2
    assert found.repeats == ("output", "dq", "dv")
    assert len(launches) == examine._LAUNCHES


def test_launches_that_differ_are_found_though_each_is_near_the_oracle() -> None:
    yardstick = Yardstick.of(case(Causal()))
    noise = torch.randn(yardstick.given.k.shape, generator=torch.Generator().manual_seed(3))
    noise *= (1.5 * yardstick.budget[2] / noise.norm(dim=(2, 3)))[..., None, None]
    signs = iter([1.0, -1.0] * 8)
    found = examined(Altered("dk", lambda x: x + next(signs) * noise), yardstick)
    assert found.errors["dk"] == pytest.approx(3, rel=0.01)
    assert "in its dk" in str(found.failure)


def test_launches_that_differ_by_less_pass_and_are_told() -> None:
    signs = iter([1.0, -1.0] * 50)
    found = verdict(Altered("dq", lambda x: x * (1 + next(signs) * 1e-6)), case(Window(100)))
    assert found.failure is None
    assert found.repeats == ("output", "dk", "dv")


def test_a_trace_of_another_document_is_found() -> None:
    found = verdict(Traced(previous_document), case(Window(100)))
    assert found.failure == "it failed the check of documents: the output of one changes with what another holds"
    assert found.is_wrong and found.worst < 1


def test_a_trace_in_the_gradients_of_another_document_is_found() -> None:
    found = verdict(Altered("dv", lambda x: x + 1e-6 * x.mean(2, keepdim=True)), case(Window(100)))
    assert found.failure == "it failed the check of documents: the dv of one changes with what another holds"


@pytest.mark.parametrize("packed", [False, True])
def test_a_trace_of_one_key_beyond_the_window_is_found(packed: bool) -> None:
    found = verdict(Traced(key_before(100)), case(Window(100), packed=packed))
    assert re.fullmatch(
        r"it failed the check of (documents: the output of one changes with what another holds|"
        r"what is seen: keys that query \d+ does not see change its output)",
        str(found.failure),
    )
    assert ("documents" in str(found.failure)) == packed
    assert verdict(gather, case(Window(100), packed=packed)).failure is None


def test_a_gradient_of_keys_that_are_not_seen_is_found() -> None:
    found = verdict(Altered("dk", lambda x: x + 1e-7), case(Window(100), packed=False))
    assert re.fullmatch(
        r"it failed the check of what is seen: keys that query \d+ does not see get a gradient from it",
        str(found.failure),
    )


def test_through_a_window_of_one_come_the_values_themselves() -> None:
    found = verdict(Altered("output", lambda x: x * (1 + 1e-6)), case(Window(1)))
    assert found.worst < 1
    assert found.failure == "it failed the check of a window of 1: its output is not the values"
    assert verdict(Altered("output", lambda x: x * (1 + 1e-6)), case(Window(2))).failure is None


def test_rows_that_are_left_unwritten_are_found() -> None:
    pattern = Causal() & ~Window(50)
    found = verdict(Unwritten(), case(pattern))
    assert str(found.failure).endswith("its output is not finite, where memory holds NaN until it is written")
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_kernel_that_raises_is_told_with_what_it_raised() -> None:
    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("no\n such tile")

    found = verdict(Altered("output", fails), case(Window(100)))
    assert found.failure == "the check of its gradients ended in RuntimeError: no such tile"
    assert not found.is_wrong and found.errors == {} and found.repeats == ()


def test_no_room_is_no_verdict() -> None:
    def fails(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("64 GiB")

    with pytest.raises(torch.OutOfMemoryError):
        verdict(Altered("output", fails), case(Window(100)))


def test_a_device_that_a_kernel_has_ended_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(examine, "_is_alive", lambda device: False)
    with pytest.raises(examine.BrokenDevice, match=r"illegal memory access .* the device is lost to this process: "):
        verdict(Altered("output", fails), case(Window(100)))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("pattern", "least"), [(Causal(), 333), (Window(100), 333), (Chunked(1500), 2_671), (Causal() & ~Window(500), 667)]
)
def test_the_problem_is_long_enough_for_edges(pattern: Pattern, least: int, packed: bool) -> None:
    documents = problem(case(pattern, packed=packed)).tiles.documents
    assert documents.length == (1_335 if packed and least == 667 else least)
    assert len(documents.starts) == (4 if packed else 1)


def test_the_plain_reference_by_chunks_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_CHUNK", 100)
    yardstick = Yardstick.of(case(Window(100), dtype=torch.float64))
    tiles, q, k, v, grad = yardstick.given
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    out = dense.run(inputs[0], inputs[1], inputs[2], tiles, 0.25)
    whole = (out, *torch.autograd.grad(out, inputs, grad))
    for got, want in zip(yardstick.exact, whole, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("pattern", [Causal(), SinkWindow(100, 7), Window(1), Causal() & ~Window(50)], ids=str)
def test_on_a_gpu_right_implementations_pass(pattern: Pattern, packed: bool) -> None:
    on = case(pattern, packed=packed, width=64, dtype=torch.bfloat16, device=torch.device("cuda"))
    for implementation in (flex.TRITON, gather, *[sdpa] * (pattern == Causal())):
        assert verdict(implementation, on).failure is None


@pytest.mark.gpu
def test_on_a_gpu_wrong_implementations_fail() -> None:
    kind = {"width": 64, "device": torch.device("cuda")}
    # Of memory that other tests have let go of, nothing is known.
    torch.cuda.empty_cache()
    unwritten = verdict(Unwritten(), case(Causal() & ~Window(50), **kind))
    assert str(unwritten.failure).endswith("its output is not finite, where memory holds NaN until it is written")
    assert "documents: the output" in str(verdict(Traced(previous_document), case(Window(100), **kind)).failure)
