"""A pattern says which keys a query may see, in one predicate; everything else is derived from it.

A new pattern is three lines, in any file of yours, and is used from YAML by its dotted path:

    @dataclass(frozen=True)
    class Near(Pattern):
        width: int
        def sees(self, q, k, h):
            return (k <= q) & (q - k < self.width)

The same lines are read in five ways: by token (`Pattern.mask`), by tile (`Pattern.tiles`), by shard (`Tiles.needs`),
in time (`Pattern.kept`) and as text (`Pattern.text`).
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lg.attention.documents import Documents
from lg.attention.reading import DocumentSymbol, Index, PredicateError, Span, Symbol, Truth

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    from lg.attention.compose import And, Not, Or
    from lg.attention.retention import Kept
    from lg.attention.tiles import Tiles

NAMES: dict[str, type[Pattern]] = {}
"""Every pattern class by its name, filled as classes are defined."""


# What a class may know of its predicate.
_KNOWN = frozenset({"tile", "num_seen", "pieces"})


class Pattern(ABC):
    """What one layer may see. Subclass as a frozen dataclass, whose fields are its configuration.

    Only `sees` must be written. A subclass may override `tile` where interval arithmetic is not tight and it knows the
    exact answer, `num_seen` where it knows a formula, and `pieces` where it is full causal attention in parts of a
    document; ``lg.testing.check_pattern`` holds them to the predicate.

    Raises:
        ValueError: when a class is defined under a name that another class has already.
    """

    # Not annotated: jsonargparse reads the annotations of a pattern's bases in the module of the pattern.
    _asks_for_doc = False

    def __init_subclass__(cls, named: bool = True) -> None:
        if getattr(cls.sees, "__isabstractmethod__", False):
            return
        cls._asks_for_doc = len(inspect.signature(cls.sees).parameters) > 4
        for name in _KNOWN:
            owner: Any = next(one for one in cls.__mro__ if name in vars(one))
            # What an ancestor knows of its own predicate does not hold for another one.
            own = getattr(owner, "sees", Pattern.sees), getattr(owner, "read", Pattern.read)
            if owner is not cls and own not in ((Pattern.sees, cls.read), (cls.sees, cls.read)):
                setattr(cls, name, getattr(Pattern, name))
        # A view of other patterns, which no configuration asks for by a name.
        if not named:
            return
        known = NAMES.get(cls.__name__)
        # The same class defined again (a notebook cell, `dataclass(slots=True)`) replaces itself.
        if known and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"pattern name {cls.__name__!r} of {cls.__module__}.{cls.__qualname__} is taken already by "
                f"{known.__module__}.{known.__qualname__}; patterns are known by their class names: choose another"
            )
        NAMES[cls.__name__] = cls

    @abstractmethod
    def sees(self, q: Index, k: Index, h: Index) -> Any:
        """May the query at ``q`` see the key at ``k``, in KV head ``h``?

        ``q`` and ``k`` are token indices counted from the start of their document (lg itself adds "same document");
        ``h`` is the number of the KV head among all of the model's. Allowed are ``+ - * // %`` on non-negative
        operands, comparisons, and ``& | ~``: elementwise and broadcastable. A predicate with a fourth parameter,
        ``doc``, is handed integer attributes of the document: ``doc.length``, and those of `Documents`.
        """

    def read(self, q: Index, k: Index, h: Index, doc: Any) -> Any:
        """The predicate as its operands read it, whether it asks for ``doc`` or not."""
        return self.sees(q, k, h, doc) if self._asks_for_doc else self.sees(q, k, h)  # type: ignore[call-arg]

    # By token

    def mask(self, q: Tensor, k: Tensor, h: Tensor | int = 0, doc: Any = None) -> Tensor:
        """The token reading: bool, of the shape that ``q``, ``k`` and ``h`` broadcast to.

        ``doc`` is needed by patterns that ask for it: `Documents.doc` makes it.
        """
        seen = torch.as_tensor(self.read(q, k, h, doc), device=q.device)
        # A predicate that leaves an index out, or is a constant, still answers for all.
        shape = torch.broadcast_shapes(q.shape, k.shape, torch.as_tensor(h).shape)  # type: ignore[no-untyped-call]
        return seen.broadcast_to(shape)

    # By tile

    def tile(self, q: Span, k: Span, h: Span, doc: Any) -> Truth:
        """The tile reading: can, must every pair of this rectangle see each other?

        Args:
            q, k, h: spans of one shape.
            doc: a span for each attribute that the predicate asks for; None if it asks for none.
        """
        seen = self.read(q, k, h, doc)
        if isinstance(seen, Truth):
            return seen
        everywhere = torch.full_like(torch.as_tensor(q.lo), bool(seen), dtype=torch.bool)
        return Truth(everywhere, everywhere)

    def tiles(self, documents: Documents | int, num_kv_heads: int = 1, queries: tuple[int, int] | None = None) -> Tiles:
        """This pattern on these documents: what `attend` takes.

        Args:
            documents: where documents lie in the sequence, or its length if it is one document.
            num_kv_heads: KV heads of the layer; matters only to a pattern whose heads differ.
            queries: first query and end (exclusive), where only a chunk of the sequence asks; by default all.

        >>> from lg.attention import SinkWindow
        >>> SinkWindow(window=256, sinks=4).tiles(4096).table(128, 128).num_partial
        91
        """
        from lg.attention.tiles import Tiles

        on = Documents(documents) if isinstance(documents, int) else documents
        return Tiles(self, on, num_kv_heads, queries)

    def block_mask(
        self,
        documents: Documents | int,
        num_heads: int = 1,
        num_kv_heads: int | None = None,
        device: torch.device | str = "cpu",
    ) -> BlockMask:
        """This pattern as FlexAttention's own mask, for those who call `flex_attention` themselves.

        Built in closed form from the tile table: what ``create_block_mask`` gives, in milliseconds.

        Args:
            documents: where documents lie in the sequence, or its length if it is one document.
            num_heads: query heads. The mask has as many where KV heads differ.
            num_kv_heads: KV heads of the layer, which divide the query heads; by default as many as those.
            device: where the mask is used.

        Raises:
            ValueError: if the KV heads do not divide the query heads.

        >>> from lg.attention import Window
        >>> Window(256).block_mask(1024).shape
        (1, 1, 1024, 1024)
        """
        from lg.attention.impl.flex import block_mask

        heads_kv = num_heads if num_kv_heads is None else num_kv_heads
        if heads_kv < 1 or num_heads < 1 or num_heads % heads_kv:
            raise ValueError(
                f"num_heads={num_heads} and num_kv_heads={heads_kv} are not allowed; KV heads must divide query heads"
            )
        return block_mask(self.tiles(documents, heads_kv), num_heads // heads_kv, torch.device(device))

    # In time

    def kept(self, now: int, end: int, num_kv_heads: int = 1, **doc: int) -> Kept:
        """The time reading: which keys before ``now`` some query from ``now`` to ``end`` (exclusive) may still see.

        What a KV cache must keep; the rest may be freed.

        Args:
            now: the next query's index in its document.
            end: tokens that the document may grow to.
            num_kv_heads: KV heads of the layer.
            doc: attributes of the document that the predicate asks for, besides ``length``, which is ``end``.

        >>> from lg.attention import SinkWindow
        >>> SinkWindow(window=100, sinks=4).kept(now=5000, end=10000).runs(head=0)
        [(0, 4), (4901, 5000)]
        """
        from lg.attention.retention import kept

        return kept(self, now, end, num_kv_heads, doc)

    def alike(self, num_kv_heads: int, length: int, **doc: int) -> list[list[int]]:
        """The groups of KV heads that see the same keys, in a document of up to ``length`` tokens.

        >>> from lg.attention import Strided
        >>> Strided(block=64, local_blocks=4, stride=4).alike(num_kv_heads=6, length=4096)
        [[0, 4], [1, 5], [2], [3]]
        """
        from lg.attention.retention import alike

        return alike(self, num_kv_heads, length, doc)

    # As text

    @property
    def text(self) -> str:
        """The text reading: the predicate with its constants filled in, over ``q``, ``k``, ``h`` and ``doc``'s."""
        return self.symbol.text

    @property
    def symbol(self) -> Symbol:
        """The predicate as an expression: what `text` and the properties below are read off.

        Raises:
            PredicateError: if it says what cannot be read in every way, with the pattern's name and the expression.
        """
        return self.symbol_of_head(None)

    def symbol_of_head(self, head: int | None) -> Symbol:
        """The predicate as an expression for one KV head; of any, if it is None."""
        try:
            hash(self)
        except TypeError as error:
            raise PredicateError(
                f"{type(self).__name__}: {error}; a pattern is a dataclass(frozen=True) whose fields are plain values, "
                "patterns, or tuples of them"
            ) from error
        return _symbol(self, head)

    @property
    def heads_differ(self) -> bool:
        """Whether KV heads see different keys: read off the predicate."""
        return "h" in self.symbol.names

    @property
    def attributes(self) -> tuple[str, ...]:
        """What the predicate asks of ``doc``, in alphabetical order: read off the predicate."""
        return tuple(sorted(name[4:] for name in self.symbol.names if name.startswith("doc.")))

    @property
    def grid(self) -> int:
        """The block that the pattern counts in: 64 for ``k // 64``, 1 for a window.

        Documents that start on multiples of it keep tiles full that would otherwise be partial.
        """
        return math.lcm(*self.symbol.blocks)

    # What follows

    def num_seen(self, q: Tensor, h: Tensor, doc: Any) -> Tensor | None:
        """How many keys of its document each query sees, by a formula; None where there is none.

        Args:
            q: queries, counted from the start of their document, int64.
            h: KV heads, of a shape that broadcasts with ``q``.
            doc: ``doc.length``, and what the predicate asks for: int64, as ``q``.
        """
        return None

    def pieces(self, length: int, head: int) -> Sequence[int] | None:
        """Where full causal attention begins anew, if that is all that the pattern is: torch's own kernels, the fastest
        for it, then compute it piece by piece.

        Args:
            length: tokens of the document.
            head: the KV head.

        Returns:
            The first token of each piece, ascending from 0; None for any other pattern.

        >>> from lg.attention import Chunked
        >>> list(Chunked(400).pieces(1000, head=0))
        [0, 400, 800]
        """
        return None

    @property
    def made_for(self) -> int | None:
        """The number of KV heads that the pattern is made for; None if it fits any."""
        return None

    def sees_later(self, length: int, num_kv_heads: int = 1, **doc: int) -> bool:
        """Whether some query of a document of ``length`` tokens sees a later key: then it is not causal. Derived."""
        documents = Documents(length, attributes={name: (value,) for name, value in doc.items()})
        return bool(self.tiles(documents, num_kv_heads).leaks().any())

    def __and__(self, other: Pattern) -> And:
        from lg.attention.compose import And

        return And(self, other)

    def __or__(self, other: Pattern) -> Or:
        from lg.attention.compose import Or

        return Or(self, other)

    def __invert__(self) -> Not:
        from lg.attention.compose import Not

        return Not(self)


