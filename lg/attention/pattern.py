"""A pattern says which keys a query may see, in one predicate; everything else is derived from it.

A new pattern is three lines, in any file of yours, and is used from YAML by its dotted path:

    @dataclass(frozen=True)
    class Near(Pattern):
        width: int
        def sees(self, q, k, h):
            return (k <= q) & (q - k < self.width)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lg.attention.documents import Documents
from lg.attention.reading import Index, Span, Symbol, Truth

if TYPE_CHECKING:
    from lg.attention.tiles import Tiles

NAMES: dict[str, type[Pattern]] = {}
"""Every pattern class by its name, filled as classes are defined."""


class Pattern(ABC):
    """What one layer may see. Subclass as a frozen dataclass, whose fields are its configuration.

    Only `sees` must be written. A subclass may override `tile` where interval arithmetic is not tight and it knows the
    exact answer; ``lg.testing.check_pattern`` holds the override to the predicate.

    Raises:
        ValueError: when a class is defined under a name that another class has already.
    """

    def __init_subclass__(cls) -> None:
        if getattr(cls.sees, "__isabstractmethod__", False):
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
        operands, comparisons, and ``& | ~``: elementwise and broadcastable.
        """

    def mask(self, q: Tensor, k: Tensor, h: Tensor | int = 0) -> Tensor:
        """The token reading: bool, of the shape that ``q``, ``k`` and ``h`` broadcast to."""
        seen = torch.as_tensor(self.sees(q, k, h), device=q.device)
        # A predicate that leaves an index out, or is a constant, still answers for all.
        shape = torch.broadcast_shapes(q.shape, k.shape, torch.as_tensor(h).shape)  # type: ignore[no-untyped-call]
        return seen.broadcast_to(shape)

    def tile(self, q: Span, k: Span, h: Span) -> Truth:
        """The tile reading: can, must every pair of this rectangle see each other? Spans of one shape."""
        seen = self.sees(q, k, h)
        if isinstance(seen, Truth):
            return seen
        everywhere = torch.full_like(torch.as_tensor(q.lo), bool(seen), dtype=torch.bool)
        return Truth(everywhere, everywhere)

    @property
    def text(self) -> str:
        """The text reading: the predicate with its constants filled in, over the names ``q``, ``k`` and ``h``."""
        return str(self._symbol())

    @property
    def heads_differ(self) -> bool:
        """Whether KV heads see different keys: read off the predicate."""
        return "h" in self._symbol().names

    def _symbol(self) -> Symbol:
        seen = self.sees(Symbol.named("q"), Symbol.named("k"), Symbol.named("h"))
        return seen if isinstance(seen, Symbol) else Symbol(str(bool(seen)))

    def sees_later(self, length: int, num_kv_heads: int = 1) -> bool:
        """Whether some query of a document of ``length`` tokens sees a later key: then it is not causal. Derived."""
        from lg.attention.tiles import later_key_seen

        return later_key_seen(self, length, num_kv_heads if self.heads_differ else 1)

    def tiles(self, documents: Documents, num_kv_heads: int = 1) -> Tiles:
        """This pattern on these documents: what `attend` takes.

        >>> from lg.attention import Documents, SinkWindow
        >>> SinkWindow(window=256, sinks=4).tiles(Documents(4096)).table(128, 128).num_partial
        91
        """
        from lg.attention.tiles import Tiles

        return Tiles(self, documents, num_kv_heads)

    def __and__(self, other: Pattern) -> Pattern:
        return And(self, other)

    def __or__(self, other: Pattern) -> Pattern:
        return Or(self, other)


@dataclass(frozen=True)
class And(Pattern):
    """What both see; also written ``left & right``."""

    left: Pattern
    right: Pattern

    def sees(self, q: Index, k: Index, h: Index) -> Any:
        return self.left.sees(q, k, h) & self.right.sees(q, k, h)

    def tile(self, q: Span, k: Span, h: Span) -> Truth:
        return self.left.tile(q, k, h) & self.right.tile(q, k, h)


@dataclass(frozen=True)
class Or(Pattern):
    """What either sees; also written ``left | right``."""

    left: Pattern
    right: Pattern

    def sees(self, q: Index, k: Index, h: Index) -> Any:
        return self.left.sees(q, k, h) | self.right.sees(q, k, h)

    def tile(self, q: Span, k: Span, h: Span) -> Truth:
        return self.left.tile(q, k, h) | self.right.tile(q, k, h)


def at_least(value: int, least: int, pattern: Pattern, name: str) -> None:
    """Raises a ValueError unless a pattern's field is an integer of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(
            f"{type(pattern).__name__}.{name}={value!r} is not allowed; it must be an integer of at least {least} "
            f"(YAML: model.init_args.patterns.<name>.init_args.{name})"
        )
