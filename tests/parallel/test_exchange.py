"""Attention over ranks equals that of one process, whatever the pattern, the documents and the split."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lg.attention import Causal, Documents, Pattern, SinkWindow, Strided, attend
from lg.attention.part import GRID, Held, Part, Split
from lg.parallel.balance import padded_length, split
from lg.parallel.exchange import ContextAttend
from lg.parallel.plan import Plan
from lg.testing import run_ranks

sys.path.insert(0, str(Path(__file__).parents[1] / "attention"))

from examples import COMPOSED, PATTERNS

# Query heads of a KV head, and features of a head.
GROUP, WIDTH = 2, 8
RAGGED = 4 * GRID + 70


class Case(NamedTuple):
    """What is exchanged how."""

    pattern: Pattern
    documents: Documents
    shared: Split
    num_groups: int = 1

    @property
    def heads(self) -> int:
        return self.pattern.made_for or 2

    def tiles(self, rank: int) -> Part:
        """As a decoder's `Layout` hands them over."""
        whole = self.pattern.tiles(self.documents, self.heads)
        held = Held(self.shared, rank)
        return Part(whole, held.ranges, whole.key_ranges, held)

    def inputs(self, dtype: torch.dtype) -> list[Tensor]:
        """q, k and v of the whole sequence, and a gradient of the output; the same on all ranks."""
        make = torch.Generator().manual_seed(0)
        return [
            torch.randn(1, heads, self.documents.length, WIDTH, generator=make, dtype=torch.float64).to(dtype)
            for heads in (GROUP * self.heads, self.heads, self.heads, GROUP * self.heads)
        ]

    def run(self, rank: int, inputs: list[Tensor]) -> list[Tensor]:
        """Output, dq, dk and dv of what a rank holds."""
        q, k, v, grad = self.own(rank, inputs)
        out = self.over_ranks()(q, k, v, self.tiles(rank), "gather")
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad)]

    def own(self, rank: int, inputs: list[Tensor]) -> list[Tensor]:
        """Of the inputs, what a rank holds."""
        held = Held(self.shared, rank).tokens
        return [x[:, :, held].clone().requires_grad_() for x in inputs]

    def over_ranks(self) -> ContextAttend:
        assert dist.group.WORLD is not None
        return ContextAttend(dist.group.WORLD, self.num_groups)

    def plan(self, rank: int) -> Plan:
        return Plan(self.tiles(rank), Held(self.shared, rank))

    def oracle(self) -> list[Tensor]:
        """Output, dq, dk and dv of the whole sequence, by one process."""
        *qkv, grad = (x.requires_grad_() for x in self.inputs(torch.float64))
        out = attend(*qkv, self.pattern.tiles(self.documents, self.heads), "dense")
        return [out.detach(), *torch.autograd.grad(out, qkv, grad)]


def documents(length: int, starts: tuple[int, ...]) -> Documents:
    return Documents(length, starts, {"prefix": (70, 20, 64)[: len(starts)]})


