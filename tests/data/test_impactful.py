"""Impactful tokens are those that gain most; what is kept holds them, in order and within the budget."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lg.data import Bytes, Document
from lg.data.impactful import Impactful, drawn, impact, top


def test_impact_is_the_softmax_of_the_change() -> None:
    generator = np.random.default_rng(0)
    base, extended = generator.normal(size=(2, 50)) * 20 - 1000
    base[0] = extended[0] = np.nan
    shares = impact(base, extended)
    want = np.exp(extended[1:] - base[1:]) / np.exp(extended[1:] - base[1:]).sum()
    np.testing.assert_allclose(shares, [0, *want])


def test_the_top_share_of_a_document() -> None:
    values = np.array([0.1, 0.5, 0.2, 0.5, 0.0, 0.1])
    assert top(values, 0.5).tolist() == [False, True, True, True, False, False]
    assert top(values, 0.01).tolist() == [False, True, False, False, False, False]
    assert top(values, 1).all()


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=20), budget=st.integers(1, 80), data=st.data(),
    seed=st.integers(0, 5),
)  # fmt: skip
def test_what_is_kept_is_impactful_and_fits(lengths: list[int], budget: int, data: Any, seed: int) -> None:
    marked = np.array(data.draw(st.lists(st.booleans(), min_size=sum(lengths), max_size=sum(lengths))))
    starts = np.cumsum([0, *lengths[:-1]])
    kept = drawn(marked, starts, budget, np.random.default_rng(seed))
    holds = np.array([marked[first : first + n].any() for first, n in zip(starts, lengths, strict=True)])
    assert not (kept & ~holds).any()
    left = budget - sum(n for n, one in zip(lengths, kept, strict=True) if one)
    assert left >= 0
    # Nothing that would fit is left behind.
    assert all(n > left for n, one, other in zip(lengths, kept, holds, strict=True) if other and not one)


def test_dense_sentences_are_kept_more_often() -> None:
    marked = np.array([True, True, True, True, True, False, False, False])
    first = sum(int(drawn(marked, np.array([0, 4]), 4, np.random.default_rng(seed))[0]) for seed in range(4000))
    assert first / 4000 == pytest.approx(0.8, abs=0.03)


def gains(letter: str) -> Any:
    """Scores under which one letter is what gains."""
    return lambda tokens: (tokens == ord(letter)).astype(np.float64)


def nothing(tokens: Any) -> Any:
    return np.zeros(len(tokens))


def test_the_whole_document_is_drawn_from() -> None:
    text = b"plain one. " * 20 + b"xxxxxxxxx. " * 20
    documents = [Document("short", b"no."), Document("long", text * 2 + b"rest.")]
    how = Impactful(length=len(text), budget=110, share=0.2)
    found = list(how.select(documents, Bytes(), nothing, gains("x")))
    assert [kept.name for kept in found] == ["long#0", "long#1"]
    for kept in found:
        # The sentences of the second half, each with the full stop and the space before it.
        assert kept.text == b" xxxxxxxxx." * 10 and kept.num_tokens == 110
        assert kept.num_impactful >= 40
    again = list(how.select(documents, Bytes(), nothing, gains("x")))
    assert found == again


def test_order_is_that_of_the_document() -> None:
    text = b"".join(b"%03dx. " % n for n in range(100))
    [kept] = Impactful(length=len(text), budget=200, seed=3).select([Document("d", text)], Bytes(), nothing, gains("x"))
    numbers = [int(word[:3]) for word in kept.text.split()]
    assert numbers == sorted(numbers) and 20 < len(numbers) < 40 and max(numbers) > 60


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"length": 1, "budget": 1}, "--length: 1 "),
        ({"length": 8, "budget": 9}, "--budget: 9 .* from 1 to --length, 8"),
        ({"share": 0}, "--share: 0 "),
        ({"share": 1.5}, "--share: 1.5 "),
    ],
)
def test_refusals(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Impactful(**options)
