"""Every implementation equals the float64 oracle, and a named one runs or says why it does not."""

import importlib
import logging
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from examples import COMPOSED, PATTERNS
from young import skip_unless_there

from lg.attention import Causal, Documents, Pattern, SinkWindow, Strided, Tiles, Window, attend
from lg.attention.attend import IMPLEMENTATIONS
from lg.attention.impl import gather
from lg.attention.impl.proof import Proven

# The package's name for it is the function's.
attend_module = importlib.import_module("lg.attention.attend")

LAYOUTS = [
    Documents(1, (0,), {"prefix": (1,)}),
    Documents(63, (0, 10), {"prefix": (4, 90)}),
    Documents(100, (0,), {"prefix": (0,)}),
    Documents(500, (0, 100, 101, 350), {"prefix": (7, 1, 200, 65)}),
]


def inputs(length: int, heads: int = 4, heads_kv: int = 2, width: int = 16, batch: int = 2, **kind: Any) -> Any:
    generator = torch.Generator().manual_seed(length)
    shapes = [(batch, h, length, width) for h in (heads, heads_kv, heads_kv)]
    kind = {"dtype": torch.float64, **kind}
    return [torch.randn(s, generator=generator, **kind).requires_grad_() for s in shapes]


def with_gradients(impl: str, q: Any, k: Any, v: Any, tiles: Any) -> list[torch.Tensor]:
    out = attend(q, k, v, tiles, impl)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=out.dtype)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), weight)]


@pytest.mark.parametrize("documents", LAYOUTS, ids=lambda documents: f"{documents.length}-{len(documents.starts)}")
@pytest.mark.parametrize("pattern", PATTERNS + COMPOSED, ids=str)
def test_implementations_equal_the_oracle_in_float64(pattern: Pattern, documents: Documents) -> None:
    heads_kv = pattern.made_for or 2
    tiles = pattern.tiles(documents, heads_kv)
    qkv = inputs(documents.length, 2 * heads_kv, heads_kv)
    oracle = with_gradients("dense", *qkv, tiles)
    checked = 0
    for name, implementation in IMPLEMENTATIONS.items():
        if implementation.refusal(*qkv, tiles) is None:
            for got, want in zip(with_gradients(name, *qkv, tiles), oracle, strict=True):
                torch.testing.assert_close(got, want, rtol=0, atol=1e-11)
            checked += 1
    assert checked >= 2


@pytest.mark.parametrize("pattern", [Causal(), SinkWindow(window=100, sinks=7), Strided(64, 2, 4)], ids=str)
def test_float32_is_within_twice_the_error_of_float32_dense(pattern: Pattern) -> None:
    documents = Documents(1000, (0, 300))
    tiles = pattern.tiles(documents, 2)
    exact = inputs(1000)
    single = [x.detach().float().requires_grad_() for x in exact]
    oracle = with_gradients("dense", *exact, tiles)
    budget = [float((a - b).abs().max()) for a, b in zip(with_gradients("dense", *single, tiles), oracle, strict=True)]
    for got, want, most in zip(with_gradients("auto", *single, tiles), oracle, budget, strict=True):
        assert float((got - want).abs().max()) <= 2 * most + 1e-7


def test_the_oracle_is_plain_attention() -> None:
    q, k, v = inputs(50)
    seen = torch.ones(50, 50, dtype=torch.bool).tril() & ~torch.ones(50, 50, dtype=torch.bool).tril(-8)
    want = torch.nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), attn_mask=seen
    )
    torch.testing.assert_close(attend(q, k, v, Window(8).tiles(Documents(50)), "dense"), want, rtol=0, atol=1e-12)


@dataclass(frozen=True)
class Blind(Pattern):
    """Queries before ``first`` see nothing."""

    first: int

    def sees(self, q: Any, k: Any, h: Any) -> Any:
        return (k <= q) & (q >= self.first)


