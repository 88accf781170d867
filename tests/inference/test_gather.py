"""What new tokens ask for is laid end to end, from pages and of their own; the rest of a page goes nowhere."""

from __future__ import annotations

import math
import random
from functools import partial

import pytest
import torch
from examples import PATTERNS
from torch import Tensor

from lg.attention import Causal, Pattern, SinkWindow, Strided, Window
from lg.inference.cache import Cache
from lg.inference.formats import Format, Int4, Int8, Plain
from lg.inference.gather import Kept, Laid
from lg.inference.paged import PagedAttention
from lg.inference.state import Step

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LENGTH = 900
LOCAL = [SinkWindow(window=100, sinks=70), Strided(block=32, local_blocks=2, stride=3), Window(40), Causal()]


def pieces(seed: int) -> list[int]:
    """Lengths that end anywhere, and some where pages do."""
    rng, counts = random.Random(seed), []
    while sum(counts) < LENGTH - 200:
        counts.append(rng.choice([1, 2, 63, 64, 65, 128, 200, rng.randrange(2, 200)]))
    return counts


@pytest.mark.parametrize("pattern", LOCAL, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_each_key_that_is_seen_has_its_place(pattern: Pattern, seed: int) -> None:
    cache = Cache([pattern], num_heads=4, head_width=1, max_length=LENGTH)
    (kind,), slot = cache.kinds, cache.open(LENGTH) or 0
    # Where each token lies, if it does: in each group a room of its own.
    rooms = [torch.full((group.num_pages, 64), math.nan, dtype=torch.float64) for group in kind.groups]
    for count in pieces(seed):
        (piece,) = cache.begin([(slot, count)])
        documents, new = cache.documents(slot, piece.end), torch.arange(piece.first, piece.end).double()
        told = pattern.mask(
            torch.arange(piece.first, piece.end)[:, None], torch.arange(piece.end), torch.arange(4)[:, None, None],
            documents.doc(pattern.attributes, torch.zeros(count, 1, dtype=torch.int64)),
        ).broadcast_to(4, count, piece.end)  # fmt: skip
        laid = Laid(pattern, kind.groups, piece, documents, CPU)
        assert laid.part is not None

        def read(pages: Tensor, places: Tensor, out: Tensor) -> None:
            for number, group in enumerate(kind.groups):
                for page, place in zip(pages[number].tolist(), places[number].tolist(), strict=True):
                    if place >= 0:
                        end = min(place + 64, out.shape[1])
                        out[list(group.heads), place:end, 0] = rooms[number][page, : end - place]

        keys = laid.of(new[None, :, None].expand(4, -1, -1), read).squeeze(2)
        at = laid.part.key_tokens
        assert len(at) == keys.shape[1] == laid.num_keys
        for head in range(4):
            seen = told[head].any(0).nonzero().flatten()
            assert torch.isin(seen, at).all()
            needed = torch.isin(at, seen)
            assert torch.equal(keys[head, needed], at[needed].double())
        # What is laid is a number, seen or not: one that is none would spoil what is multiplied by nothing.
        if laid.has_gaps:
            assert ((keys == at) | (keys == 0)).all()
        else:
            assert torch.equal(keys, at.double().expand(4, -1))
        kept = Kept(kind.groups, piece, CPU)
        for number, room in enumerate(rooms):
            on = kept.pages[:, number] >= 0
            room[kept.pages[on, number].long(), kept.tokens[on].long() % 64] = new[kept.first :][on]
        cache.end([piece])


@pytest.mark.parametrize("form", [Plain(torch.float32), Plain(torch.bfloat16), Int8(), Int4()], ids=str)
def test_kernels_move_what_pytorch_moves(form: Format) -> None:
    """Chunks that end anywhere: pages are written and read by kernels to the last bit as without them."""
    torch.manual_seed(0)
    pattern, counts = LOCAL[1], (67, 33)
    new = [torch.randn(2, 2, count, 8).to(DEVICE) for count in counts]
    told = []
    for impl in ("triton", "gather"):
        cache = Cache([pattern, pattern], 2, 8, 100, formats=(form, form), device=DEVICE)
        layer, slot = PagedAttention(cache, 1, cache.kinds[0], impl=impl), cache.open(100) or 0
        laid = []
        for count, (k, v) in zip(counts, new, strict=True):
            (piece,) = cache.begin([(slot, count)])
            for room, x in ((layer.kind.keys, k), (layer.kind.values, v)):
                laid.append(layer._laid(piece).of(x, partial(layer._lay, room, form)))
            layer._keep(piece, k, v, Step([piece], lambda at, length: (at, at)))
            cache.end([piece])
        told.append([*laid, *layer.kind.keys, *layer.kind.values])
    for one, other in zip(*told, strict=True):
        assert torch.equal(one, other)


def test_a_first_chunk_is_read_where_it_lies() -> None:
    cache = Cache([Causal()], num_heads=1, head_width=2, max_length=LENGTH)
    cache.open(LENGTH)
    (piece,) = cache.begin([(0, 300)])
    laid = Laid(Causal(), cache.kinds[0].groups, piece, cache.documents(0, 300), CPU)
    new = torch.randn(1, 300, 2)
    assert laid.of(new, lambda *_: None) is new


@pytest.mark.parametrize("pattern", PATTERNS[:6], ids=str)
def test_a_plan_is_shared_by_the_layers_of_a_kind(pattern: Pattern, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Laid] = []
    monkeypatch.setattr("lg.inference.paged.Laid", lambda *given: made.append(Laid(*given)) or made[-1])
    cache = Cache([pattern] * 3, num_heads=2, head_width=8, max_length=200)
    slot = cache.open(200, {"prefix": 5}) or 0
    step = Step(cache.begin([(slot, 100)]), lambda at, length: (at, at))
    for layer in range(3):
        PagedAttention(cache, layer, cache.kinds[0]).mix(tuple(torch.randn(3, 1, 2, 100, 8)), step)
    assert len(made) == 1
