"""lg's kernels for single tokens over pages, against float64: in Triton's interpreter, or on a GPU."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
import torch
from examples import COMPOSED, PATTERNS
from torch import Tensor

from lg.attention import Causal, Documents, Pattern, PrefixLM, SinkWindow, Strided
from lg.attention.impl.triton import paged
from lg.inference.formats import Format, Int4, Int8, Plain

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PAGE = 64
CPU = torch.device("cpu")


@dataclass
class Problem:
    """Sequences, and their pages strewn over a room in which all else is NaN."""

    q: Tensor
    k: list[Tensor]
    v: list[Tensor]
    pages: paged.Pages
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    slots: Tensor
    lengths: Tensor
    prefixes: list[int]

    def got(self, pattern: Pattern, shares: int | None = None) -> Tensor:
        text, scale = pattern.text, self.q.shape[-1] ** -0.5
        return paged.attention(
            self.q, self.keys, self.values, self.pages, self.slots, self.lengths, text, scale, shares
        )  # fmt: skip

    def true(self, pattern: Pattern) -> Tensor:
        """In float64, key by key."""
        out = torch.zeros(self.q.shape, dtype=torch.float64)
        for row, (k, v) in enumerate(zip(self.k, self.v, strict=True)):
            if not len(k):
                continue
            groups = self.q.shape[1] // k.shape[1]
            at = torch.full((len(k),), len(k) - 1)
            documents = Documents(len(k), attributes={"prefix": (self.prefixes[row],)})
            doc = documents.doc(pattern.attributes, torch.zeros_like(at))
            for head in range(self.q.shape[1]):
                seen = pattern.mask(at, torch.arange(len(k)), head // groups, doc)
                scores = k[:, head // groups].double() @ self.q[row, head].double().cpu() * self.q.shape[-1] ** -0.5
                if bool(seen.any()):
                    out[row, head] = scores.masked_fill(~seen, -math.inf).softmax(0) @ v[:, head // groups].double()
        return out


def problem(
    lengths: list[int], heads: int = 2, groups: int = 1, width: int = 16,
    forms: tuple[Format, Format] | None = None, dtype: torch.dtype = torch.float32, all_alike: bool = True,
    vectors: tuple[list[Tensor], list[Tensor]] | None = None,
) -> Problem:  # fmt: skip
    """Sequences of these lengths, one a slot, the last slot's first; lists of pages in any order. ``vectors``: keys and
    values that are not drawn.
    """
    torch.manual_seed(0)
    rng = random.Random(0)
    forms = forms or (Plain(dtype), Plain(dtype))
    num_slots, most = len(lengths), -(-max(lengths) // PAGE) + 1
    of_group = [tuple(range(heads))] if all_alike else [(one,) for one in range(heads)]
    rooms = [form.empty(1, num_slots * most * heads, width, CPU) for form in forms]
    for room in rooms:
        for x in room:
            x.fill_(math.nan if x.is_floating_point() else 255)
    # What is beyond an entry's count is not read either.
    logical, physical = (torch.full((num_slots, len(of_group), most), 2**20, dtype=torch.int32) for _ in range(2))
    counts = torch.zeros(num_slots, len(of_group), dtype=torch.int32)
    of_head = torch.zeros(heads, 3, dtype=torch.int32)
    slots = list(range(num_slots))[::-1]
    keys = [torch.randn(length, heads, width).to(dtype) for length in lengths]
    values = [torch.randn(length, heads, width).to(dtype) for length in lengths]
    keys, values = vectors or (keys, values)
    for group, members in enumerate(of_group):
        for i, head in enumerate(members):
            of_head[head] = torch.tensor([group, num_slots * most * len(members) * group + i, len(members)])
        free = rng.sample(range(num_slots * most), num_slots * most)
        for row, slot in enumerate(slots):
            pages = rng.sample(range(-(-lengths[row] // PAGE)), -(-lengths[row] // PAGE))
            counts[slot, group] = len(pages)
            for entry, page in enumerate(pages):
                place = free.pop()
                logical[slot, group, entry], physical[slot, group, entry] = page, place
                for head in members:
                    number = torch.full((PAGE,), int(of_head[head, 1]) + place * len(members))
                    for form, room, x in zip(forms, rooms, (keys[row], values[row]), strict=True):
                        part = x[page * PAGE : (page + 1) * PAGE, head]
                        form.write(room, 0, number[: len(part)], torch.arange(len(part)), part)
    prefixes = [length // 2 for length in lengths]
    told = torch.tensor([[prefixes[slots.index(slot)] for slot in range(num_slots)]], dtype=torch.int32)
    return Problem(
        torch.randn(num_slots, heads * groups, width).to(DEVICE, dtype),
        keys,
        values,
        paged.Pages(*(x.to(DEVICE) for x in (logical, physical, counts, of_head, told))),
        *(tuple(x[0].to(DEVICE) for x in room) for room in rooms),
        torch.tensor(slots, dtype=torch.int32, device=DEVICE),
        torch.tensor(lengths, dtype=torch.int32, device=DEVICE),
        prefixes,
    )


def agrees(given: Problem, pattern: Pattern, shares: int | None = None, budget: float = 2e-6) -> None:
    got, true = given.got(pattern, shares).double().cpu(), given.true(pattern)
    error = float((got - true).abs().max() / true.abs().max().clamp(min=1e-9))
    assert error <= budget, f"off by {error:.2g}"


@pytest.mark.parametrize("pattern", PATTERNS + COMPOSED, ids=str)
def test_every_pattern(pattern: Pattern) -> None:
    heads = pattern.made_for or 2
    agrees(problem([150, 65], heads, all_alike=not pattern.heads_differ), pattern)


@pytest.mark.parametrize("groups", [1, 3, 4, 8, 17])
def test_query_heads_share_a_kv_head(groups: int) -> None:
    agrees(problem([130, 64], 1, groups), SinkWindow(window=70, sinks=3))


@pytest.mark.parametrize("shares", [1, 2, 3, 7])
def test_any_number_of_shares(shares: int) -> None:
    # A place in the batch that is empty, and lists that are too short for all shares.
    agrees(problem([64 * 11 + 5, 0, 1, 64 * 4 + 1], 1, 2), Causal(), shares)


def test_a_page_may_be_read_in_parts() -> None:
    given, text = problem([150, 70], 1, 2), Strided(block=16, local_blocks=2, stride=3).text
    args = given.q, given.keys, given.values, given.pages, given.slots, given.lengths, text, 0.25
    whole, parts = (paged.attention(*args, 2, paged.Launch(tokens, 4, 2, 1)) for tokens in (64, 16))
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("width", [1, 24, 64, 80, 128, 256])
def test_any_width(width: int) -> None:
    agrees(problem([100, 3], 1, 2, width), Causal())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    agrees(problem([200, 64], 1, 4, 64, dtype=dtype), Causal(), 2, BUDGETS[dtype])


BLOCKS = Strided(block=32, local_blocks=2, stride=2, head_step=0)
# The interpreter cuts off what bfloat16 has no bits for.
BUDGETS = {torch.bfloat16: 2.0**-7, torch.float16: 1e-3}
FORMS = [(Int8(), Int8()), (Int4(), Int4()), (Int8(), Int4()), (Int4(), Plain(torch.float32))]


@pytest.mark.parametrize("width", [16, 80, 128])
@pytest.mark.parametrize("forms", FORMS, ids=str)
def test_codes_are_read_as_pytorch_reads_them(forms: tuple[Format, Format], width: int) -> None:
    agrees(as_kept(problem([150, 0, 65], 2, 3, width, forms), forms), BLOCKS, 2, budget=5e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [16, 80, 128])
@pytest.mark.parametrize("forms", [*FORMS[:3], (Plain(torch.float16), Int8()), (Int4(), Plain(torch.float16))], ids=str)
def test_codes_are_read_by_queries_of_16_bits(forms: tuple[Format, Format], width: int, dtype: torch.dtype) -> None:
    given = as_kept(problem([150, 0, 65], 2, 3, width, forms, dtype), forms)
    agrees(given, BLOCKS, 2, BUDGETS[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("form", [Int8(), Int4()], ids=str)
def test_rows_of_codes_may_begin_at_any_byte(form: Format, dtype: torch.dtype) -> None:
    agrees(as_kept(problem([70], 1, 2, 6, (form, form), dtype), (form, form)), Causal(), 1, 1e-3)


@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 1e5), (torch.float16, 6e4), (torch.float16, 1e-4)])
@pytest.mark.parametrize("form", [Int8(), Int4()], ids=str)
def test_queries_may_be_large_or_small(form: Format, dtype: torch.dtype, size: float) -> None:
    torch.manual_seed(2)
    keys = [torch.randn(130, 1, 32) / size]
    given = problem([130], 1, 4, 32, (form, form), dtype, vectors=(keys, [torch.randn(130, 1, 32)]))
    # One of a size, and one that sees all alike, beside others.
    given.q *= torch.tensor([size / 5, 0.0, size / 10, size / 5], device=DEVICE)[:, None].to(dtype)
    agrees(as_kept(given, (form, form)), Causal(), 2, BUDGETS[dtype])


def one_against_many(
    gap: float, length: int, heavy: Tensor, light: Tensor, form: Format, dtype: torch.dtype
) -> Problem:
    """The first token of each query head has a score that is greater by ``gap``, a power of two, than all others'."""
    keys = torch.zeros(length, 1, len(heavy))
    keys[0] = 1.0
    given = problem(
        [length], 1, 2, len(heavy), (form, form), dtype, vectors=([keys], [torch.cat((heavy[None], light))[:, None]])
    )
    given.q[:] = gap * math.log(2) / len(heavy) ** 0.5
    return as_kept(given, (form, form))