@pytest.mark.parametrize("impl", ["dense", "gather"])
@pytest.mark.parametrize("first", [1, 70, 1000])
def test_queries_that_see_nothing_give_zero_and_no_nan(impl: str, first: int) -> None:
    out, *gradients = with_gradients(impl, *inputs(100), Blind(first).tiles(Documents(100), 2))
    assert torch.equal(out[:, :, :first], torch.zeros_like(out[:, :, :first]))
    assert all(torch.isfinite(x).all() for x in (out, *gradients))
    if first < 100:
        assert bool((out[:, :, first:] != 0).any())


@pytest.mark.parametrize("impl", ["dense", "gather", "sdpa"])
def test_what_lies_in_another_document_has_no_influence_even_if_it_is_infinite(impl: str) -> None:
    documents = Documents(200, (0, 90))
    q, k, v = (x.detach() for x in inputs(200))
    clean = attend(q, k, v, Causal().tiles(documents), impl)
    k[:, :, :90], v[:, :, :90] = 1e30, 1e30
    dirty = attend(q, k, v, Causal().tiles(documents), impl)
    assert torch.equal(clean[:, :, 90:], dirty[:, :, 90:])


def test_scale_is_what_scores_are_multiplied_by() -> None:
    q, k, v = inputs(80)
    tiles = Window(9).tiles(Documents(80))
    for impl in ("dense", "gather"):
        torch.testing.assert_close(attend(q, k, v, tiles, impl, scale=0.5), attend(q * 2, k, v, tiles, impl))


def test_a_named_implementation_never_falls_back() -> None:
    q, k, v = inputs(100, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"'sdpa' cannot compute this: .*full causal .* Window\(window=8\)"):
        attend(q, k, v, Window(8).tiles(Documents(100)), "sdpa")
    with pytest.raises(ValueError, match=r"'flex' cannot compute this: .*no backward pass on a CPU"):
        attend(q, k, v, Window(8).tiles(Documents(100)), "flex")
    with pytest.raises(ValueError, match=r"'flash' cannot compute this: FlashAttention-4 has no kernel for cpu"):
        attend(q, k, v, Window(8).tiles(Documents(100)), "flash")
    with pytest.raises(ValueError, match=r"'flex_flash' cannot compute this: .*no backward pass on a CPU"):
        attend(q, k, v, Window(8).tiles(Documents(100)), "flex_flash")
    with pytest.raises(ValueError, match=r"'flash9' is unknown; allowed are auto, dense, .*model.init_args.attention"):
        attend(q, k, v, Window(8).tiles(Documents(100)), "flash9")


def test_auto_says_once_what_it_took_and_why(caplog: pytest.LogCaptureFixture) -> None:
    q, k, v = inputs(100)
    with caplog.at_level(logging.INFO, "lg.attention.attend"):
        for _ in range(3):
            attend(q, k, v, Window(77).tiles(Documents(100)))
    told = [r.message for r in caplog.records if "Window(window=77)" in r.message]
    assert told == [
        "attention of Window(window=77) on cpu: gather, since it trains on a CPU, in time linear in what is seen"
    ]


def test_where_nothing_fits_auto_says_what_each_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attend_module, "_CHOICE", {"cpu": {"sdpa": "", "flash": ""}})
    q, k, v = inputs(100)
    says = r"no attention implementation takes Strided.* on cpu: sdpa: it computes full causal .*; flash: it computes"
    with pytest.raises(ValueError, match=says):
        attend(q, k, v, Strided().tiles(Documents(100), 2))


class _Doubled:
    """Gives twice what it should."""

    def refusal(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tiles: Tiles) -> str | None:
        return None

    def run(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, tiles: Tiles, scale: float) -> torch.Tensor:
        return 2 * gather.run(q, k, v, tiles, scale)


