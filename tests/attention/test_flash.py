"""FlashAttention-4's adapter: its conventions are turned into ours in one place."""

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from young import skip_unless_there

from lg.attention import Causal, Documents, Pattern, SinkWindow, Strided, Window, attend
from lg.attention.impl import dense, flash


@dataclass(frozen=True)
class Nearby(Pattern):
    """A user's window: not lg's class, but the same text."""

    width: int

    def sees(self, q: Any, k: Any, h: Any) -> Any:
        return (k <= q) & (q - k < self.width)


def stand_in_func(
    q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, causal: bool, window_size: tuple[int | None, int | None]
) -> tuple[Tensor, Tensor]:
    """`flash_attn_func` as its documentation has it, in plain torch: [B, L, H, D]; causal from the last query and key
    backwards; the window's left side counts the keys before the query's own."""
    assert causal
    query = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
    key = torch.arange(k.shape[1])
    seen = key <= query
    if window_size[0] is not None:
        seen &= query - key <= window_size[0]
    groups = q.shape[2] // k.shape[2]
    scores = softmax_scale * torch.einsum("bqhd,bkhd->bhqk", q, k.repeat_interleave(groups, 2))
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v.repeat_interleave(groups, 2)), scores.logsumexp(-1)


def stand_in_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
    window_size: tuple[int | None, int | None],
) -> tuple[Tensor, None]:
    """`flash_attn_varlen_func` likewise: [tokens, H, D], each sequence from its place in ``cu_seqlens``."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert (int(cu_seqlens_q[-1]), int(cu_seqlens_k[-1])) == (len(q), len(k))
    assert (max_seqlen_q, max_seqlen_k) == (int(cu_seqlens_q.diff().max()), int(cu_seqlens_k.diff().max()))
    parts = []
    for n in range(len(cu_seqlens_q) - 1):
        own, keys = slice(*cu_seqlens_q[n : n + 2].tolist()), slice(*cu_seqlens_k[n : n + 2].tolist())
        part, _ = stand_in_func(
            q[None, own], k[None, keys], v[None, keys],
            softmax_scale=softmax_scale, causal=causal, window_size=window_size,
        )  # fmt: skip
        parts.append(part[0])
    return torch.cat(parts), None


@pytest.mark.parametrize("pattern", [Causal(), Window(1), Window(30), Nearby(77), Window(5000)], ids=str)
@pytest.mark.parametrize(
    ("documents", "queries"),
    [
        (Documents(300), None),
        (Documents(300), (100, 207)),
        (Documents(300, (0, 90, 91, 200)), None),
        (Documents(300, (0, 90, 91, 200)), (50, 280)),
        (Documents(300, (0, 90, 91, 200)), (110, 190)),
    ],
    ids=str,
)
def test_the_adapter_speaks_the_librarys_conventions(
    monkeypatch: pytest.MonkeyPatch, pattern: Pattern, documents: Documents, queries: tuple[int, int] | None
) -> None:
    library = ModuleType("flash_attn.cute")
    library.flash_attn_func, library.flash_attn_varlen_func = stand_in_func, stand_in_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", library)
    torch.manual_seed(0)
    tiles = pattern.tiles(documents, 2, queries)
    first, end = tiles.queries
    shapes = [(2, 4, end - first, 8), (2, 2, 300, 8), (2, 2, 300, 8)]
    qkv = [torch.randn(s, dtype=torch.float64).requires_grad_() for s in shapes]
    results = []
    for run in (flash.run, dense.run):
        out = run(*qkv, tiles, 0.3)
        results.append((out, *torch.autograd.grad(out, qkv, torch.arange(8.0).expand_as(out))))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


def test_it_knows_a_window_by_its_text() -> None:
    assert [flash._window(p) for p in (Window(1), Nearby(8), Causal(), SinkWindow(8, 0))] == [1, 8, None, None]
    assert [flash._is_causal(p) for p in (Causal(), Window(8))] == [True, False]


@pytest.mark.parametrize(
    ("pattern", "kind", "says"),
    [
        (Strided(), {}, "full causal attention and windows only, not Strided"),
        (Window(8), {"device": "cpu"}, "no kernel for cpu"),
        (Window(8), {"dtype": torch.float32}, "bfloat16 and float16 only, not torch.float32"),
        (Window(8), {"width": 256}, "multiples of 8 up to 128, not 256"),
        (Window(8), {"width": 20}, "multiples of 8 up to 128, not 20"),
    ],
    ids=str,
)
def test_what_it_cannot_do_it_says(
    monkeypatch: pytest.MonkeyPatch, pattern: Pattern, kind: dict[str, Any], says: str
) -> None:
    monkeypatch.setattr(flash, "_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert says in str(flash.refusal(*_queries(**kind), pattern.tiles(Documents(10), 2)))
    assert flash.missing(_queries()[0]) is None


def test_without_the_package_or_on_older_gpus_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "_installed", lambda: False)
    assert "pip install 'lg[gpu]'" in str(flash.missing(_queries()[0]))
    monkeypatch.setattr(flash, "_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert "compute capability 9.0 or later, not 8.6" in str(flash.missing(_queries()[0]))


class _Like:
    """A tensor's kind without its memory: there need be no GPU."""

    def __init__(self, device: str = "cuda", dtype: torch.dtype = torch.bfloat16, width: int = 64) -> None:
        self.device, self.dtype, self.shape = torch.device(device), dtype, torch.Size((1, 4, 10, width))


def _queries(**kind: Any) -> Any:
    return [_Like(**kind)] * 3


# FlashAttention-4's packages warn of what is not ours.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["flash", "flex_flash"])
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("pattern", [Causal(), Window(1), Window(300)], ids=str)
@pytest.mark.parametrize("queries", [None, (444, 901)], ids=str)
def test_on_a_gpu_errors_stay_within_twice_those_of_dense(
    impl: str, width: int, pattern: Pattern, queries: tuple[int, int] | None
) -> None:
    torch.manual_seed(0)
    for documents in (Documents(1000), Documents(1000, (0, 300, 301, 777))):
        tiles = pattern.tiles(documents, 2, queries)
        first, end = tiles.queries
        shapes = [(2, 8, end - first, width), *[(2, 2, 1000, width)] * 2]
        low = [torch.randn(s, device="cuda").bfloat16().requires_grad_() for s in shapes]
        skip_unless_there(impl, *low, tiles)
        exact = [x.detach().double().requires_grad_() for x in low]
        results = []
        for name, qkv in ((impl, low), ("dense", low), ("dense", exact)):
            out = attend(*qkv, tiles, name)
            weight = torch.arange(width, device="cuda").expand_as(out).to(out.dtype)
            results.append((out.detach(), *torch.autograd.grad(out, qkv, weight)))
        for got, plain, want in zip(*results, strict=True):
            # With a window of 1 nothing flows back to q and k but the rounding of float32.
            assert float((got - want).norm()) <= 2 * float((plain - want).norm()) + 1e-5 * float(weight.norm())