def shuffled(length: int, num_ranks: int, seed: int) -> Split:
    """Chunks of any size, dealt at random."""
    make = torch.Generator().manual_seed(seed)
    num_blocks = -(-length // GRID)
    count = int(torch.randint(num_ranks, num_blocks + 1, (), generator=make))
    cuts = (torch.randperm(num_blocks - 1, generator=make)[: count - 1] + 1).sort().values * GRID
    owners = torch.cat((torch.arange(num_ranks), torch.randint(num_ranks, (count - num_ranks,), generator=make)))
    owners = owners[torch.randperm(count, generator=make)]
    return Split((0, *cuts.tolist(), length), tuple(owners.tolist()))


def cases(num_ranks: int) -> list[Case]:
    """Every pattern, on two ranks on one document and on several; splits and groups take turns."""
    found = []
    for number, pattern in enumerate(PATTERNS + COMPOSED):
        for packed in (False, True) if num_ranks == 2 else (number // 2 % 2 == 0,):
            starts = (0, 1, 300) if packed else (0,)
            if (number + packed) % 2:
                on = documents(RAGGED, starts)
                shared = shuffled(RAGGED, num_ranks, number)
            else:
                on = documents(padded_length(RAGGED, num_ranks), starts)
                shared = split(on, [pattern, Causal()], pattern.made_for or 2, num_ranks, (1, 2, 4)[number % 3])
            found.append(Case(pattern, on, shared, 1 + number // 2 % 2))
    return found


def equals_one_process(rank: int, num_ranks: int) -> None:
    """In float64, where what is left of a difference is a mistake."""
    found = cases(num_ranks)
    # One rank asks the slow oracle, and tells the others.
    oracles = {number: case.oracle() for number, case in enumerate(found) if number % num_ranks == rank}
    for number, case in enumerate(found):
        held = Held(case.shared, rank).tokens
        inputs = case.inputs(torch.float64)
        got = case.run(rank, inputs)
        shapes = [inputs[0], *inputs[:3]]
        wants = oracles.get(number) or [torch.empty_like(x) for x in shapes]
        for name, one, want in zip(("out", "dq", "dk", "dv"), got, wants, strict=True):
            dist.broadcast(want, number % num_ranks)
            apart = float((one - want[:, :, held]).abs().max())
            assert apart < 1e-12, f"{case}, rank {rank}: {name} is {apart} apart"


@pytest.mark.parametrize("num_ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_attention_over_ranks_is_that_of_one_process(num_ranks: int) -> None:
    run_ranks(equals_one_process, num_ranks, num_ranks)


ON = documents(padded_length(900, 4), (0, 500, 700))
# So that much travels.
DEALT = Split((0, 256, 512, 768, 1024), (0, 1, 0, 1))
SOME = [
    Case(pattern, ON, split(ON, [pattern], 4, 2) if num_groups == 1 else DEALT, num_groups)
    for pattern, num_groups in (
        (Causal(), 1),
        (Causal(), 3),
        (SinkWindow(window=200, sinks=4), 2),
        (Strided(64, 1, 3, head_step=0), 2),
        (Strided(64, 1, 3), 1),
    )
]


def counts_and_repeats(rank: int) -> None:
    for case in SOME:
        inputs = case.inputs(torch.float32)
        once, again = case.run(rank, inputs), case.run(rank, inputs)
        assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True)), case

        plan, (q, k, v, _) = case.plan(rank), case.own(rank, inputs)
        size = 2 * case.heads * WIDTH * 4
        attention, tiles = case.over_ranks(), case.tiles(rank)
        with torch.inference_mode():
            assert torch.equal(attention(q, k, v, case.tiles(rank), "gather"), once[0])
        assert attention.received_bytes == sum(plan.received) * size
        attention(q, k, v, tiles, "gather").sum().backward()
        # In all: without gradients, forward, again before the backward pass; then gradients of what others had.
        assert attention.received_bytes == (3 * sum(plan.received) + sum(plan.sent)) * size

        half = [x.detach().bfloat16().requires_grad_() for x in (q, k, v)]
        out = attention(*half, tiles, "gather")
        grads = torch.autograd.grad(out, half, torch.ones_like(out))
        for one, true in zip(grads, (q.grad, k.grad, v.grad), strict=True):
            assert one.dtype == torch.bfloat16
            torch.testing.assert_close(one.float(), true, rtol=0.05, atol=0.05)


def test_exchanged_bytes_are_the_plan_s_and_gradients_repeat() -> None:
    run_ranks(counts_and_repeats, 2)


def recomputes(rank: int) -> None:
    for case in SOME:
        q, k, v, grad = case.own(rank, case.inputs(torch.float64))
        attention, tiles = case.over_ranks(), case.tiles(rank)
        impl = "sdpa" if case.pattern == Causal() else "dense"
        attend_here = partial(attention, tiles=tiles, impl=impl)

        def layer(q: Tensor, k: Tensor, v: Tensor, run: Any = attend_here) -> Tensor:
            out: Tensor = run(q * 1, k * 1, v * 1)
            return out.sin()

        whole = layer(q, k, v)
        again = checkpoint(layer, q, k, v, use_reentrant=False)
        wants = torch.autograd.grad(whole, (q, k, v), grad)
        for one, true in zip(torch.autograd.grad(again, (q, k, v), grad), wants, strict=True):
            assert torch.equal(one, true), case

        # Weights that are not trained ask for no gradient of keys and values.
        (alone,) = torch.autograd.grad(layer(q, k.detach(), v.detach()), q, grad)
        assert torch.equal(alone, wants[0])


def gives_up(rank: int) -> None:
    for case in SOME[:2]:
        saved: list[Tensor] = []

        def pack(x: Tensor, saved: list[Tensor] = saved) -> Tensor:
            saved.append(x)
            return x

        q, k, v, grad = case.own(rank, case.inputs(torch.float32))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = case.over_ranks()(q, k, v, case.tiles(rank), "sdpa")
        assert case.num_groups == 1 or case.plan(rank).is_much
        # Keys and values of each group: this implementation saves them as they are.
        assert sum(x.untyped_storage().nbytes() == 0 for x in saved) >= 2 * case.num_groups
        want = case.over_ranks()(q, k, v, case.tiles(rank), "gather")
        grads, wants = (torch.autograd.grad(x, (q, k, v), grad) for x in (out, want))
        torch.testing.assert_close(grads, wants, rtol=0, atol=3e-5)


def test_what_was_fetched_is_fetched_again() -> None:
    run_ranks(gives_up, 2)


def test_a_recomputed_layer_and_frozen_keys_have_the_same_gradients() -> None:
    run_ranks(recomputes, 2)


def leaks_nothing(rank: int) -> None:
    for case in SOME:
        first, end = ON.starts[1:]
        inputs = case.inputs(torch.float32)
        other = [x.clone() for x in inputs]
        for x in other:
            x[:, :, first:end] = 1e3 * torch.randn_like(x[:, :, first:end])
        held = Held(case.shared, rank).tokens
        outside = (held < first) | (held >= end)
        for one, perturbed in zip(case.run(rank, inputs), case.run(rank, other), strict=True):
            assert torch.equal(one[:, :, outside], perturbed[:, :, outside]), case


def test_no_document_knows_of_another() -> None:
    run_ranks(leaks_nothing, 2)
