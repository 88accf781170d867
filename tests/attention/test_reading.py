"""Intervals and symbols say of a predicate what tensors say."""

import random

import pytest
import torch

from lg.attention.reading import PredicateError, Span, Symbol

EXPRESSIONS = {
    "q - k < 7": lambda q, k: q - k < 7,
    "3 - k >= q": lambda q, k: 3 - k >= q,
    "q + k == 11": lambda q, k: q + k == 11,
    "q != k + 2": lambda q, k: q != k + 2,
    "q * 2 > k * k": lambda q, k: q * 2 > k * k,
    "q // 4 - k // 4 < 2": lambda q, k: q // 4 - k // 4 < 2,
    "20 // (k + 1) > q // 3": lambda q, k: 20 // (k + 1) > q // 3,
    "k % 5 == 0": lambda q, k: k % 5 == 0,
    "(k + 3) % 7 < 2": lambda q, k: (k + 3) % 7 < 2,
    "(k // 3 + 1) % 4 != 1": lambda q, k: (k // 3 + 1) % 4 != 1,
    "(k <= q) & ((q - k < 5) | (k < 2))": lambda q, k: (k <= q) & ((q - k < 5) | (k < 2)),
    "~(k < 3) | (q >= 9)": lambda q, k: ~(k < 3) | (q >= 9),
}
TIGHT = [text for text in EXPRESSIONS if "&" not in text and "|" not in text]


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_a_span_is_never_wrong_and_tight_where_parts_are_independent(text: str) -> None:
    predicate = EXPRESSIONS[text]
    draw = random.Random(0)
    for _ in range(300):
        q_lo, k_lo = draw.randrange(30), draw.randrange(30)
        q_hi, k_hi = q_lo + draw.randrange(6), k_lo + draw.randrange(6)
        seen = predicate(torch.arange(q_lo, q_hi + 1)[:, None], torch.arange(k_lo, k_hi + 1))
        seen = seen.expand(q_hi - q_lo + 1, k_hi - k_lo + 1)
        truth = predicate(Span(q_lo, q_hi), Span(k_lo, k_hi))
        assert bool(truth.can) >= bool(seen.any())
        assert bool(truth.must) <= bool(seen.all())
        if text in TIGHT[:4]:
            assert (bool(truth.can), bool(truth.must)) == (bool(seen.any()), bool(seen.all()))


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_a_symbol_writes_what_was_written(text: str) -> None:
    assert str(EXPRESSIONS[text](Symbol.named("q"), Symbol.named("k"))) == text


def test_a_symbol_keeps_the_order_of_subtraction_and_division() -> None:
    q, k = Symbol.named("q"), Symbol.named("k")
    assert str(q - (k - 1)) == "q - (k - 1)"
    assert str((q - k) - 1) == "q - k - 1"
    assert str(8 // (q // (k + 1) + 1)) == "8 // (q // (k + 1) + 1)"
    assert str(q > -1) == "q > -1"
    assert str(q - -1) == "q - (-1)"
    assert eval(str(q - -1 < 3), {"q": 1}) is True


def test_spans_of_tensors_answer_elementwise() -> None:
    truth = Span(torch.tensor([0, 128]), torch.tensor([127, 255])) >= Span(torch.tensor([128, 0]), 200)
    assert truth.can.tolist() == [False, True]
    assert truth.must.tolist() == [False, False]


@pytest.mark.parametrize(
    "predicate",
    [
        lambda q, k: k <= q and q - k < 4,
        lambda q, k: k <= q or q - k < 4,
        lambda q, k: not (k <= q),
        lambda q, k: 0 <= k <= q,
        lambda q, k: max(q, k) < 3,
        lambda q, k: q if k < 3 else k,
    ],
)
@pytest.mark.parametrize("operands", [(Span(0, 3), Span(0, 3)), (Symbol.named("q"), Symbol.named("k"))])
def test_words_and_chains_are_refused_with_advice(predicate: object, operands: tuple[object, object]) -> None:
    with pytest.raises(PredicateError, match=r"use & \| ~ with each comparison in parentheses"):
        predicate(*operands)  # type: ignore[operator]


def test_only_integers_combine_with_positions() -> None:
    for q in (Span(0, 1), Symbol.named("q")):
        with pytest.raises(PredicateError, match="integers only"):
            q + 1.5
