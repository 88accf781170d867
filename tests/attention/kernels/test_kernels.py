"""lg's Triton kernels against the float64 oracle, forward and backward: in Triton's interpreter, or on a GPU."""

from __future__ import annotations

import pytest
import torch
from examples import COMPOSED, PATTERNS
from torch import Tensor

from lg.attention import Causal, Documents, Pattern, PrefixLM, SinkWindow, Strided, Tiles, Window, attend
from lg.attention.impl import triton as kernels
from lg.attention.impl.triton import launch, work
from lg.attention.impl.triton.options import Launch, Options, options

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("output", "dq", "dk", "dv")


def values(tiles: Tiles, heads: int, heads_kv: int, width: int, batch: int = 1) -> list[Tensor]:
    """q, k, v, and the gradient of the output."""
    torch.manual_seed(0)
    num_queries, length = tiles.queries[1] - tiles.queries[0], tiles.documents.length
    shapes = [(heads, num_queries), (heads_kv, length), (heads_kv, length), (heads, num_queries)]
    return [torch.randn(batch, *shape, width, device=DEVICE) for shape in shapes]


def run(impl: str, qkvg: list[Tensor], tiles: Tiles, scale: float | None = None) -> list[Tensor]:
    """Output, dq, dk and dv."""
    *inputs, grad = (x.detach().requires_grad_() for x in qkvg)
    out = attend(inputs[0], inputs[1], inputs[2], tiles, impl, scale)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def agrees(qkvg: list[Tensor], tiles: Tiles, scale: float | None = None) -> None:
    """Holds the kernels to the oracle: in float32, the error of float32."""
    got = run("triton", qkvg, tiles, scale)
    want = run("dense", [x.double() for x in qkvg], tiles, scale)
    for name, one, true in zip(NAMES, got, want, strict=True):
        error = (one - true).abs().max()
        assert float(error) <= 2e-5 * max(float(true.abs().max()), 1.0), f"{name} is off by {float(error):.2g}"


LAYOUTS = [Documents(150, attributes={"prefix": (70,)}), Documents(150, (0, 1, 40), {"prefix": (1, 20, 64)})]


@pytest.mark.parametrize("pattern", PATTERNS + COMPOSED, ids=str)
def test_every_pattern(pattern: Pattern) -> None:
    heads_kv = pattern.made_for or 2
    # What is not seen through documents is not seen without them.
    tiles = pattern.tiles(LAYOUTS[1], heads_kv)
    agrees(values(tiles, heads_kv, heads_kv, 16), tiles)


@pytest.mark.parametrize("pattern", [Causal(), SinkWindow(window=60, sinks=3), Strided(16, 1, 3), PrefixLM()], ids=str)
def test_one_document(pattern: Pattern) -> None:
    tiles = pattern.tiles(LAYOUTS[0], 2)
    agrees(values(tiles, 2, 2, 16), tiles)


@pytest.mark.parametrize("queries", [(0, 1), (110, 111), (31, 97), (64, 128)], ids=str)
def test_a_chunk_of_queries(queries: tuple[int, int]) -> None:
    for pattern, documents in zip((SinkWindow(window=60, sinks=3), PrefixLM()), LAYOUTS, strict=True):
        tiles = pattern.tiles(documents, 1, queries)
        agrees(values(tiles, 2, 1, 16), tiles)


@pytest.mark.parametrize("length", [1, 63, 64, 65])
def test_any_length(length: int) -> None:
    tiles = SinkWindow(window=20, sinks=2).tiles(length)
    agrees(values(tiles, 1, 1, 16), tiles)


@pytest.mark.parametrize("width", [1, 40, 64, 80, 96, 128, 256])
def test_any_head_width(width: int) -> None:
    tiles = SinkWindow(window=40, sinks=2).tiles(Documents(70, (0, 9)))
    agrees(values(tiles, 1, 1, width), tiles)


@pytest.mark.parametrize(("heads", "heads_kv", "batch"), [(4, 1, 2), (4, 2, 1)])
@pytest.mark.parametrize("pattern", [SinkWindow(window=40, sinks=2), Strided(16, 1, 3)], ids=str)
def test_heads_and_rows_of_the_batch(pattern: Pattern, heads: int, heads_kv: int, batch: int) -> None:
    tiles = pattern.tiles(Documents(100, (0, 61)), heads_kv)
    agrees(values(tiles, heads, heads_kv, 16, batch), tiles)


@pytest.mark.parametrize("scale", [1.0, -0.5, 0.0])
def test_any_scale(scale: float) -> None:
    tiles = SinkWindow(window=40, sinks=2).tiles(64)
    agrees(values(tiles, 1, 1, 16), tiles, scale)


