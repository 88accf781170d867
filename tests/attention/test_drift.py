"""A rectangle is called steady only where its answer is the same along each diagonal."""

from typing import Any

import pytest
import torch

from lg.attention.drift import Drift, Steady
from lg.attention.reading import Span

PREDICATES: dict[str, tuple[Any, bool]] = {
    "a window": (lambda q, k, h: (k <= q) & (q - k < 5), True),
    "every third": (lambda q, k, h: (q - k) % 3 == 0, True),
    "twice the distance": (lambda q, k, h: 2 * q - k * 2 > 7, True),
    "by the head": (lambda q, k, h: (q - k) // (h + 1) != 2, True),
    "sinks": (lambda q, k, h: k < 10, False),
    "a chunk": (lambda q, k, h: q // 4 == k // 4, False),
    "from the right": (lambda q, k, h: 10 - k < 5, False),
    "a product": (lambda q, k, h: q * k < 90, False),
    "sinks or a window": (lambda q, k, h: (k < 10) | (q - k < 5), False),
    "none at all": (lambda q, k, h: (k < 0) & (q // 4 == k // 4), True),
    "not that": (lambda q, k, h: ~((k < 0) & (q // 4 == k // 4)), True),
    "with a constant": (lambda q, k, h: True & (q >= k) | False, True),
}


@pytest.mark.parametrize("name", PREDICATES)
def test_steady(name: str) -> None:
    predicate, steady = PREDICATES[name]
    lo, hi = torch.tensor([0]), torch.tensor([15])
    tokens = Drift(Span(lo, hi), 1)
    seen = predicate(tokens, tokens, Drift(Span(torch.tensor([2]), torch.tensor([2])), 0))
    assert isinstance(seen, Steady)
    assert seen.steady.item() is steady
    q, k = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    answers = predicate(q, k, 2)
    same = all(len(set(answers.diagonal(n).tolist())) == 1 for n in range(-15, 16))
    assert same or not steady
    assert bool(seen.truth.can) >= bool(answers.any())
    assert bool(seen.truth.must) <= bool(answers.all())


def test_what_is_decided_in_a_rectangle_is_steady_there() -> None:
    k = Drift(Span(torch.tensor([0, 4, 16]), torch.tensor([3, 19, 31])), 1)
    assert (k < 10).steady.tolist() == [True, False, True]