def test_what_fails_its_check_is_refused_by_name_and_passed_over_by_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(IMPLEMENTATIONS, "doubled", Proven("doubled", _Doubled()))
    monkeypatch.setattr(attend_module, "_CHOICE", {"cpu": {"doubled": "", "gather": "it is right"}})
    tiles = Window(8).tiles(Documents(100), 2)
    q, k, v = inputs(100, dtype=torch.float32)
    assert torch.equal(attend(q, k, v, tiles), attend(q, k, v, tiles, "gather"))
    with pytest.raises(
        ValueError, match=r"'doubled' cannot compute this: it failed the check of its gradients .* in its"
    ):
        attend(q, k, v, tiles, "doubled")


# FlashAttention-4's packages warn of what is not ours.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["flex", "flex_flash"])
@pytest.mark.parametrize("first", [1, 70, 1000])
def test_on_a_gpu_queries_that_see_nothing_give_zero_and_no_nan(impl: str, first: int) -> None:
    qkv = [x.detach().cuda().requires_grad_() for x in inputs(300, width=64, dtype=torch.bfloat16)]
    tiles = Blind(first).tiles(Documents(300), 2)
    skip_unless_there(impl, *qkv, tiles)
    out = attend(*qkv, tiles, impl)
    gradients = torch.autograd.grad(out, qkv, torch.ones_like(out))
    assert torch.equal(out[:, :, :first], torch.zeros_like(out[:, :, :first]))
    assert all(torch.isfinite(x).all() for x in (out, *gradients))
    assert torch.equal(gradients[0][:, :, :first], torch.zeros_like(out[:, :, :first]))


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (((1, 3, 10, 4), (1, 2, 10, 4), (1, 2, 10, 4)), "H a multiple of G"),
        (((1, 2, 10, 4), (1, 2, 9, 4), (1, 2, 9, 4)), "on 10 tokens, but q has 10 and k and v have 9"),
        (((1, 2, 10, 4), (1, 2, 10, 4), (1, 1, 10, 4)), "do not fit"),
        (((1, 2, 8, 4), (1, 2, 8, 4), (1, 2, 8, 4)), "the tiles are of 10 queries on 10 tokens, but q has 8"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        attend(*(torch.zeros(s) for s in shapes), Causal().tiles(Documents(10)))


def test_types_that_differ_are_refused() -> None:
    q, k, v = inputs(100)
    with pytest.raises(ValueError, match=r"k of torch.float64 on cpu and v of torch.bfloat16 on cpu do not fit"):
        attend(q, k, v.bfloat16(), Causal().tiles(100))


def test_what_are_no_tiles_or_no_heads_is_told() -> None:
    q, k, v = inputs(100)
    with pytest.raises(ValueError, match=r"Window\(window=8\) is not allowed as tiles; they are pattern.tiles"):
        attend(q, k, v, Window(8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"shapes \(100, 16\), .* they are \[batch, heads, tokens, width\]"):
        attend(q[0, 0], k[0, 0], v[0, 0], Window(8).tiles(100))


def test_tiles_of_other_heads_are_refused() -> None:
    q, k, v = inputs(100)
    with pytest.raises(ValueError, match="the tiles are of 3 KV heads, but k and v have 2"):
        attend(q, k, v, Strided().tiles(Documents(100), 3))


@pytest.mark.parametrize("impl", ["triton", *(pytest.param(impl, marks=pytest.mark.gpu) for impl in ("flex", "sdpa"))])
def test_what_is_laid_out_by_tokens_stays_so(impl: str) -> None:
    """A decoder's output projection takes it so; a copy would be kept for the backward pass."""
    where: Any = {"device": "cuda", "dtype": torch.bfloat16} if torch.cuda.is_available() else {}
    q, k, v = (torch.randn(1, 256, h, 64, **where).transpose(1, 2).requires_grad_() for h in (4, 2, 2))
    out = attend(q, k, v, Causal().tiles(256, num_kv_heads=2), impl)
    assert out.transpose(1, 2).is_contiguous()
    want = attend(*(x.detach().contiguous() for x in (q, k, v)), Causal().tiles(256, num_kv_heads=2), impl)
    torch.testing.assert_close(out.detach(), want)