@pytest.mark.parametrize("blocks", [(16, 64), (64, 16)], ids=str)
@pytest.mark.parametrize("pattern", [SinkWindow(window=40, sinks=2), Strided(16, 1, 3)], ids=str)
def test_any_tile_size(pattern: Pattern, blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    one = Launch(*blocks, num_warps=4, num_stages=1)
    monkeypatch.setattr(kernels, "_options", lambda *args: Options(one, one, one))
    tiles = pattern.tiles(Documents(130, (0, 40)), 2)
    agrees(values(tiles, 2, 2, 16), tiles)


@pytest.mark.parametrize("width", [16, 24])
def test_blocks_may_come_by_the_tensor_memory_accelerator(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("this device has none")
    one = Launch(32, 64, num_warps=4, num_stages=1, tma=1)
    monkeypatch.setattr(kernels, "_options", lambda *args: Options(one, one, one))
    tiles = SinkWindow(window=40, sinks=2).tiles(Documents(100, (0, 40)), 2)
    qkvg = values(tiles, 4, 2, width, batch=2)
    agrees(qkvg, tiles)
    # Heads beside each other, as models lay them; and memory that cannot be described, which comes by pointers.
    agrees([x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkvg], tiles)
    wide = torch.nn.functional.pad(qkvg[1], (0, 3))[..., :width]
    assert launch._describable(qkvg[1])
    assert not launch._describable(wide)
    agrees([qkvg[0], wide, wide, qkvg[3]], tiles)


@pytest.mark.parametrize("pattern", [SinkWindow(window=16, sinks=2), Strided(64, 1, 2)], ids=str)
def test_a_block_of_keys_that_all_see_is_dealt_to_several_programs(
    pattern: Pattern, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_LEAST", 2)
    monkeypatch.setattr(work, "_LONG", 1)
    tiles = pattern.tiles(Documents(290, (0, 270)), 2)
    assert len(work.work(tiles.transposed(64, 64), deal=True).dealt) >= 1
    agrees(values(tiles, 2, 2, 16), tiles)


def test_memory_in_any_order() -> None:
    """[B, L, H, D], a slice of a wider projection, a gradient that is one number for all."""
    tiles = SinkWindow(window=40, sinks=2).tiles(70)
    wide = torch.randn(2, 70, 2 + 1 + 1, 16, device=DEVICE)
    q, k, v = (x.transpose(1, 2) for x in wide.split((2, 1, 1), 2))
    agrees([q, k, v, torch.ones((), device=DEVICE).expand(q.shape)], tiles)
    # The elements of a head do not lie side by side.
    agrees([x.mT.contiguous().mT for x in (q, k, v, q)], tiles)
    assert attend(q, k, v, tiles, "triton").stride() == torch.empty_like(q).stride()


def test_the_log_sum_exp_is_that_of_the_scores() -> None:
    tiles = (Window(30) & ~Window(10)).tiles(Documents(100, (0, 50)))
    q, k, v, _ = values(tiles, 1, 1, 16)
    _, lse = kernels.with_lse(q, k, v, tiles, 0.25)
    index = torch.arange(100, device=DEVICE)
    scores = (q.double() @ k.double().mT * 0.25).masked_fill(~tiles.seen(index[:, None], index), float("-inf"))
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), rtol=0, atol=1e-5)
    assert bool((lse == float("-inf")).any())


def test_every_run_gives_the_same_bits() -> None:
    tiles = SinkWindow(window=40, sinks=2).tiles(Documents(100, (0, 40)))
    qkvg = values(tiles, 2, 1, 16)
    for one, other in zip(run("triton", qkvg, tiles), run("triton", qkvg, tiles), strict=True):
        assert torch.equal(one, other)


GPU_PATTERNS = [
    Causal(),
    Window(1),
    SinkWindow(window=300, sinks=70),
    Strided(64, 2, 4),
    Strided(16, 3, 5, 2, 1),
    PrefixLM(),
    ~Window(40),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("width", "pattern"), [(128, one) for one in GPU_PATTERNS], ids=str)
def test_errors_stay_within_the_budget_on_a_gpu(pattern: Pattern, width: int, dtype: torch.dtype) -> None:
    """At most twice the error of dense attention in the same type, both against float64."""
    for length in (1, 63, 1000, 4096):
        starts = (0,) if length < 1000 else (0, length // 3, length // 2)
        documents = Documents(length, starts, {"prefix": (9, 1, 20)[: len(starts)]})
        for queries in (None, (length // 4, length)):
            _within_the_budget(pattern.tiles(documents, 2, queries), 4, 2, width, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("width", [16, 40, 64, 80, 96, 256])
def test_errors_stay_within_the_budget_at_any_width_on_a_gpu(width: int, dtype: torch.dtype) -> None:
    for groups in (1, 4):
        tiles = SinkWindow(window=300, sinks=70).tiles(Documents(1500, (0, 800)), 2)
        _within_the_budget(tiles, 2 * groups, 2, width, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("pattern", [SinkWindow(window=100, sinks=7), Strided(64, 1, 60)], ids=str)
def test_errors_stay_within_the_budget_where_blocks_of_keys_are_dealt_on_a_gpu(pattern: Pattern) -> None:
    tiles = pattern.tiles(9000, 2)
    launched = options(torch.bfloat16, 128, torch.cuda.get_device_capability())
    assert len(work.work(tiles.transposed(launched.key.q, launched.key.k), deal=True).dealt)
    _within_the_budget(tiles, 4, 2, 128, torch.bfloat16)


def _within_the_budget(tiles: Tiles, heads: int, heads_kv: int, width: int, dtype: torch.dtype) -> None:
    low = [x.to(dtype) for x in values(tiles, heads, heads_kv, width)]
    exact = run("dense", [x.double() for x in low], tiles)
    for name, got, plain, want in zip(NAMES, run("triton", low, tiles), run("dense", low, tiles), exact, strict=True):
        # Where dense attention happens to be exact, as on one token, float32 rounding is still none.
        least = 1e-5 * float(low[3].norm())
        error, budget = float((got - want).norm()), 2 * float((plain - want).norm()) + least
        assert error <= budget, f"{name} of {tiles.pattern}: {error:.3g}, where {budget:.3g} is allowed"