@pytest.mark.parametrize("form", [Int8(), Int4()], ids=str)
@pytest.mark.parametrize(("dtype", "small", "large"), [(torch.bfloat16, 1e-6, 1e2), (torch.float16, 1e-2, 1e4)])
def test_steps_of_one_block_may_differ_widely(form: Format, dtype: torch.dtype, small: float, large: float) -> None:
    torch.manual_seed(3)
    # What many unlikely tokens add is as much as what the likely one does; then one that is all alike.
    for gap in (32.0, 26.0, 20.0, 0.0, -30.0):
        for heavy in (torch.randn(32) * small, torch.ones(32) * small):
            given = one_against_many(gap, 64, heavy, torch.randn(63, 32) * large, form, dtype)
            agrees(given, Causal(), 1, BUDGETS[dtype])
    sizes = 10 ** torch.empty(150, 1, 1).uniform_(-6, 2)
    vectors = [torch.randn(150, 1, 32)], [torch.randn(150, 1, 32) * sizes]
    given = problem([150], 1, 4, 32, (form, form), dtype, vectors=vectors)
    agrees(as_kept(given, (form, form)), Causal(), 2, BUDGETS[dtype])


@pytest.mark.parametrize("form", [Int8(), Int4()], ids=str)
@pytest.mark.parametrize("gap", [0.0, 14.0, 24.0])
def test_many_small_weights_are_not_lost(form: Format, gap: float) -> None:
    torch.manual_seed(4)
    # The likely token says something in its first feature only: in the others, the many are heard.
    heavy = torch.zeros(16)
    heavy[0] = 1.0
    given = one_against_many(gap, 64 * 48, heavy, 1 + torch.rand(64 * 48 - 1, 16), form, torch.float16)
    got, true = (x.double().cpu()[..., 1:] * 2**gap / 64 for x in (given.got(Causal(), 1), given.true(Causal())))
    # float16 has an end, below which the output is rounded.
    end = 2.0**-25 * 2**gap / 64
    assert float((got - true).abs().max()) <= BUDGETS[torch.float16] * float(true.abs().max()) + end


