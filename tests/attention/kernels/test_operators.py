"""The kernels are operators of torch: compilers and activation checkpointing take them as they take its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from lg.attention import Documents, SinkWindow, Strided, Tiles, attend
from lg.attention.impl.triton import launch
from lg.attention.impl.triton.operators import attention
from lg.attention.impl.triton.options import options
from lg.attention.impl.triton.plan import packed, plan, unpacked

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CAPABILITY = torch.cuda.get_device_capability() if DEVICE == "cuda" else None
PATTERN = SinkWindow(window=40, sinks=2)


def values(length: int = 70) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, heads, length, 16, device=DEVICE, requires_grad=True) for heads in (2, 1, 1)]


def differentiated(call: Callable[..., Tensor], qkv: list[Tensor], *others: Any) -> list[Tensor]:
    out = call(*qkv, *others)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), qkv)]


def test_they_keep_what_torch_asks_of_an_operator() -> None:
    qkv, tiles = values(), Strided(16, 1, 3).tiles(Documents(70, (0, 40)), 1)
    on = packed(plan(tiles, options(torch.float32, 16, CAPABILITY)), qkv[0].device)
    torch.library.opcheck(attention, (*qkv, *on, tiles.text, 0, 0.25))


# torch 2.11's compiler deprecates what it uses itself.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_attend_is_one_graph() -> None:
    def layer(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> Tensor:
        return attend(q * 2, k, v, tiles, "triton").sin()

    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    graphs = []
    for count in (1, 2, 3, 5, 4, 6, 7, 8, 9, 10, 11, 12, 20, 30):
        # Blocks of keys that are dealt to none, one and several programs, too.
        tiles = PATTERN.tiles(Documents(70, range(0, 2 * count, 2)))
        qkv = values()
        eager = differentiated(layer, qkv, tiles)
        for got, want in zip(differentiated(compiled, qkv, tiles), eager, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
        graphs.append(counters["stats"]["unique_graphs"])
    # One document or several; and once sizes have differed, they are variables.
    assert len(set(graphs[2:])) == 1, graphs


def test_checkpointing_may_keep_what_attention_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name among torch's operators: attention is then computed once, and all else again."""
    runs = []
    forward = launch.forward
    monkeypatch.setattr(launch, "forward", lambda *arguments: runs.append(1) or forward(*arguments))
    tiles = PATTERN.tiles(70)

    def layer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q.sin(), k, v, tiles, "triton").sin()

    plain = differentiated(layer, values())
    keeping = partial(create_selective_checkpoint_contexts, [torch.ops.lg.attention.default])
    for contexts, computed in ((None, 2), (keeping, 1)):
        options = {} if contexts is None else {"context_fn": contexts}
        runs.clear()
        got = differentiated(partial(checkpoint, layer, use_reentrant=False, **options), values())
        assert len(runs) == computed
        for one, other in zip(got, plain, strict=True):
            assert torch.equal(one, other)


def test_a_plan_goes_through_an_operator_and_back() -> None:
    tiles = Strided(16, 1, 3).tiles(Documents(70, (0, 40)), 2)
    made = plan(tiles, options(torch.float32, 16, CAPABILITY))
    lists, numbers = packed(made, torch.device(DEVICE))
    again = unpacked(lists, numbers)
    assert (again.options, again.heads) == (made.options, 2)
    # Kernels are compiled for pointers of this kind; of another they would be compiled anew.
    assert all(x.storage_offset() % 4 == 0 and x.is_contiguous() for x in again.lists)
    assert all(torch.equal(one.cpu(), other) for one, other in zip(again.lists, made.lists, strict=True))


def test_tiles_that_were_used_in_inference_serve_training() -> None:
    tiles, qkv = PATTERN.tiles(70), values()
    with torch.inference_mode():
        attend(*(x.detach() for x in qkv), tiles, "triton")
    differentiated(attend, qkv, tiles, "triton")


def test_lists_are_linear_in_the_sequence() -> None:
    """4 million tokens: nothing of (L / 64)^2, which would be 4 billion."""
    tiles = PATTERN.tiles(1 << 22)
    launched = options(torch.bfloat16, 128, (9, 0))
    assert packed(plan(tiles, launched), torch.device("cpu")).lists.nbytes < 8 * (1 << 20)
