"""A predicate made into a Triton function says what its text says: floors, shapes and documents included."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from examples import COMPOSED, PATTERNS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lg.attention import Causal, Documents, Pattern, PerHead, Tiles, Window
from lg.attention.impl.triton.predicate import function, refusal
from lg.attention.reading import DocumentSymbol, PredicateError, Symbol

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton 3.9 warns where it is not told.
FUSED = {"enable_fp_fusion": True}


@triton.jit
def answers(  # type: ignore[no-untyped-def]
    OUT, POSITION, START, ATTRIBUTES, stride, length,
    SEES: tl.constexpr, M: tl.constexpr, N: tl.constexpr, KEYS_DOWN: tl.constexpr,
):  # fmt: skip
    """What each token sees of each other in the head of this program, asked as the attention kernels ask it."""
    h = tl.program_id(0)
    down, across = tl.program_id(1) * M + tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    if KEYS_DOWN:
        query, key = across, down
    else:
        query, key = down, across
    token = tl.minimum(query, length - 1)
    k = key - tl.load(START + token)
    seen = SEES(tl.load(POSITION + token), k, h, ATTRIBUTES, stride, token)
    tl.store(OUT + (h * length + query) * length + key, seen.to(tl.int8), mask=(query < length) & (key < length))


@triton.jit
def counts(OUT, ATTRIBUTES, h, SEES: tl.constexpr, M: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many of N keys each of M queries sees: the answer must have the shape that they broadcast to."""
    query, key = tl.arange(0, M), tl.arange(0, N)
    seen = SEES(query[:, None], key[None, :], h, ATTRIBUTES, M, query[:, None])
    tl.store(OUT + query, tl.sum(seen.to(tl.int32), 1))


def by_triton(text: str, attributes: Sequence[str], documents: Documents, heads: int, keys_down: bool) -> Tensor:
    """What every token sees of every other: bool [heads, L, L]; of other documents' keys it means nothing."""
    length, of_token = documents.length, documents.of_token.long()
    of_document = [documents.attribute(name)[of_token].int() for name in attributes]
    out = torch.full((heads, length, length), -1, dtype=torch.int8, device=DEVICE)
    where = (documents.positions, documents.start_of_token, torch.stack([documents.positions, *of_document])[1:])
    across = triton.next_power_of_2(length)
    # Triton's interpreter is quick with large tiles, its compiler with small ones.
    down = across if DEVICE == "cpu" else 16
    grid = (heads, triton.cdiv(length, down))
    answers[grid](out, *(x.to(DEVICE) for x in where), length, length, function(text), down, across, keys_down, **FUSED)
    return out.cpu() == 1


def layouts(pattern: Pattern) -> list[Documents]:
    packings = ((200, (0,)), (255, (0, 1, 78, 170)))
    names = [name for name in pattern.attributes if name != "length"]
    return [
        Documents(length, starts, {name: [(i * 37 + 20) % 50 for i in range(len(starts))] for name in names})
        for length, starts in packings
    ]


@pytest.mark.parametrize("pattern", [*PATTERNS, *COMPOSED], ids=str)
def test_every_pattern_sees_in_triton_what_it_sees_in_torch(pattern: Pattern) -> None:
    assert refusal(pattern.text) is None
    for documents, keys_down in zip(layouts(pattern), (False, True), strict=True):
        tiles = Tiles(pattern, documents, pattern.made_for or 3)
        token, head = torch.arange(documents.length), torch.arange(tiles.heads)[:, None, None]
        want = tiles.seen(token[:, None], token, head)
        same = documents.of_token[:, None] == documents.of_token
        got = by_triton(pattern.text, pattern.attributes, documents, tiles.heads, keys_down)
        assert torch.equal(got & same, want)


leaves = st.sampled_from(["q", "k", "q", "k", "h", "doc.length", "doc.prefix"]) | st.integers(0, 40).map(str)
positive = st.integers(1, 40).map(str)
never_negative = st.recursive(
    leaves,
    lambda parts: st.one_of(
        st.tuples(parts, parts).map("({0[0]} + {0[1]})".format),
        st.tuples(leaves, leaves).map("({0[0]} * {0[1]})".format),
        st.tuples(parts, positive).map("({0[0]} // {0[1]})".format),
        st.tuples(parts, positive).map("({0[0]} % {0[1]})".format),
    ),
    max_leaves=3,
)
numbers = st.recursive(
    never_negative | st.tuples(never_negative, never_negative).map("({0[0]} - {0[1]})".format),
    lambda parts: st.one_of(
        st.tuples(parts, st.sampled_from("+-"), parts).map("({0[0]} {0[1]} {0[2]})".format),
        st.tuples(parts, st.integers(-5, 5)).map("({0[0]} * ({0[1]}))".format),
        st.tuples(parts, positive).map("({0[0]} // {0[1]})".format),
        st.tuples(parts, never_negative).map("({0[0]} // ({0[1]} + 1))".format),
        st.tuples(parts, positive).map("({0[0]} % {0[1]})".format),
    ),
    max_leaves=4,
)
comparisons = st.tuples(numbers, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), numbers).map(
    "({0[0]} {0[1]} {0[2]})".format
)
predicates = st.recursive(
    comparisons | st.sampled_from(["(k <= q)", "((q - k) % 3 == 0)", "(q // 16 == k // 16)"]),
    lambda parts: st.one_of(
        st.tuples(parts, st.sampled_from("&|"), parts).map("({0[0]} {0[1]} {0[2]})".format),
        # Of a comparison of constants, which Python makes True or False, `~` is no predicate.
        parts.filter(lambda text: "q" in text and "k" in text).map("(~{})".format),
    ),
    max_leaves=4,
)