def as_kept(given: Problem, forms: tuple[Format, Format]) -> Problem:
    """With what is kept, instead of what it was made from."""
    given.k, given.v = ([x.float() for x in vectors] for vectors in (given.k, given.v))
    for row, (slot, length) in enumerate(zip(given.slots.tolist(), given.lengths.tolist(), strict=True)):
        for x, room, form in ((given.k, given.keys, forms[0]), (given.v, given.values, forms[1])):
            for entry in range(int(given.pages.counts[slot, 0])):
                page, place = (int(x[slot, 0, entry]) for x in (given.pages.logical, given.pages.physical))
                for head, (_, base, step) in enumerate(given.pages.heads.tolist()):
                    on_host = tuple(x[None].cpu() for x in room)
                    read = form.read(on_host, 0, torch.tensor([base + place * step]), torch.float32)[0]
                    end = min(length, (page + 1) * PAGE)
                    x[row][page * PAGE : end, head] = read[: end - page * PAGE]
    return given


@pytest.mark.parametrize("form", [Plain(torch.float32), Plain(torch.bfloat16), Int8(), Int4()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [80, 128])
def test_what_is_written_is_what_pytorch_writes(form: Format, dtype: torch.dtype, width: int) -> None:
    torch.manual_seed(1)
    count, heads, pages = 9, 2, 4
    # Large and small, equal features, and a vector far from 0.
    x = torch.randn(2, count, heads, width) * torch.logspace(-4, 3, count)[:, None, None]
    x[:, 4], x[:, 5, 1], x[:, 6, 0] = 0.0, 3.3, 100 + torch.rand(width)
    x = x.to(dtype)
    of_head = torch.tensor([[0, i, heads] for i in range(heads)], dtype=torch.int32)
    of_token, tokens = torch.tensor([0, 3, 1, -1, 2, 1, 0, 0, 2]), torch.tensor([0, 1, 65, 2, 63, 64, 127, 5, 4])
    expected, got = ([form.empty(1, pages * heads, width, CPU) for _ in range(2)] for _ in range(2))
    for part, room in zip(x, expected, strict=True):
        for head in range(heads):
            kept = of_token >= 0
            form.write(room, 0, of_token[kept] * heads + head, tokens[kept] % PAGE, part[kept, head])
    rooms = [tuple(x[0].to(DEVICE) for x in room) for room in got]
    # Laid out head by head, as projections are not.
    k, v = x.to(DEVICE).transpose(1, 2).contiguous().transpose(1, 2)
    paged.write(k, v, *rooms, *(x.to(DEVICE, torch.int32) for x in (of_head, of_token[:, None], tokens)))
    for room, want in zip(rooms, expected, strict=True):
        for one, other in zip(room, want, strict=True):
            assert torch.equal(one.cpu(), other[0])


def test_the_device_is_busy_whatever_the_batch() -> None:
    # Few lists are shared by many programs, but none reads fewer pages than it is worth.
    assert paged._shares(8, 2048, 264) == 29
    assert paged._shares(8, 20, 264) == 5
    assert paged._shares(264, 2048, 264) == 1
    assert paged._shares(32 * 32, 2048, 264) == 1
    for lists in (1, 7, 40, 270, 300, 1000):
        waves = lists * paged._shares(lists, 2048, 264) / 264
        assert waves / math.ceil(waves) > 0.4


@pytest.mark.parametrize(
    ("dtype", "width", "pattern", "reason"),
    [
        (torch.float64, 64, Causal(), "bfloat16, float16, float32, not float64"),
        (torch.float32, 257, Causal(), "widths up to 256, not 257"),
        (torch.float32, 64, SinkWindow(window=5_000_000_000), "does not fit the 32 bits"),
    ],
)
def test_what_is_not_taken_is_refused(dtype: torch.dtype, width: int, pattern: Pattern, reason: str) -> None:
    refusal = paged.refusal(dtype, width, DEVICE, pattern.text)
    assert refusal is not None and reason in refusal
    assert paged.refusal(torch.float32, 64, DEVICE, PrefixLM().text) is None
