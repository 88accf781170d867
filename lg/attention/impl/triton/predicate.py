"""A pattern's predicate as a Triton function, made from its text: a pattern of three lines needs no Triton of its own.

The text is walked once more with `Symbol`, which knows what may be negative, and written as one statement an operation.
torch floors `//` and `%`, Triton truncates: powers of two become shifts and masks, which floor, and other divisors of
what may be negative are mended.

>>> print(written("(k <= q) & ((q - k) % 3 == 0) & (k // 64 < 5)", "sees"))
def sees(q, k, h, attributes, stride, token):
    # (k <= q) & ((q - k) % 3 == 0) & (k // 64 < 5)
    x0 = k <= q
    x1 = q - k
    x2 = x1 % 3
    x3 = tl.where(x2 < 0, x2 + 3, x2)
    x4 = x3 == 0
    x5 = x0 & x4
    x6 = k >> 6
    x7 = x6 < 5
    x8 = x5 & x7
    return x8
<BLANKLINE>
"""

from __future__ import annotations

import ast
import hashlib
import linecache
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, TypeAlias

from lg.attention.reading import PredicateError, Symbol


def refusal(text: str) -> str | None:
    """Why Triton cannot say the predicate of this text, naming the sub-expression; None if it can.

    >>> from lg.attention import Window
    >>> refusal(Window(5_000_000_000).text)
    '`q - k < 5000000000`: 5000000000 does not fit the 32 bits that Triton counts positions in'
    """
    try:
        written(text, "sees")
    except PredicateError as error:
        return str(error)
    return None


@cache
def function(text: str) -> Any:
    """The predicate as a Triton function, which a kernel is handed as a ``tl.constexpr`` and calls.

    It takes ``(q, k, h, attributes, stride, token)``: indices ``q`` and ``k`` counted from the start of the document,
    int32 tensors that broadcast with one another; the KV head, an int32 scalar; and, read only by a predicate that asks
    for ``doc``, a pointer to int32 [attributes, stride], of which row i is what `Pattern.attributes` calls the i-th for
    each token of the sequence, and tokens of the document, within the sequence, of a shape that broadcasts too. It
    returns int1 of the shape that ``q`` and ``k`` broadcast to. Where ``q`` or ``k`` is negative, as for a key of
    another document, the answer means nothing.

    Args:
        text: `Pattern.text`.

    Raises:
        PredicateError: if Triton cannot say it, as `refusal` says.
    """
    import triton
    import triton.language as tl

    # Triton knows functions by their names: two predicates in one kernel must differ in theirs.
    name = f"sees_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    source, file = written(text, name), f"<lg predicate {name}>"
    # Triton reads a function's source as `inspect` does, from this cache.
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    namespace: dict[str, Any] = {"__name__": __name__, "tl": tl}
    exec(compile(source, file, "exec"), namespace)
    return triton.jit(namespace[name])