@lru_cache(maxsize=4096)
def _symbol(pattern: Pattern, head: int | None) -> Symbol:
    h = Symbol.named("h") if head is None else Symbol(str(head), least=head)
    try:
        seen = pattern.read(Symbol.named("q"), Symbol.named("k"), h, DocumentSymbol())
    except Exception as error:
        raise PredicateError(_explained(pattern, error)) from error
    if isinstance(seen, bool):
        return Symbol(str(seen), truth=True, causal=not seen)
    if not isinstance(seen, Symbol) or not seen.truth:
        raise PredicateError(f"{type(pattern).__name__}.sees: it must return a comparison of positions, not `{seen}`")
    return seen


def _explained(pattern: Pattern, error: Exception) -> str:
    """The error, with the class whose `sees` it arose in and, if it does not say so itself, the line."""
    name, line = type(pattern).__name__, ""
    trace: TracebackType | None = error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_name == "sees" and isinstance(trace.tb_frame.f_locals.get("self"), Pattern):
            name = type(trace.tb_frame.f_locals["self"]).__name__
            line = (inspect.getframeinfo(trace).code_context or [""])[0].strip()
        trace = trace.tb_next
    if isinstance(error, PredicateError):
        return f"{name}.sees: {error}"
    where = f" in `{line}`" if line else ""
    return (
        f"{name}.sees: an operation that a predicate may not use{where} ({error}); "
        "allowed are + - * // %, comparisons and & | ~"
    )


def at_least(value: int, least: int, pattern: Pattern, name: str) -> None:
    """Raises a ValueError unless a pattern's field is an integer of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(
            f"{type(pattern).__name__}.{name}={value!r} is not allowed; it must be an integer of at least {least} "
            f"(YAML: model.init_args.patterns.<name>.init_args.{name})"
        )
