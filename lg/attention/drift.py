"""Where a predicate asks only how far the key lies behind the query: a reading that makes counting quick.

In such a rectangle of tokens one pair answers for its whole diagonal. A predicate is handed `Drift`s, which know their
bounds, as spans do, and what they gain when query and key both move on by one token.

>>> import torch
>>> q, k = (Drift(Span(x, x + 99), 1) for x in (torch.tensor([0, 1000]), torch.tensor([0, 900])))
>>> ((k <= q) & (q - k < 30)).steady, ((k <= q) & (k >= 50)).steady
(tensor([True, True]), tensor([False,  True]))
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lg.attention.reading import Span, Truth


@dataclass(frozen=True, eq=False)
class Steady:
    """An answer about rectangles of tokens.

    Attributes:
        truth: can, and must, every pair of a rectangle see each other?
        steady: whether the answer is the same along each of its diagonals; of the same shape.
    """

    truth: Truth
    steady: Tensor

    def __and__(self, other: Steady | bool) -> Steady:
        return self._joined(other, operator.and_)

    def __or__(self, other: Steady | bool) -> Steady:
        return self._joined(other, operator.or_)

    __rand__, __ror__ = __and__, __or__

    def __invert__(self) -> Steady:
        return Steady(~self.truth, self.steady)

    def _joined(self, other: Steady | bool, how: Callable[[Truth, Truth], Truth]) -> Steady:
        o = other if isinstance(other, Steady) else _answer(Truth.always(other, self.truth), True)
        truth = how(self.truth, o.truth)
        return Steady(truth, self.steady & o.steady | truth.must | ~truth.can)


def _answer(truth: Truth, steady: bool) -> Steady:
    """What is decided for a whole rectangle is steady, whatever it is made of."""
    return Steady(truth, truth.must | ~truth.can | steady)


def _compared(how: Callable[[Span, Span], Any]) -> Callable[[Drift, Drift | int], Steady]:
    def compare(self: Drift, other: Drift | int) -> Steady:
        o = _drift(other)
        return _answer(how(self.span, o.span), self.gain is not None and self.gain == o.gain)

    return compare


def _divided(how: Callable[[Span, Any], Span]) -> Callable[[Drift, Drift | int], Drift]:
    def divide(self: Drift, other: Drift | int) -> Drift:
        o = _drift(other)
        return Drift(how(self.span, other.span if isinstance(other, Drift) else other), _product(self.gain, o.gain))

    return divide


@dataclass(frozen=True, eq=False)
class Drift:
    """A number made of positions.

    Attributes:
        span: its bounds.
        gain: by how much it grows when query and key both move on by one token; None if that is not known.
    """

    span: Span
    gain: int | None

    def __add__(self, other: Drift | int) -> Drift:
        o = _drift(other)
        return Drift(self.span + o.span, None if self.gain is None or o.gain is None else self.gain + o.gain)

    def __sub__(self, other: Drift | int) -> Drift:
        o = _drift(other)
        return Drift(self.span - o.span, None if self.gain is None or o.gain is None else self.gain - o.gain)

    def __rsub__(self, other: int) -> Drift:
        return _drift(other) - self

    def __mul__(self, other: Drift | int) -> Drift:
        if isinstance(other, int):
            return Drift(self.span * other, None if self.gain is None else self.gain * other)
        return Drift(self.span * other.span, _product(self.gain, other.gain))

    def __rfloordiv__(self, other: int) -> Drift:
        return _drift(other) // self

    __radd__, __rmul__ = __add__, __mul__
    __floordiv__, __mod__ = _divided(operator.floordiv), _divided(operator.mod)
    __lt__, __le__ = _compared(operator.lt), _compared(operator.le)
    __gt__, __ge__ = _compared(operator.gt), _compared(operator.ge)
    __eq__, __ne__ = _compared(operator.eq), _compared(operator.ne)  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


def _drift(value: Drift | int) -> Drift:
    return value if isinstance(value, Drift) else Drift(Span(value, value), 0)


def _product(left: int | None, right: int | None) -> int | None:
    """Products and quotients stay as they are if their operands do; of others no single gain is known."""
    return 0 if left == right == 0 else None
