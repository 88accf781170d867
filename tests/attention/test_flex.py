"""FlexAttention: the same answers from one compiled kernel, whatever the documents."""

import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.utils import counters

from lg.attention import Causal, Documents, Pattern, SinkWindow, Strided, attend
from lg.attention.impl import flex


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [SinkWindow(window=100, sinks=7), Strided(64, 2, 4)], ids=str)
def test_compiled_on_a_cpu_it_equals_the_oracle_and_other_documents_do_not_compile_anew(pattern: Pattern) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 1000, 16), torch.randn(1, 2, 1000, 16), torch.randn(1, 2, 1000, 16)
    graphs = []
    for starts in ((0,), (0, 500), (0, 3, 100, 777), (0, 999)):
        tiles = pattern.tiles(Documents(1000, starts), 2)
        with torch.no_grad():
            got, want = attend(q, k, v, tiles, "flex"), attend(q, k, v, tiles, "dense")
        torch.testing.assert_close(got, want, rtol=0, atol=2e-6)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[-1]


@pytest.mark.slow
def test_where_dynamo_would_fall_back_to_eager_an_error_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_LIMIT", 1)
    pattern = SinkWindow(window=55, sinks=5)
    with torch.no_grad(), pytest.raises(FailOnRecompileLimitHit):
        for width in (16, 32):
            q, k, v = (torch.randn(1, 2, 300, width) for _ in range(3))
            attend(q, k, v, pattern.tiles(Documents(300)), "flex")


@pytest.mark.gpu
@pytest.mark.parametrize("length", [63, 1000, 4096])
@pytest.mark.parametrize(
    "pattern", [Causal(), SinkWindow(window=100, sinks=7), Strided(64, 2, 4), Strided(16, 3, 5, 2, 1)], ids=str
)
@pytest.mark.parametrize("impl", ["flex", "sdpa"])
def test_on_a_gpu_errors_stay_within_the_budget_forward_and_backward(impl: str, pattern: Pattern, length: int) -> None:
    """At most twice the error of dense attention in bf16, both against float64."""
    if impl == "sdpa" and pattern != Causal():
        pytest.skip("sdpa computes full causal attention only")
    torch.manual_seed(0)
    tiles = pattern.tiles(Documents(length, (0, length // 3, length // 2)), 2)
    shapes = [(1, heads, length, 64) for heads in (4, 2, 2)]
    low = [torch.randn(s, device="cuda").bfloat16().requires_grad_() for s in shapes]
    exact = [x.detach().double().requires_grad_() for x in low]
    weight = torch.randn(shapes[0], device="cuda").bfloat16()

    def run(name: str, qkv: list[torch.Tensor]) -> list[torch.Tensor]:
        out = attend(qkv[0], qkv[1], qkv[2], tiles, name)
        return [out, *torch.autograd.grad(out, qkv, weight.to(out.dtype))]

    for got, plain, want in zip(run(impl, low), run("dense", low), run("dense", exact), strict=True):
        assert float((got - want).norm()) <= 2 * float((plain - want).norm())


@pytest.mark.gpu
def test_on_a_gpu_other_documents_do_not_compile_anew() -> None:
    q, k, v = (torch.randn(1, h, 2048, 64, device="cuda", dtype=torch.bfloat16).requires_grad_() for h in (4, 2, 2))
    graphs = []
    for starts in ((0,), (0, 500), (0, 3, 100, 777), (0, 999)):
        attend(q, k, v, SinkWindow(window=333, sinks=7).tiles(Documents(2048, starts)), "flex").sum().backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[-1]
