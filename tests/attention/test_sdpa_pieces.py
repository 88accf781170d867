"""torch's kernels on patterns that are full causal attention in pieces of a document."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from lg.attention import Causal, Chunked, Documents, Pattern, PerHead, ShiftedGroups, SinkWindow, attend
from lg.attention.impl import sdpa
from lg.attention.part import Part

PATTERNS = [
    Chunked(64),
    Chunked(300),
    Chunked(2000),
    ShiftedGroups(100, num_kv_heads=4),
    ShiftedGroups(256, num_kv_heads=4, shifted=1),
    PerHead((Causal(), Chunked(130)), (1, 0, 0, 1)),
    Chunked(100) | Causal(),
]
LAYOUTS = [
    (Documents(1000), None),
    (Documents(1000, (0, 100, 101, 700)), None),
    (Documents(1024), (512, 1000)),
    (Documents(1000, (0, 100, 101, 700)), (50, 800)),
]


def inputs(queries: int, length: int, batch: int, device: str = "cpu", dtype: torch.dtype = torch.float64) -> Any:
    """q, k, v and a gradient for the output, as a model lays them out: [B, L, H, D] in memory."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(queries, 8), (length, 4), (length, 4), (queries, 8)]
    made = [torch.randn(batch, *shape, 64, generator=generator).transpose(1, 2) for shape in shapes]
    return [x.to(device, dtype).requires_grad_() for x in made]


def with_gradients(impl: str, tiles: Any, q: Any, k: Any, v: Any, grad: Any) -> list[torch.Tensor]:
    out = attend(q, k, v, tiles, impl)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad.to(out.dtype))]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("documents", "queries"), LAYOUTS, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS[:-1], ids=str)
def test_pieces_equal_the_oracle(
    pattern: Pattern, documents: Documents, queries: tuple[int, int] | None, batch: int
) -> None:
    tiles = pattern.tiles(documents, 4, queries)
    values = inputs(tiles.num_queries, documents.length, batch)
    for got, want in zip(with_gradients("sdpa", tiles, *values), with_gradients("dense", tiles, *values), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


@pytest.mark.gpu
@pytest.mark.parametrize(("documents", "queries"), LAYOUTS, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS[:-1], ids=str)
def test_on_a_gpu_errors_stay_within_twice_those_of_dense(
    pattern: Pattern, documents: Documents, queries: tuple[int, int] | None
) -> None:
    tiles = pattern.tiles(documents, 4, queries)
    low = inputs(tiles.num_queries, documents.length, 1, "cuda", torch.bfloat16)
    exact = with_gradients("dense", tiles, *[x.detach().double().requires_grad_() for x in low])
    results = [with_gradients(impl, tiles, *low) for impl in ("sdpa", "dense")]
    least = 1e-5 * float(low[3].detach().norm())
    for got, plain, want in zip(*results, exact, strict=True):
        assert got.dtype == torch.bfloat16
        assert float((got - want).norm()) <= 2 * float((plain - want).norm()) + least


def test_pieces_of_one_length_are_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.Size] = []
    kernel = sdpa.kernel_for

    def counted(q: torch.Tensor, *rest: Any, **named: Any) -> Any:
        calls.append(q.shape)
        return kernel(q, *rest, **named)

    values = inputs(1000, 1000, 1)[:3]
    monkeypatch.setattr(sdpa, "kernel_for", counted)
    tiles = ShiftedGroups(200, num_kv_heads=4).tiles(Documents(1000), 4)
    attend(*values, tiles, "sdpa")
    # The first is the question whether there is a kernel at all.
    assert [tuple(shape) for shape in calls[1:]] == [(5, 4, 200, 64), (1, 4, 100, 64), (4, 4, 200, 64), (1, 4, 100, 64)]


@pytest.mark.parametrize("pattern", [PATTERNS[-1], SinkWindow(100), PerHead((Causal(), SinkWindow(9)), (0, 1, 0, 1))])
def test_what_is_anything_else_is_refused(pattern: Pattern) -> None:
    q, k, v, _ = inputs(100, 100, 1)
    with pytest.raises(ValueError, match="it computes full causal attention only, not"):
        attend(q, k, v, pattern.tiles(Documents(100), 4), "sdpa")


def test_pieces_that_ranks_share_are_refused() -> None:
    tiles = Part(Chunked(200).tiles(Documents(1024), 4), ((0, 512),), ((0, 512),))
    q, k, v, _ = inputs(512, 512, 1)
    with pytest.raises(ValueError, match="full causal attention only, of what ranks share, not Chunked"):
        attend(q, k, v, tiles, "sdpa")


def test_what_a_parent_knows_of_its_predicate_is_not_inherited_with_another_one() -> None:
    @dataclass(frozen=True)
    class Nearer(Chunked, named=False):
        def sees(self, q: Any, k: Any, h: Any) -> Any:
            return (k <= q) & (q - k < self.chunk)

    @dataclass(frozen=True)
    class Named(Chunked, named=False):
        """The same under another name."""

    class Strict:
        def sees(self, q: Any, k: Any, h: Any) -> Any:
            return (k <= q) & (q - k < self.chunk)  # type: ignore[attr-defined]

    @dataclass(frozen=True)
    class Mixed(Strict, Chunked, named=False):  # type: ignore[misc]
        """The other predicate from beside."""

    assert Nearer(10).pieces(100, 0) is None
    assert Mixed(10).pieces(100, 0) is None
    assert Nearer(10).num_seen(torch.arange(3), torch.zeros(1), None) is None
    assert Nearer(10).tiles(300).table(64, 64).num_listed.tolist() == [1, 2, 2, 2, 2]
    assert list(Named(40).pieces(100, 0) or ()) == [0, 40, 80]
