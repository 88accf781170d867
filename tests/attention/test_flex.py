"""FlexAttention: the same answers from one compiled kernel, whatever the documents."""

import random
import warnings
from typing import Any

import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.utils import counters
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from young import skip_unless_there

from lg.attention import Causal, Documents, Pattern, PerHead, PrefixLM, SinkWindow, Strided, Window, attend
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
@pytest.mark.parametrize("pattern", [PrefixLM(), SinkWindow(window=120, sinks=9), Strided(16, 3, 5)], ids=str)
def test_chunks_of_queries_and_attributes_of_documents_do_not_compile_anew(pattern: Pattern) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 300, 16), torch.randn(1, 2, 1000, 16), torch.randn(1, 2, 1000, 16)
    graphs = []
    for begin, starts, prefix in ((0, (0,), (250,)), (611, (0,), (700,)), (333, (0, 400, 401), (350, 9, 100))):
        tiles = pattern.tiles(Documents(1000, starts, {"prefix": prefix}), 2, (begin, begin + 300))
        with torch.no_grad():
            got, want = attend(q, k, v, tiles, "flex"), attend(q, k, v, tiles, "dense")
        torch.testing.assert_close(got, want, rtol=0, atol=2e-6)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[-1]


@pytest.mark.slow
def test_other_constants_of_a_pattern_stay_constants_of_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """All patterns share one function: dynamo would make what changes between them an argument."""
    symbols = []
    create = ShapeEnv.create_symbol

    def recorded(*args: Any, **options: Any) -> Any:
        symbols.append(create(*args, **options))
        return symbols[-1]

    monkeypatch.setattr(ShapeEnv, "create_symbol", recorded)
    torch._dynamo.reset()
    q, k, v = (torch.randn(1, 2, 300, 16) for _ in range(3))
    for stride in (3, 5):
        with torch.no_grad():
            attend(q, k, v, Strided(16, 2, stride).tiles(Documents(300), 2), "flex")
    assert symbols
    assert all(symbol.is_number for symbol in symbols)


LAYOUTS = [
    Documents(1000),
    Documents(512),
    Documents(1000, (0, 128, 129, 700), {"prefix": (9, 1, 200, 0)}),
]
MASKS = [
    Causal(),
    Window(1),
    SinkWindow(window=100, sinks=7),
    Strided(64, 2, 4),
    Strided(16, 3, 5, 2, 1),
    PerHead((Causal(), Window(9)), (0, 1)),
    PrefixLM(),
]


@pytest.mark.parametrize("documents", LAYOUTS, ids=lambda on: f"{on.length}-{len(on.starts)}")
@pytest.mark.parametrize("pattern", MASKS, ids=str)
def test_the_block_mask_is_that_of_create_block_mask(pattern: Pattern, documents: Documents) -> None:
    if set(pattern.attributes) - set(documents.attributes):
        pytest.skip("these documents have no prefix")
    tiles = pattern.tiles(documents, 2)
    heads, length = 4 if pattern.heads_differ else 1, documents.length

    def visible(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return tiles.seen(q, k, h // 2)

    got = pattern.block_mask(documents, num_heads=4, num_kv_heads=2)
    want = create_block_mask(visible, None, heads, length, length, device="cpu")
    assert got.shape == (1, heads, length, length)
    assert got.BLOCK_SIZE == want.BLOCK_SIZE
    # Token for token: the mask itself; tile for tile: which are listed, as partial and as full, both ways.
    b, h, q, k = torch.meshgrid(*(torch.arange(n) for n in (1, heads, length, length)), indexing="ij")
    assert torch.equal(got.mask_mod(b, h, q, k), visible(b, h, q, k))
    assert torch.equal(got.to_dense(), want.to_dense())
    for way in ("kv", "q"):
        for kind in ("", "full_"):
            assert _listed(got, kind, way) == _listed(want, kind, way)


def _listed(mask: BlockMask, kind: str, way: str) -> list[list[int]]:
    """The tiles of each row, in ascending order."""
    counts, index = getattr(mask, f"{kind}{way}_num_blocks"), getattr(mask, f"{kind}{way}_indices")
    rows = zip(counts.flatten().tolist(), index.flatten(0, 2).tolist(), strict=True)
    return [sorted(row[:count]) for count, row in rows]


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("pattern", [SinkWindow(window=100, sinks=7), Strided(64, 2, 4)], ids=str)
def test_the_block_mask_works_where_users_call_flex_attention(pattern: Pattern, compiled: bool) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 1000, 16), torch.randn(1, 2, 1000, 16), torch.randn(1, 2, 1000, 16)
    documents = Documents(1000, (0, 128, 700))
    call = torch.compile(flex_attention) if compiled else flex_attention
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        got = call(q, k, v, block_mask=pattern.block_mask(documents, 4, 2), enable_gqa=True)
    want = attend(q, k, v, pattern.tiles(documents, 2), "dense")
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6)