def read_as_text(expression: str) -> tuple[str, list[str]]:
    """The text reading of an expression, and the attributes that it asks for."""
    names = {name: Symbol.named(name) for name in "qkh"}
    symbol = eval(expression, {**names, "doc": DocumentSymbol()})
    # Of constants alone it is a constant.
    used = symbol.names if isinstance(symbol, Symbol) else ()
    return str(symbol), sorted(name[4:] for name in used if name.startswith("doc."))


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(predicates)
def test_a_random_predicate_with_negative_numbers_in_it_says_the_same(expression: str) -> None:
    documents, heads = Documents(50, (0, 29), {"prefix": (11, 40)}), 2
    text, attributes = read_as_text(expression)
    got = by_triton(text, attributes, documents, heads, False)
    q = documents.positions.long()[:, None]
    k, h = torch.arange(50) - documents.start_of_token[:, None], torch.arange(heads)[:, None, None]
    doc = documents.doc(attributes, documents.of_token.long()[:, None])
    # Of keys before the document's start the answer means nothing, and what divides may be 0.
    want = torch.as_tensor(eval(text, {"q": q, "k": k.clamp(min=0), "h": h, "doc": doc}))
    assert (got == want)[(k >= 0).expand_as(got)].all()


@pytest.mark.parametrize("divisor", [1, 2, 3, 4, 7, 64, 1000])
def test_differences_below_zero_are_floored(divisor: int) -> None:
    for text in (f"(q - k) // {divisor} == -1", f"(q - k) % {divisor} == 3", f"(q - k) // (k % 1 + {divisor}) < -2"):
        q, k = torch.arange(70)[:, None], torch.arange(70)
        got = by_triton(text, (), Documents(70), 1, False)
        assert torch.equal(got[0], eval(text, {"q": q, "k": k}))


@pytest.mark.parametrize(
    "text", ["True", "False", "h < 3", "h >= 3", "q < 3", "k < 3", "doc.prefix > 3", "(k < 3) & True", "(k < 3) | True"]
)
def test_what_leaves_an_index_out_still_answers_for_all(text: str) -> None:
    out = torch.full((32,), -1, dtype=torch.int32, device=DEVICE)
    prefix = torch.arange(32, dtype=torch.int32, device=DEVICE)
    counts[(1,)](out, prefix, 2, function(text), 32, 16, **FUSED)
    q, k = torch.arange(32)[:, None], torch.arange(16)
    want = torch.as_tensor(eval(text, {"q": q, "k": k, "h": torch.tensor(2), "doc": SimpleNamespace(prefix=q)}))
    assert out.tolist() == want.broadcast_to(32, 16).sum(1).tolist()


def test_attributes_are_in_alphabetical_order() -> None:
    documents = Documents(40, (0, 25), {"b": (3, 1), "a": (7, 9)})
    text = "(k < doc.b) | (q - k > doc.length - doc.a)"
    got = by_triton(text, ("a", "b", "length"), documents, 1, False)[0]
    for start, end, b, a in ((0, 25, 3, 7), (25, 40, 1, 9)):
        k = torch.arange(end - start)
        want = (k < b) | (k[:, None] - k > end - start - a)
        assert torch.equal(got[start:end, start:end], want)


def test_many_heads_with_patterns_of_their_own_are_no_expression_too_deep() -> None:
    pattern = PerHead(patterns=(Causal(), Window(5)), heads=(0, 1) * 100)
    assert refusal(pattern.text) is None
    got = by_triton(pattern.text, (), Documents(20), 2, False)
    k = torch.arange(20)
    want = (k[:, None] >= k) & ((k[:, None] - k < 5) | (torch.arange(2)[:, None, None] == 0))
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("(k <= q) & (q - k < 4294967296)", "`q - k < 4294967296`: 4294967296 does not fit the 32 bits"),
        ("(k <= q) & (q % 3000000000 == 0)", "`q % 3000000000`: 3000000000 does not fit"),
        ("k + (-2147483649) < q", "`k + (-2147483649)`: -2147483649 does not fit"),
        ("(k <= q) & (max(q, k) < 3)", "`max(q, k)`: "),
        ("(k <= q) & (k < z)", "`z`: "),
        ("(k <= q) & (k < 1.5)", "`1.5`: "),
        ("0 <= k <= q", "`0 <= k <= q`: "),
        ("k <= q and k < 3", "`k <= q and k < 3`: "),
        ("k < doc.my name", "`k < doc.my name`: "),
        ("q - k", "`q - k`: "),
        ("q << 2 == k", "`q << 2`: "),
    ],
)
def test_what_triton_cannot_say_is_refused_and_named(text: str, expression: str) -> None:
    told = refusal(text)
    assert told is not None
    assert told.startswith(expression)
    with pytest.raises(PredicateError) as error:
        function(text)
    assert str(error.value) == told


def test_constants_up_to_32_bits_are_said() -> None:
    text = "(q - k < 2147483647) & (k > -2147483648) & (q // 2147483647 == 0) & (q % 2147483648 == q)"
    assert by_triton(text.rpartition(" & ")[0], (), Documents(9), 1, False).all()
    with pytest.raises(PredicateError, match="`q % 2147483648`"):
        function(text)


def test_one_text_is_one_function_and_another_is_another() -> None:
    assert function("k <= q") is function("k <= q")
    assert function("k <= q").__name__ != function("k < q").__name__


def test_what_can_be_said_is_known_without_triton() -> None:
    script = """
import sys
from lg.attention import Window
from lg.attention.impl.triton.predicate import refusal
assert refusal(Window(3).text) is None
assert refusal(Window(2**31).text)
assert "triton" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
