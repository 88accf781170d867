"""All readings of random predicates, made of what predicates may use, equal brute force."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lg.attention import Documents, Pattern
from lg.testing.patterns import brute_force, check_shards, check_tables, check_text, check_time, check_what_follows


@dataclass(frozen=True)
class Drawn(Pattern):
    """A predicate given as an expression over q, k, h and doc."""

    expression: str

    def sees(self, q: Any, k: Any, h: Any, doc: Any) -> Any:  # type: ignore[override]
        return eval(self.expression, {"q": q, "k": k, "h": h, "doc": doc})


constants = st.integers(0, 40).map(str)
positive = st.integers(1, 40).map(str)
leaves = st.sampled_from(["q", "k", "q", "k", "h", "doc.length", "doc.prefix"]) | constants


def grown(numbers: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Expressions that are never negative, of expressions that are never negative."""
    return st.one_of(
        st.tuples(numbers, numbers).map("({0[0]} + {0[1]})".format),
        st.tuples(numbers, st.integers(0, 5)).map("({0[0]} * {0[1]})".format),
        st.tuples(leaves, leaves).map("({0[0]} * {0[1]})".format),
        st.tuples(numbers, positive).map("({0[0]} // {0[1]})".format),
        st.tuples(numbers, numbers).map("({0[0]} // ({0[1]} + 1))".format),
        st.tuples(numbers, positive).map("({0[0]} % {0[1]})".format),
    )


numbers = st.recursive(leaves, grown, max_leaves=4)
negative = st.tuples(numbers, numbers).map("({0[0]} - {0[1]})".format)
differences = st.one_of(
    negative,
    st.tuples(negative, st.integers(-5, 5)).map("({0[0]} * {0[1]})".format),
    st.tuples(leaves, leaves, leaves, leaves).map("(({0[0]} - {0[1]}) * ({0[2]} - {0[3]}))".format),
    st.tuples(negative, numbers).map("({0[0]} // ({0[1]} + 1))".format),
    st.tuples(negative, positive).map("({0[0]} % {0[1]})".format),
)
comparisons = st.one_of(
    st.tuples(numbers | differences, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), numbers | differences)
    .map("({0[0]} {0[1]} {0[2]})".format)
    # A comparison of constants is a constant to Python, and no predicate.
    .filter(lambda text: any(name in text for name in ("q", "k", "h", "doc"))),
    st.sampled_from(["(k <= q)", "(q - k < 17)", "(k < 5)", "((q - k) % 3 == 0)", "(q // 16 == k // 16)"]),
)
predicates = st.recursive(
    comparisons,
    lambda parts: st.one_of(
        st.tuples(parts, parts).map("({0[0]} & {0[1]})".format),
        st.tuples(parts, parts).map("({0[0]} | {0[1]})".format),
        parts.map("(~{})".format),
    ),
    max_leaves=4,
)


@st.composite
def layouts(draw: st.DrawFn) -> Documents:
    length = draw(st.integers(1, 130))
    starts = sorted({0, *draw(st.lists(st.integers(0, length - 1), max_size=4))})
    return Documents(length, starts, {"prefix": [draw(st.integers(0, length)) for _ in starts]})


def equals_brute_force(expression: str, documents: Documents, block_q: int, block_k: int, draw: random.Random) -> None:
    pattern, heads = Drawn(expression), 2
    check_text(pattern, documents, heads)
    first, end = sorted(draw.sample(range(documents.length + 1), 2))
    for queries in (None, (first, end)):
        tiles = pattern.tiles(documents, heads, queries)
        seen = brute_force(tiles)
        check_tables(tiles, seen, block_q, block_k)
        check_shards(tiles, seen, draw)
    check_what_follows(pattern.tiles(documents, heads), heads)
    check_time(pattern, documents, heads, draw)


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(predicates, layouts(), st.integers(1, 40), st.integers(1, 40), st.randoms(use_true_random=False))
def test_every_reading_of_a_random_predicate_equals_brute_force(
    expression: str, documents: Documents, block_q: int, block_k: int, draw: random.Random
) -> None:
    equals_brute_force(expression, documents, block_q, block_k, draw)


@pytest.mark.slow
@settings(max_examples=4000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(predicates, layouts(), st.integers(1, 40), st.integers(1, 40), st.randoms(use_true_random=False))
def test_so_does_that_of_many_more(
    expression: str, documents: Documents, block_q: int, block_k: int, draw: random.Random
) -> None:
    equals_brute_force(expression, documents, block_q, block_k, draw)


def test_brute_force_is_the_predicate_in_python_itself() -> None:
    """The judge of all others, against three plain loops."""
    documents = Documents(23, (0, 9), {"prefix": (4, 2)})
    expression = "((k <= q) & (q - k < 3 + h)) | (k < doc.prefix)"
    seen = brute_force(Drawn(expression).tiles(documents, 2))
    for h in range(2):
        for i in range(23):
            for j in range(23):
                start, prefix = (0, 4) if i < 9 else (9, 2)
                q, k = i - start, j - start
                same = (i < 9) == (j < 9)
                assert bool(seen[h, i, j]) == (same and ((k <= q and q - k < 3 + h) or k < prefix))


def test_differences_below_zero_are_floored_alike_by_tensors_and_spans() -> None:
    assert torch.equal(torch.tensor([-7]) // 4, torch.tensor([-2]))
    assert torch.equal(torch.tensor([-7]) % 4, torch.tensor([1]))
