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


class PredicateError(ValueError):
    """A predicate says what cannot be read in every way; the message shows the expression."""


def _refuse_bool(text: str = "a comparison") -> NoReturn:
    raise PredicateError(f"{text} is used as a single yes or no; {_ADVICE}")


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

    def __and__(self, other: Truth | bool) -> Truth:
        o = other if isinstance(other, Truth) else Truth.always(other, self)
        return Truth(self.can & o.can, self.must & o.must)

    def __or__(self, other: Truth | bool) -> Truth:
        o = other if isinstance(other, Truth) else Truth.always(other, self)
        return Truth(self.can | o.can, self.must | o.must)

    def __invert__(self) -> Truth:
        return Truth(~self.must, ~self.can)

    def __rand__(self, other: bool) -> Truth:
        return self & Truth.always(other, self)

    def __ror__(self, other: bool) -> Truth:
        return self | Truth.always(other, self)

    @classmethod
    def always(cls, value: bool, like: Truth) -> Truth:
        """A constant, of the shape of another answer."""
        same = torch.full_like(like.can, value)
        return cls(same, same)

    def __bool__(self) -> bool:
        _refuse_bool()


@dataclass(frozen=True, eq=False)
class Span:
    """Integers from ``lo`` to ``hi``, both included, elementwise over tensors of one shape (or plain integers)."""

    lo: Tensor | int
    hi: Tensor | int

    def __add__(self, other: Span | int) -> Span:
        o = _span(other)
        return type(self)(self.lo + o.lo, self.hi + o.hi)

    __radd__ = __add__

    def __sub__(self, other: Span | int) -> Span:
        o = _span(other)
        return type(self)(self.lo - o.hi, self.hi - o.lo)

    def __rsub__(self, other: int) -> Span:
        return type(self)(other - self.hi, other - self.lo)

    def __mul__(self, other: Span | int) -> Span:
        o = _span(other)
        if isinstance(other, int) and other >= 0:
            return type(self)(self.lo * other, self.hi * other)
        return type(self)(*_outermost(self.lo * o.lo, self.lo * o.hi, self.hi * o.lo, self.hi * o.hi))

    __rmul__ = __mul__

    def __floordiv__(self, other: Span | int) -> Span:
        # Divisors are above 0 by the rules of a predicate.
        if isinstance(other, int):
            return type(self)(self.lo // other, self.hi // other)
        o = other
        return type(self)(*_outermost(self.lo // o.lo, self.lo // o.hi, self.hi // o.lo, self.hi // o.hi))

    def __rfloordiv__(self, other: int) -> Span:
        return type(self)(other, other) // self

    def __mod__(self, other: int) -> Span:
        if not isinstance(other, int):
            raise PredicateError("the right side of % in a predicate must be a constant (a field of the pattern)")
        first, last = _tensor(self.lo % other), _tensor(self.hi % other)
        wraps = (_tensor(self.hi - self.lo) >= other) | (first > last)
        return type(self)(torch.where(wraps, 0, first), torch.where(wraps, other - 1, last))

    def __lt__(self, other: Span | int) -> Truth:
        o = _span(other)
        return Truth(_tensor(self.lo < o.hi), _tensor(self.hi < o.lo))

    def __le__(self, other: Span | int) -> Truth:
        o = _span(other)
        return Truth(_tensor(self.lo <= o.hi), _tensor(self.hi <= o.lo))

    def __gt__(self, other: Span | int) -> Truth:
        o = _span(other)
        return Truth(_tensor(self.hi > o.lo), _tensor(self.lo > o.hi))

    def __ge__(self, other: Span | int) -> Truth:
        o = _span(other)
        return Truth(_tensor(self.hi >= o.lo), _tensor(self.lo >= o.hi))

    def __eq__(self, other: object) -> Truth:  # type: ignore[override]
        o = _span(other)
        can = _tensor(self.lo <= o.hi) & _tensor(o.lo <= self.hi)
        return Truth(can, can & _tensor(self.lo == self.hi) & _tensor(o.lo == o.hi))

    def __ne__(self, other: object) -> Truth:  # type: ignore[override]
        return ~(self == other)

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        _refuse_bool()


def _outermost(*bounds: Tensor | int) -> tuple[Tensor | int, Tensor | int]:
    """Least and greatest of the results at a rectangle's corners."""
    if all(isinstance(x, int) for x in bounds):
        return min(bounds), max(bounds)
    least = greatest = _tensor(bounds[0])
    for x in bounds[1:]:
        least, greatest = torch.minimum(least, _tensor(x)), torch.maximum(greatest, _tensor(x))
    return least, greatest


@dataclass(frozen=True, eq=False)
class Reach(Span):
    """A span of plain integers that refuses what kernels, which count in 32 bits, would get wrong."""

    def __post_init__(self) -> None:
        for bound in (int(self.lo), int(self.hi)):
            if not -(2**31) <= bound < 2**31:
                raise OverflowError(f"{bound:,}")


def _span(value: object) -> Span:
    if isinstance(value, Span):
        return value
    if isinstance(value, int | Tensor):
        return Span(value, value)
    raise PredicateError(f"a predicate may combine positions with integers only, not with {value!r}")


def _binary(op: str, swapped: bool = False) -> Callable[[Symbol, object], Symbol]:
    """An operator that writes itself down, with parentheses only where Python's own precedence needs them.

    Of constants, such as the number of one head, it writes the result.
    """
    level, takes, gives = _OPERATORS[op]

    def write(self: Symbol, other: object) -> Symbol:
        left, right = (_symbol(other, op, self), self) if swapped else (self, _symbol(other, op, self))
        # Comparisons do not chain and `-`, `//`, `%` do not associate to the right: one level tighter there.
        text = f"{left.inside(level + (level == 1))} {op} {right.inside(level + 1)}"
        if left.truth != takes or right.truth != takes:
            kind = "comparisons" if takes else "positions and integers"
            raise PredicateError(f"`{text}`: {op} combines {kind} only")
        if op == "%" and right.names:
            raise PredicateError(f"`{text}`: the right side of % must be a constant (a field of the pattern)")
        if op in ("//", "%") and (right.least is None or right.least < 1):
            raise PredicateError(f"`{text}`: what divides must be above 0, whatever the tokens")
        if not left.names and not right.names:
            return _symbol(eval(text), op, self)
        blocks = left.blocks | right.blocks
        if op == "//" and not right.names and left.names & {"q", "k"}:
            blocks |= {int(right.text)}
        names = left.names | right.names
        return Symbol(text, level, names, gives, blocks, _stays_behind(op, text, left, right), _least(op, left, right))

    return write


def _stays_behind(op: str, text: str, left: Symbol, right: Symbol) -> bool:
    """Whether the form alone shows that nothing behind the query is seen."""
    if op == "&":
        return left.causal or right.causal
    if op == "|":
        return left.causal and right.causal
    return text in ("k <= q", "k < q", "q >= k", "q > k", "k == q", "q == k")


def _least(op: str, left: Symbol, right: Symbol) -> int | None:
    """The least that a number can be, as far as its form shows."""
    if left.least is None or right.least is None or op == "-":
        return 0 if op == "%" else None
    if op == "+":
        return left.least + right.least
    if op == "*":
        return left.least * right.least if min(left.least, right.least) >= 0 else None
    return 0 if op == "%" or (op == "//" and left.least >= 0) else None


# Precedence, whether the operands must be truths, and whether the result is one.
_OPERATORS = {
    "+": (5, False, False),
    "-": (5, False, False),
    "*": (6, False, False),
    "//": (6, False, False),
    "%": (6, False, False),
    "&": (4, True, True),
    "|": (2, True, True),
    **{op: (1, False, True) for op in ("<", "<=", ">", ">=", "==", "!=")},
}


def _refused(written: str) -> Callable[..., NoReturn]:
    """An operator that Python has and a predicate has not."""

    def refuse(self: Symbol, *others: object) -> NoReturn:
        text = written.format(self.inside(9), *others)
        raise PredicateError(f"`{text}` is not allowed in a predicate; allowed are + - * // %, comparisons and & | ~")

    return refuse


@dataclass(frozen=True, eq=False)
class Symbol:
    """A name, or an expression over names, that writes itself down: the text reading of a predicate.

    Attributes:
        text: the expression.
        level: its precedence; higher binds tighter.
        names: the names that occur in it.
        truth: whether it is a comparison, or made of some, rather than a number.
        blocks: the constants by which something made of ``q`` or ``k`` is divided with ``//``.
        causal: whether its form alone shows that it is False where ``k > q``.
        least: the least that a number can be, as far as its form shows; None if it may be below 0.
    """

    text: str
    level: int = 9
    names: frozenset[str] = frozenset()
    truth: bool = False
    blocks: frozenset[int] = frozenset()
    causal: bool = False
    least: int | None = None

    @classmethod
    def named(cls, name: str) -> Symbol:
        """A variable, never negative; no document is empty."""
        return cls(name, names=frozenset({name}), least=int(name == "doc.length"))

    def inside(self, level: int) -> str:
        """The text as an operand of an operator of precedence ``level``."""
        return self.text if self.level >= level else f"({self.text})"

    def __str__(self) -> str:
        return self.text

    __add__, __radd__ = _binary("+"), _binary("+", swapped=True)
    __sub__, __rsub__ = _binary("-"), _binary("-", swapped=True)
    __mul__, __rmul__ = _binary("*"), _binary("*", swapped=True)
    __floordiv__, __rfloordiv__ = _binary("//"), _binary("//", swapped=True)
    __mod__, __rmod__ = _binary("%"), _binary("%", swapped=True)
    __and__, __rand__ = _binary("&"), _binary("&", swapped=True)
    __or__, __ror__ = _binary("|"), _binary("|", swapped=True)
    __lt__, __le__ = _binary("<"), _binary("<=")
    __gt__, __ge__ = _binary(">"), _binary(">=")
    __eq__, __ne__ = _binary("=="), _binary("!=")  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]

    __truediv__, __rtruediv__ = _refused("{0} / {1}"), _refused("{1} / {0}")
    __pow__, __rpow__ = _refused("{0} ** {1}"), _refused("{1} ** {0}")
    __xor__, __rxor__ = _refused("{0} ^ {1}"), _refused("{1} ^ {0}")
    __lshift__, __rshift__ = _refused("{0} << {1}"), _refused("{0} >> {1}")
    __neg__, __abs__ = _refused("-{0}"), _refused("abs({0})")
    __int__, __float__, __index__ = _refused("int({0})"), _refused("float({0})"), _refused("int({0})")
    __divmod__, __matmul__ = _refused("divmod({0}, {1})"), _refused("{0} @ {1}")
    __iter__, __len__ = _refused("iter({0})"), _refused("len({0})")
    __getitem__ = _refused("{0}[{1}]")

    def __getattr__(self, name: str) -> NoReturn:
        # Copying, pickling and torch look for names of this kind, and go on without them.
        if name.startswith("__"):
            raise AttributeError(name)
        _refused(f"{{0}}.{name}")(self)

    def __invert__(self) -> Symbol:
        if not self.truth:
            raise PredicateError(f"`~{self.inside(8)}`: ~ negates comparisons only")
        if not self.names:
            return _symbol(self.text == "False", "~", self)
        return Symbol(f"~{self.inside(8)}", 8, self.names, True, self.blocks)

    def __bool__(self) -> bool:
        _refuse_bool(f"`{self.text}`")


class DocumentSymbol:
    """What stands for ``doc`` in the text reading: any attribute asked of it is a variable."""

    def __getattr__(self, name: str) -> Symbol:
        if name.startswith("__"):
            raise AttributeError(name)
        return Symbol.named(f"doc.{name}")


def _symbol(value: object, op: str, beside: Symbol) -> Symbol:
    if isinstance(value, Symbol):
        return value
    if isinstance(value, bool):
        return Symbol(str(value), truth=True, causal=not value)
    if isinstance(value, int):
        return Symbol(str(value), 9 if value >= 0 else 5, least=value)
    raise PredicateError(f"`{beside.text}` {op} {value!r}: a predicate may combine positions with integers only")