def written(text: str, name: str) -> str:
    """The source of the Triton function of this name.

    Raises:
        PredicateError: if Triton cannot say it, as `refusal` says.
    """
    body = _Body()
    try:
        said = body.say(ast.parse(text, mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise PredicateError(f"`{text}`: it cannot be read back from its text ({error})") from error
    if said.symbol.text != text or not said.symbol.truth:
        raise PredicateError(f"`{text}`: it reads back from its text as `{said.symbol.text}`")
    # A predicate that leaves an index out still answers for all.
    answer = said.name if {"q", "k"} <= said.symbol.names else f"{said.name} & (q == q) & (k == k)"
    attributes = sorted(name[4:] for name in said.symbol.names if name.startswith("doc."))
    loads = [f"{_local(x)} = tl.load(attributes + {i} * stride + token)" for i, x in enumerate(attributes)]
    lines = [f"# {text}", *loads, *body.lines, f"return {answer}"]
    return f"def {name}(q, k, h, attributes, stride, token):\n" + "".join(f"    {line}\n" for line in lines)


class _Said(NamedTuple):
    """An expression: the variable that holds it, or the constant; and what is known of it."""

    name: str
    symbol: Symbol


@dataclass
class _Body:
    """The statements of a function, each of which keeps what one operation gives in a variable."""

    _variables: dict[str, str] = field(default_factory=dict)

    @property
    def lines(self) -> list[str]:
        return [f"{name} = {operation}" for operation, name in self._variables.items()]

    def keep(self, operation: str) -> str:
        """The variable that holds what the operation gives; the same for the same operation."""
        return self._variables.setdefault(operation, f"x{len(self._variables)}")

    def say(self, node: ast.expr) -> _Said:
        """The expression, after the statements that it needs."""
        match node:
            case ast.Name(id="q" | "k" | "h" as name):
                return _Said(name, Symbol.named(name))
            case ast.Attribute(value=ast.Name(id="doc"), attr=name):
                return _Said(_local(name), Symbol.named(f"doc.{name}"))
            case ast.Constant(value=bool() as truth):
                # A tensor, so that nothing is left to Python, to which `~True` is -2.
                return _Said("(q == q)" if truth else "(q != q)", Symbol(str(truth), truth=True, causal=not truth))
            case ast.Constant(value=int() as value):
                return _Said(str(value), Symbol(str(value), least=value))
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as value)):
                return _Said(f"({-value})", Symbol(str(-value), 5, least=-value))
            case ast.UnaryOp(op=ast.Invert(), operand=operand):
                part = self.say(operand)
                return _Said(self.keep(f"~{part.name}"), ~part.symbol)
            case ast.BinOp(left=left, op=op, right=right) | ast.Compare(left=left, ops=[op], comparators=[right]) if (
                type(op) in _OPERATIONS
            ):
                return self._combined(*_OPERATIONS[type(op)], self.say(left), self.say(right))
        raise PredicateError(f"`{ast.unparse(node)}`: Triton is told nothing of this kind")

    def _combined(self, combine: _Combine, write: _Write, left: _Said, right: _Said) -> _Said:
        symbol = combine(left.symbol, right.symbol)
        for part in (left.symbol, right.symbol):
            if not (part.names or part.truth or -(2**31) <= int(part.text) < 2**31):
                raise PredicateError(
                    f"`{symbol.text}`: {part.text} does not fit the 32 bits that Triton counts positions in"
                )
        return _Said(self.keep(write(self, left, right)), symbol)


_Combine: TypeAlias = Callable[[Symbol, Symbol], Symbol]
_Write: TypeAlias = Callable[[_Body, _Said, _Said], str]


def _local(attribute: str) -> str:
    """The variable that holds an attribute of the document."""
    return f"doc_{attribute}"


def _as_it_is(sign: str) -> _Write:
    return lambda body, left, right: f"{left.name} {sign} {right.name}"


def _floored(body: _Body, left: _Said, right: _Said) -> str:
    if _is_power_of_two(right.symbol):
        return f"{left.name} >> {int(right.name).bit_length() - 1}"
    divisor = _divisor(body, right)
    if _never_negative(left.symbol):
        return f"{left.name} // {divisor}"
    quotient, rest = body.keep(f"{left.name} // {divisor}"), body.keep(f"{left.name} % {divisor}")
    return f"tl.where({rest} < 0, {quotient} - 1, {quotient})"


def _rest(body: _Body, left: _Said, right: _Said) -> str:
    if _is_power_of_two(right.symbol):
        return f"{left.name} & {int(right.name) - 1}"
    if _never_negative(left.symbol):
        return f"{left.name} % {right.name}"
    rest = body.keep(f"{left.name} % {right.name}")
    return f"tl.where({rest} < 0, {rest} + {right.name}, {rest})"


def _is_power_of_two(symbol: Symbol) -> bool:
    return not symbol.names and int(symbol.text).bit_count() == 1


def _never_negative(symbol: Symbol) -> bool:
    return symbol.least is not None and symbol.least >= 0


def _divisor(body: _Body, right: _Said) -> str:
    # Above 0 wherever the answer is of use; but a compiler may do as it likes with all of a kernel that divides by 0.
    return body.keep(f"tl.maximum({right.name}, 1)") if right.symbol.names else right.name


_OPERATIONS: dict[type[ast.AST], tuple[_Combine, _Write]] = {
    ast.Add: (operator.add, _as_it_is("+")),
    ast.Sub: (operator.sub, _as_it_is("-")),
    ast.Mult: (operator.mul, _as_it_is("*")),
    ast.FloorDiv: (operator.floordiv, _floored),
    ast.Mod: (operator.mod, _rest),
    ast.BitAnd: (operator.and_, _as_it_is("&")),
    ast.BitOr: (operator.or_, _as_it_is("|")),
    ast.Lt: (operator.lt, _as_it_is("<")),
    ast.LtE: (operator.le, _as_it_is("<=")),
    ast.Gt: (operator.gt, _as_it_is(">")),
    ast.GtE: (operator.ge, _as_it_is(">=")),
    ast.Eq: (operator.eq, _as_it_is("==")),
    ast.NotEq: (operator.ne, _as_it_is("!=")),
}
