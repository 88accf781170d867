"""Tiles chosen by content: lg's kernels compute what the oracle computes, whatever was chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from lg.attention import Documents, Routed, Tiles, attend
from lg.attention.routed import RoutedTiles


@dataclass(frozen=True)
class Strongest(Routed):
    """The blocks of keys whose mean is nearest to the mean of a block of queries, among those that begin before it."""

    budget: int
    block_q: int = 32
    block_k: int = 16

    def sees(self, q: Any, k: Any, h: Any) -> Any:
        return k <= q

    def route(self, q: Tensor, k: Tensor, tiles: Tiles) -> Tensor:
        rows, columns = _means(q.unflatten(1, (k.shape[1], -1)).mean(2), self.block_q), _means(k, self.block_k)
        last = (
            tiles.queries[0] + torch.arange(rows.shape[2], device=q.device)[:, None] * self.block_q + self.block_q - 1
        )
        later = torch.arange(columns.shape[2], device=q.device) * self.block_k > last
        score = (rows @ columns.mT).masked_fill(later, float("-inf"))
        best = score.topk(min(self.budget, columns.shape[2]), -1)
        return best.indices.masked_fill(best.values == float("-inf"), -1)


@dataclass(frozen=True)
class Told(Routed):
    """What a test says."""

    blocks: tuple[tuple[int, ...], ...]
    block_q: int = 32
    block_k: int = 32

    def sees(self, q: Any, k: Any, h: Any) -> Any:
        return k <= q

    def route(self, q: Tensor, k: Tensor, tiles: Tiles) -> Tensor:
        return torch.tensor(self.blocks, device=q.device).expand(q.shape[0], k.shape[1], -1, -1)


def _means(x: Tensor, block: int) -> Tensor:
    pad = -x.shape[2] % block
    return torch.nn.functional.pad(x, (0, 0, 0, pad)).unflatten(2, (-1, block)).mean(3)


def values(heads: int, heads_kv: int, num_queries: int, length: int, batch: int = 1) -> list[Tensor]:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = [(heads, num_queries), (heads_kv, length), (heads_kv, length)]
    return [torch.randn(batch, *shape, 16, device=device) for shape in shapes]


def run(impl: str, qkv: list[Tensor], tiles: Tiles) -> list[Tensor]:
    q, k, v = (x.detach().requires_grad_() for x in qkv)
    out = attend(q, k, v, tiles, impl)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v))]


@pytest.mark.parametrize("queries", [None, (40, 100)], ids=["all ask", "some ask"])
def test_kernels_compute_what_was_chosen(queries: tuple[int, int] | None) -> None:
    """Other tiles in each row of the batch and each head, which is chosen in float32 as in float64."""
    tiles = Strongest(budget=3).tiles(Documents(110, (0, 30)), 2, queries)
    num_queries = tiles.queries[1] - tiles.queries[0]
    qkv = values(4, 2, num_queries, 110, batch=2)
    for got, want in zip(run("triton", qkv, tiles), run("dense", [x.double() for x in qkv], tiles), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=0, atol=5e-5)


def test_a_block_named_twice_or_not_there_is_no_other() -> None:
    qkv = values(1, 1, 64, 64)
    plain = run("triton", qkv, Told(((0, -1), (0, 1))).tiles(64))
    odd = run("triton", qkv, Told(((0, 0, 99, -7), (1, 0, 1, 2))).tiles(64))
    for one, other in zip(plain, odd, strict=True):
        assert torch.equal(one, other)


def test_a_block_of_queries_may_see_nothing() -> None:
    qkv = values(1, 1, 64, 64)
    got, want = (run(impl, qkv, Told(((-1,), (0,))).tiles(64)) for impl in ("triton", "dense"))
    assert not got[0][:, :, :32].any()
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_only_what_takes_lists_of_the_device_computes_it() -> None:
    q, k, v = values(1, 1, 64, 64)
    tiles = Told(((0,), (0,))).tiles(64)
    with pytest.raises(ValueError, match=r"'flex' cannot compute this: Told.* is chosen by content, which only triton"):
        attend(q, k, v, tiles, "flex")
    with pytest.raises(ValueError, match="is chosen by content: its tiles are on the device, not in a table"):
        RoutedTiles(tiles, q, k).table(64, 64)
    assert torch.equal(attend(q, k, v, tiles), attend(q, k, v, tiles, "triton"))


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        (Told(((0,), (0,)), block_k=48), "Told.block_k=48 is not allowed; it must be a power of two from 16 to 128"),
        (Told(((0,),)), r"Told.*.route gave int64 \(1, 1, 1, 1\); it must be integers \[1, 1, 2, 'any number'\]"),
        (Told(((0.5,), (0.5,))), r"Told.*.route gave float32 \(1, 1, 2, 1\)"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_is_refused(pattern: Told, told: str) -> None:
    q, k, v = values(1, 1, 64, 64)
    with pytest.raises(ValueError, match=told):
        attend(q, k, v, pattern.tiles(64), "dense")
