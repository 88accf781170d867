"""Full causal attention in parts: packed documents, and chunks of queries against a longer past."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.utils.checkpoint import checkpoint

from lg.attention import Causal, Documents, Tiles, attend
from lg.attention.impl import dense, fused, sdpa

PACKED = Documents(1000, (0, 100, 101, 700))
CASES = [
    (Documents(1000), (300, 777)),
    (Documents(1000), (0, 10)),
    (Documents(1000), (1, 1000)),
    (Documents(1000), (999, 1000)),
    (Documents(63, (0, 10)), (11, 12)),
    (PACKED, (0, 1000)),
    (PACKED, (50, 800)),
    (PACKED, (101, 700)),
    (PACKED, (100, 101)),
]


def inputs(tiles: Tiles, dtype: torch.dtype, device: str = "cpu", width: int = 16) -> list[torch.Tensor]:
    """q, k, v and a gradient for the output; as a model has them, [B, L, H, D] in memory."""
    generator = torch.Generator().manual_seed(0)
    first, end = tiles.queries
    shapes = [(end - first, 4), (tiles.documents.length, 2), (tiles.documents.length, 2), (end - first, 4)]
    made = [torch.randn(2, *shape, width, generator=generator).transpose(1, 2) for shape in shapes]
    return [x.to(device, dtype).requires_grad_() for x in made]


def with_gradients(impl: str, tiles: Tiles, q: Any, k: Any, v: Any, grad: Any) -> list[torch.Tensor]:
    out = attend(q, k, v, tiles, impl)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad.to(out.dtype))]


@pytest.mark.parametrize(("documents", "queries"), CASES, ids=str)
def test_parts_equal_the_oracle_in_float64(documents: Documents, queries: tuple[int, int]) -> None:
    tiles = Causal().tiles(documents, 2, queries)
    values = inputs(tiles, torch.float64)
    for got, want in zip(with_gradients("sdpa", tiles, *values), with_gradients("dense", tiles, *values), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("documents", "queries"), [(Documents(1000), (300, 777)), (PACKED, (50, 800))], ids=str)
def test_errors_stay_within_twice_those_of_dense(
    documents: Documents, queries: tuple[int, int], dtype: torch.dtype
) -> None:
    _check_budget(Causal().tiles(documents, 2, queries), dtype, "cpu", 16)


def _check_budget(tiles: Tiles, dtype: torch.dtype, device: str, width: int) -> None:
    low = inputs(tiles, dtype, device, width)
    exact = [x.detach().double().requires_grad_() for x in low]
    results = [with_gradients("sdpa", tiles, *low), with_gradients("dense", tiles, *low)]
    # Of a single key nothing flows back to q and k, but for the rounding of float32.
    least = 1e-5 * float(low[3].detach().norm()) if dtype == torch.bfloat16 else 0.0
    for got, plain, want in zip(*results, with_gradients("dense", tiles, *exact), strict=True):
        assert got.dtype == dtype
        assert float((got - want).norm()) <= 2 * float((plain - want).norm()) + least


def test_keys_beyond_the_chunk_get_no_gradient() -> None:
    tiles = Causal().tiles(PACKED, 2, (300, 400))
    _, _, dk, dv = with_gradients("sdpa", tiles, *inputs(tiles, torch.float32))
    for x in (dk, dv):
        assert not x[:, :, :101].any()
        assert not x[:, :, 400:].any()
        assert x[:, :, 101:400].any(-1).all()


@pytest.mark.parametrize("reentrant", [True, False])
def test_it_works_under_activation_checkpointing(reentrant: bool) -> None:
    tiles = Causal().tiles(PACKED, 2, (50, 800))
    q, k, v, grad = inputs(tiles, torch.float64)

    def doubled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend(q * 2, k, v * 3, tiles, "sdpa")

    got = torch.autograd.grad(checkpoint(doubled, q, k, v, use_reentrant=False), (q, k, v), grad)
    if reentrant:
        checkpoint(doubled, q, k, v, use_reentrant=True).backward(grad)
        got = (q.grad, k.grad, v.grad)
    for x, want in zip(got, torch.autograd.grad(doubled(q, k, v), (q, k, v), grad), strict=True):
        torch.testing.assert_close(x, want, rtol=0, atol=0)


def test_a_side_that_saw_nothing_counts_nothing_when_merged() -> None:
    out, lse = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 2)
    nothing = torch.zeros(1, 1, 2, 4), torch.full((1, 1, 2), float("-inf"))
    for sides in (((out.clone(), lse), nothing), ((nothing[0].clone(), nothing[1]), (out, lse))):
        merged, both = sdpa._merged(*sides)
        torch.testing.assert_close(merged, out, rtol=0, atol=0)
        torch.testing.assert_close(both, lse, rtol=0, atol=0)


def test_of_packed_documents_only_whole_blocks_are_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, bool]] = []

    def kernel_for(q: torch.Tensor, *rest: Any, **named: Any) -> Any:
        asked.append((q.shape[2], fused.WITHOUT_PLANS in rest))
        return fused.kernel_for(q, *rest, **named)

    monkeypatch.setattr(sdpa, "kernel_for", kernel_for)
    for documents in (Documents(3000, (0, 2048, 2100)), Documents(3000)):
        tiles = Causal().tiles(documents, 2, (0, 2999))
        attend(*inputs(tiles, torch.float32)[:3], tiles, "sdpa")
    asked = [one for one in asked if one[0] != 2999]
    assert asked == [(2048, False), (52, True), (899, True)]


def test_without_a_fused_kernel_it_refuses_parts_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_CPU", {})
    tiles = Causal().tiles(PACKED, 2)
    q, k, v, _ = inputs(tiles, torch.float32)
    with pytest.raises(ValueError, match=r"no fused kernel for torch.float32 at head width 16 on cpu, which packed"):
        attend(q, k, v, tiles, "sdpa")
    assert attend(q, k, v, Causal().tiles(Documents(1000), 2), "sdpa").shape == q.shape


# cuDNN plans for each length.
@pytest.mark.gpu
def test_on_a_gpu_cudnn_gets_lengths_that_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[int] = []

    def forward(q: torch.Tensor, *rest: Any) -> Any:
        planned.append(q.shape[2])
        return cudnn.forward(q, *rest)

    cudnn = fused._CUDA[SDPBackend.CUDNN_ATTENTION]
    monkeypatch.setitem(fused._CUDA, SDPBackend.CUDNN_ATTENTION, fused.Kernel(forward, cudnn.backward))
    for starts in ((0, 1000, 1500), (0, 1024, 3072), (0,)):
        documents = Documents(4000, starts)
        _check_budget(Causal().tiles(documents, 2), torch.bfloat16, "cuda", 64)
    # The last is whole: one call of torch's.
    assert planned == [1024, 2048]


@pytest.mark.gpu
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize(("documents", "queries"), CASES, ids=str)
def test_on_a_gpu_errors_stay_within_twice_those_of_dense(
    documents: Documents, queries: tuple[int, int], width: int
) -> None:
    _check_budget(Causal().tiles(documents, 2, queries), torch.bfloat16, "cuda", width)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 64), (torch.bfloat16, 20)], ids=str)
def test_on_a_gpu_what_cudnn_does_not_take_is_taken_by_others(
    dtype: torch.dtype, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The kernels for float32 run on the tensor cores, in tf32: so does dense attention here.
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    for queries in ((50, 800), (0, 1000)):
        _check_budget(Causal().tiles(PACKED, 2, queries), dtype, "cuda", width)
    _check_budget(Causal().tiles(Documents(1000), 2), dtype, "cuda", width)


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", list(fused._CUDA), ids=str)
def test_on_a_gpu_each_kernel_tells_its_log_sum_exp_and_its_gradients(backend: Any, causal: bool) -> None:
    kernel = fused._CUDA[backend]
    tiles = Causal().tiles(Documents(333), 2) if causal else Causal().tiles(Documents(777), 2, (444, 777))
    q, k, v, grad = (x.detach() for x in inputs(tiles, torch.bfloat16, "cuda", 64))
    # Without a mask the chunk sees its past only.
    k, v = (k, v) if causal else (k[:, :, :444], v[:, :, :444])
    out, lse, random = kernel.forward(q, k, v, causal, 0.1)
    seen = torch.ones(333, k.shape[2], dtype=torch.bool, device="cuda")
    scores = (q.double() * 0.1) @ k.double().repeat_interleave(2, 1).mT
    scores = scores.masked_fill(~(seen.tril() if causal else seen), float("-inf"))
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), rtol=0, atol=1e-3)
    want = scores.softmax(-1) @ v.double().repeat_interleave(2, 1)
    assert float((out - want).norm() / want.norm()) < 1e-2
    for gradient, x in zip(kernel.backward(grad, q, k, v, out, lse, random, causal, 0.1), (q, k, v), strict=True):
        assert gradient.shape == x.shape
        assert torch.isfinite(gradient).all()


def test_the_oracle_takes_chunks() -> None:
    tiles, whole = Causal().tiles(PACKED, 2, (50, 800)), Causal().tiles(PACKED, 2)
    q, k, v, _ = inputs(whole, torch.float64)
    torch.testing.assert_close(
        dense.run(q[:, :, 50:800], k, v, tiles, 0.25), dense.run(q, k, v, whole, 0.25)[:, :, 50:800]
    )