def test_the_two_kernels_are_one_implementation() -> None:
    q = torch.zeros(1, 2, 100, 16)
    tiles = Causal().tiles(Documents(100))
    assert flex.TRITON.refusal(q, q, q, tiles) is None
    assert flex.FLASH.refusal(q, q, q, tiles) == "FlashAttention-4 has no kernel for cpu"
    assert "float64" in str(flex.FLASH.refusal(q.double(), q, q, tiles))


@pytest.mark.slow
def test_where_dynamo_would_fall_back_to_eager_an_error_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_LIMIT", 1)
    pattern = SinkWindow(window=55, sinks=5)
    with torch.no_grad(), pytest.raises(FailOnRecompileLimitHit):
        for width in (16, 32):
            q, k, v = (torch.randn(1, 2, 300, width) for _ in range(3))
            attend(q, k, v, pattern.tiles(Documents(300)), "flex")


# FlashAttention-4's packages warn of what is not ours.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.gpu
@pytest.mark.parametrize("length", [63, 1000, 4096])
@pytest.mark.parametrize(
    "pattern",
    [Causal(), SinkWindow(window=100, sinks=7), Strided(64, 2, 4), Strided(16, 3, 5, 2, 1), PrefixLM()],
    ids=str,
)
@pytest.mark.parametrize("impl", ["flex", "flex_flash", "sdpa"])
@pytest.mark.parametrize("chunk", [False, True])
def test_on_a_gpu_errors_stay_within_the_budget_forward_and_backward(
    impl: str, pattern: Pattern, length: int, chunk: bool
) -> None:
    """At most twice the error of dense attention in bf16, both against float64."""
    torch.manual_seed(0)
    first, end = (length // 4, length - 3) if chunk else (0, length)
    documents = Documents(length, (0, length // 3, length // 2), {"prefix": (9, 1, 20)})
    tiles = pattern.tiles(documents, 2, (first, end))
    shapes = [(1, 4, end - first, 64), (1, 2, length, 64), (1, 2, length, 64)]
    low = [torch.randn(s, device="cuda").bfloat16().requires_grad_() for s in shapes]
    skip_unless_there(impl, *low, tiles)
    exact = [x.detach().double().requires_grad_() for x in low]
    weight = torch.randn(shapes[0], device="cuda").bfloat16()

    def run(name: str, qkv: list[torch.Tensor]) -> list[torch.Tensor]:
        out = attend(qkv[0], qkv[1], qkv[2], tiles, name)
        return [out.detach(), *torch.autograd.grad(out, qkv, weight.to(out.dtype))]

    for got, plain, want in zip(run(impl, low), run("dense", low), run("dense", exact), strict=True):
        assert float((got - want).norm()) <= 2 * float((plain - want).norm())


# FlashAttention-4's packages warn of what is not ours.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["flex", "flex_flash"])
def test_on_a_gpu_other_documents_do_not_compile_anew(impl: str) -> None:
    q, k, v = (torch.randn(1, h, 2048, 64, device="cuda", dtype=torch.bfloat16).requires_grad_() for h in (4, 2, 2))
    pattern = SinkWindow(window=333, sinks=7)
    skip_unless_there(impl, q, k, v, pattern.tiles(Documents(2048), 2))
    draw = random.Random(0)
    graphs = []
    for _ in range(50):
        starts = (0, *sorted(draw.sample(range(1, 2048), draw.randint(0, 30))))
        attend(q, k, v, pattern.tiles(Documents(2048, starts), 2), impl).sum().backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[-1]


def test_a_block_mask_has_as_many_kv_heads_as_it_is_told_or_as_there_are_query_heads() -> None:
    pattern = Strided(16, 2, 4)
    own, grouped = pattern.block_mask(512, num_heads=8), pattern.block_mask(512, num_heads=8, num_kv_heads=4)
    assert own.shape == grouped.shape == (1, 8, 512, 512)
    query, key = torch.arange(512)[:, None], torch.arange(512)
    for mask, groups in ((own, 1), (grouped, 2)):
        assert mask.mask_mod is not None
        for head in range(8):
            seen = mask.mask_mod(torch.tensor(0), torch.tensor(head), query, key)
            assert torch.equal(seen, pattern.mask(query, key, head // groups))
    for heads, heads_kv in ((6, 4), (1, 4), (4, 0)):
        with pytest.raises(ValueError, match=f"num_heads={heads} and num_kv_heads={heads_kv} are not allowed"):
            pattern.block_mask(512, num_heads=heads, num_kv_heads=heads_kv)
