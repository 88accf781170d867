"""Ways besides tensors to read a pattern's predicate: as intervals of positions, and as text.

A predicate is written once, with operators (``(k <= q) & (q - k < window)``). Handed tensors, it answers token by
token. Handed `Span`s it answers for whole rectangles of tokens at once, and handed `Symbol`s it says what it is.

>>> query, key = Span(256, 383), Span(0, 127)
>>> query - key < 100
Truth(can=tensor(False), must=tensor(False))
>>> q, k = Symbol.named("q"), Symbol.named("k")
>>> str((q - k < 100) & (k <= q))
'(q - k < 100) & (k <= q)'
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor

Index: TypeAlias = Any
"""What a predicate is handed for ``q``, ``k`` and ``h``: a Tensor of indices, a `Span` or a `Symbol`."""

_ADVICE = (
    "a pattern's predicate must be elementwise: use & | ~ with each comparison in parentheses, "
    "not `and`, `or`, `not`, `if`, `min`, `max` or a chained comparison such as 0 <= k <= q"
)


def _refuse_bool() -> NoReturn:
    raise TypeError(_ADVICE)


def _tensor(value: Tensor | int) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value)


@dataclass(frozen=True, eq=False)
class Truth:
    """A three-valued answer about a rectangle of (query, key) pairs.

    ``can`` is False only where no pair satisfies the predicate; ``must`` is True only where every pair does.
    Both are bool tensors of one shape. Sound always, tight where the predicate's parts do not depend on one another.
    """

    can: Tensor
    must: Tensor

    def __and__(self, other: Truth) -> Truth:
        return Truth(self.can & other.can, self.must & other.must)

    def __or__(self, other: Truth) -> Truth:
        return Truth(self.can | other.can, self.must | other.must)

    def __invert__(self) -> Truth:
        return Truth(~self.must, ~self.can)

    def __bool__(self) -> bool:
        _refuse_bool()


@dataclass(frozen=True, eq=False)
class Span:
    """Integers from ``lo`` to ``hi``, both included, elementwise over tensors of one shape (or plain integers)."""

    lo: Tensor | int
    hi: Tensor | int

    def __add__(self, other: Span | int) -> Span:
        o = _span(other)
        return Span(self.lo + o.lo, self.hi + o.hi)

    __radd__ = __add__

    def __sub__(self, other: Span | int) -> Span:
        o = _span(other)
        return Span(self.lo - o.hi, self.hi - o.lo)

    def __rsub__(self, other: int) -> Span:
        return Span(other - self.hi, other - self.lo)

    def __mul__(self, other: Span | int) -> Span:
        # Operands of a product are non-negative by the rules of a predicate, so bounds multiply with bounds.
        o = _span(other)
        return Span(self.lo * o.lo, self.hi * o.hi)

    __rmul__ = __mul__

    def __floordiv__(self, other: Span | int) -> Span:
        o = _span(other)
        return Span(self.lo // o.hi, self.hi // o.lo)

    def __rfloordiv__(self, other: int) -> Span:
        return Span(other // self.hi, other // self.lo)

    def __mod__(self, other: int) -> Span:
        if not isinstance(other, int):
            raise TypeError("the right side of % in a predicate must be a constant (a field of the pattern)")
        first, last = _tensor(self.lo % other), _tensor(self.hi % other)
        wraps = (_tensor(self.hi - self.lo) >= other) | (first > last)
        return Span(torch.where(wraps, 0, first), torch.where(wraps, other - 1, last))

    def __lt__(self, other: Span | int) -> Truth:
        o = _span(other)
        return Truth(_tensor(self.lo < o.hi), _tensor(self.hi < o.lo))

    def __le__(self, other: Span | int) -> Truth:
        o = _span(other)
        return Truth(_tensor(self.lo <= o.hi), _tensor(self.hi <= o.lo))

    def __gt__(self, other: Span | int) -> Truth:
        return _span(other) < self

    def __ge__(self, other: Span | int) -> Truth:
        return _span(other) <= self

    def __eq__(self, other: object) -> Truth:  # type: ignore[override]
        o = _span(other)
        can = _tensor(self.lo <= o.hi) & _tensor(o.lo <= self.hi)
        return Truth(can, can & _tensor(self.lo == self.hi) & _tensor(o.lo == o.hi))

    def __ne__(self, other: object) -> Truth:  # type: ignore[override]
        return ~(self == other)

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        _refuse_bool()


def _span(value: object) -> Span:
    if isinstance(value, Span):
        return value
    if isinstance(value, int | Tensor):
        return Span(value, value)
    raise TypeError(f"a predicate may combine positions with integers only, not with {value!r}")


def _binary(op: str, level: int, swapped: bool = False) -> Callable[[Symbol, object], Symbol]:
    """An operator that writes itself down, with parentheses only where Python's own precedence needs them."""

    def write(self: Symbol, other: object) -> Symbol:
        left, right = (_symbol(other), self) if swapped else (self, _symbol(other))
        # Comparisons do not chain and `-`, `//`, `%` do not associate to the right: one level tighter there.
        text = f"{left.inside(level + (level == 1))} {op} {right.inside(level + 1)}"
        return Symbol(text, level, left.names | right.names)

    return write


@dataclass(frozen=True, eq=False)
class Symbol:
    """A name, or an expression over names, that writes itself down: the text reading of a predicate.

    ``level`` is the expression's precedence (higher binds tighter) and ``names`` are the names that occur in it.
    """

    text: str
    level: int = 9
    names: frozenset[str] = frozenset()

    @classmethod
    def named(cls, name: str) -> Symbol:
        """A variable."""
        return cls(name, names=frozenset({name}))

    def inside(self, level: int) -> str:
        """The text as an operand of an operator of precedence ``level``."""
        return self.text if self.level >= level else f"({self.text})"

    def __str__(self) -> str:
        return self.text

    __add__, __radd__ = _binary("+", 5), _binary("+", 5, swapped=True)
    __sub__, __rsub__ = _binary("-", 5), _binary("-", 5, swapped=True)
    __mul__, __rmul__ = _binary("*", 6), _binary("*", 6, swapped=True)
    __floordiv__, __rfloordiv__ = _binary("//", 6), _binary("//", 6, swapped=True)
    __mod__ = _binary("%", 6)
    __and__, __rand__ = _binary("&", 4), _binary("&", 4, swapped=True)
    __or__, __ror__ = _binary("|", 2), _binary("|", 2, swapped=True)
    __lt__, __le__ = _binary("<", 1), _binary("<=", 1)
    __gt__, __ge__ = _binary(">", 1), _binary(">=", 1)
    __eq__, __ne__ = _binary("==", 1), _binary("!=", 1)  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]

    def __invert__(self) -> Symbol:
        return Symbol(f"~{self.inside(8)}", 8, self.names)

    def __bool__(self) -> bool:
        _refuse_bool()


def _symbol(value: object) -> Symbol:
    if isinstance(value, Symbol):
        return value
    if isinstance(value, bool):
        return Symbol(str(value))
    if isinstance(value, int):
        return Symbol(str(value), 9 if value >= 0 else 5)
    raise TypeError(f"a predicate may combine positions with integers only, not with {value!r}")
