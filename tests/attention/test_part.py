"""Parts of a sequence: some ranges of queries against some ranges of keys, as ranks hold and fetch them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from examples import COMPOSED, PATTERNS
from torch import Tensor

from lg.attention import Causal, Documents, Pattern, SinkWindow, Strided, attend
from lg.attention.cost import executed_pairs, visible_pairs
from lg.attention.part import GRID, Held, Part, Split, merged
from lg.attention.tiles import Ranges, TileTable

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTH = 5 * GRID + 70
LAYOUTS = [Documents(LENGTH, attributes={"prefix": (70,)}), Documents(LENGTH, (0, 1, 300), {"prefix": (1, 20, 64)})]
SPLIT = Split((0, 128, 384, 512, LENGTH), (1, 0, 1, 0))


def needed(pattern: Pattern, documents: Documents, heads: int, queries: Ranges) -> Ranges:
    """The blocks of keys that these queries see, and one more for good measure."""
    blocks = list(pairwise([*range(0, documents.length, GRID), documents.length]))
    seen = pattern.tiles(documents, heads).needs(queries, blocks).any(0).any(0)
    seen[1] = True
    return merged([block for block, is_seen in zip(blocks, seen.tolist(), strict=True) if is_seen])


def parts(pattern: Pattern, documents: Documents, heads: int) -> list[Part]:
    """Those of each rank."""
    whole = pattern.tiles(documents, heads)
    return [Part(whole, queries, needed(pattern, documents, heads, queries)) for queries in map(SPLIT.ranges, (0, 1))]


@pytest.mark.parametrize("documents", LAYOUTS, ids=["one document", "packed"])
@pytest.mark.parametrize("pattern", PATTERNS + COMPOSED, ids=str)
def test_tiles_are_those_of_the_whole(pattern: Pattern, documents: Documents) -> None:
    """By what each tile of the table says of the pairs in it."""
    heads = pattern.made_for or 2
    for part in parts(pattern, documents, heads):
        mask = part.mask(torch.device("cpu"))
        assert torch.equal(
            mask, pattern.tiles(documents, heads).mask(torch.device("cpu"))[:, part.query_tokens][..., part.key_tokens]
        )
        for block_q, block_k in ((64, 64), (128, 32)):
            rows, columns = part.table(block_q, block_k), part.transposed(block_q, block_k)
            _says(rows, mask, block_q, block_k)
            _says(columns, mask.mT, block_k, block_q)


def _says(table: TileTable, mask: Tensor, block_q: int, block_k: int) -> None:
    padded = torch.zeros(table.heads, table.num_rows * block_q, table.num_columns * block_k, dtype=torch.bool)
    padded[:, : mask.shape[1], : mask.shape[2]] = mask
    tiles = padded.view(table.heads, table.num_rows, block_q, table.num_columns, block_k).transpose(2, 3).flatten(3)
    listed = torch.zeros(table.heads * table.num_rows, table.num_columns, dtype=torch.int64)
    full_pointer, full = table.full_lists()
    row = torch.arange(len(listed))
    listed[row.repeat_interleave(full_pointer.diff()), full] += 1
    assert bool((tiles.flatten(0, 1).all(-1) | (listed == 0)).all())
    listed[row.repeat_interleave(table.partial_pointer.diff()), table.partial_index] += 1
    assert int(listed.max()) <= 1
    assert bool((~tiles.flatten(0, 1).any(-1) | (listed == 1)).all())


@pytest.mark.parametrize("impl", ["dense", "gather", "triton", "flex"])
@pytest.mark.parametrize("documents", LAYOUTS, ids=["one document", "packed"])
@pytest.mark.parametrize("pattern", [Causal(), SinkWindow(window=100, sinks=3), Strided(16, 1, 3)], ids=str)
def test_attention_is_that_of_the_whole(pattern: Pattern, documents: Documents, impl: str) -> None:
    torch.manual_seed(0)
    q, k, v, grad = (torch.randn(1, 2, LENGTH, 16, device=DEVICE) for _ in range(4))
    # FlexAttention has no backward pass on a CPU.
    differentiated = impl != "flex" or DEVICE == "cuda"
    whole = [x.double().requires_grad_() for x in (q, k, v)]
    out = attend(*whole, pattern.tiles(documents, 2), "dense")
    for part in parts(pattern, documents, 2):
        held, fetched = part.query_tokens, part.key_tokens
        (want,) = torch.autograd.grad(out[:, :, held], whole[0], grad[:, :, held].double(), retain_graph=True)
        wants = torch.autograd.grad(out[:, :, held], whole[1:], grad[:, :, held].double(), retain_graph=True)
        own = [q[:, :, held], k[:, :, fetched], v[:, :, fetched]]
        own = [x.clone().requires_grad_(differentiated) for x in own]
        got = attend(own[0], own[1], own[2], part, impl)
        torch.testing.assert_close(got.double(), out[:, :, held], rtol=0, atol=3e-5)
        if differentiated:
            dq, *others = torch.autograd.grad(got, own, grad[:, :, held])
            torch.testing.assert_close(dq.double(), want[:, :, held], rtol=0, atol=3e-5)
            for one, true in zip(others, wants, strict=True):
                torch.testing.assert_close(one.double(), true[:, :, fetched], rtol=0, atol=3e-5)
                true = true.clone()
                true[:, :, fetched] = 0
                assert not true.any(), "what is not fetched has a gradient"


@pytest.mark.parametrize("documents", LAYOUTS, ids=["one document", "packed"])
def test_full_causal_attention_is_that_of_the_whole_by_torch(documents: Documents) -> None:
    torch.manual_seed(0)
    whole = [torch.randn(1, heads, LENGTH, 16, device=DEVICE).double().requires_grad_() for heads in (4, 2, 2)]
    out, grad = (
        attend(*whole, Causal().tiles(documents, 2), "dense"),
        torch.randn(1, 4, LENGTH, 16, device=DEVICE).double(),
    )
    for part in parts(Causal(), documents, 2):
        held, fetched = part.query_tokens, part.key_tokens
        wants = torch.autograd.grad(out[:, :, held], whole, grad[:, :, held], retain_graph=True)
        own = [
            x.detach()[:, :, at].float().requires_grad_() for x, at in zip(whole, (held, fetched, fetched), strict=True)
        ]
        got = attend(own[0], own[1], own[2], part, "sdpa")
        torch.testing.assert_close(got.double(), out[:, :, held], rtol=0, atol=3e-5)
        grads = torch.autograd.grad(got, own, grad[:, :, held].float())
        for one, true, at in zip(grads, wants, (held, fetched, fetched), strict=True):
            torch.testing.assert_close(one.double(), true[:, :, at], rtol=0, atol=3e-5)


def test_work_is_counted_once() -> None:
    documents = LAYOUTS[1]
    for pattern in (Causal(), SinkWindow(window=100, sinks=3)):
        whole = pattern.tiles(documents, 2)
        for count in (visible_pairs, executed_pairs):
            assert int(count(whole)) == sum(int(count(part)) for part in parts(pattern, documents, 2))


def test_a_split_tells_who_holds_what() -> None:
    assert SPLIT.length == LENGTH
    assert SPLIT.ranges(0) == ((128, 384), (512, LENGTH))
    assert Held(SPLIT, 1).ranges == ((0, 128), (384, 512))
    both = torch.cat([Held(SPLIT, rank).tokens for rank in (0, 1)]).sort().values
    assert torch.equal(both, torch.arange(LENGTH))


@pytest.mark.parametrize(
    ("edges", "owners"),
    [((0,), ()), ((128, 256), (0,)), ((0, 100, 200), (0, 1)), ((0, 256, 128), (0, 1)), ((0, 128, 256), (0, 2))],
)
def test_what_is_no_split_is_refused(edges: tuple[int, ...], owners: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="not allowed"):
        Split(edges, owners)
