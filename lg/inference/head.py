"""One KV head's view of a pattern, as a pattern: heads that see alike share pages and need no number of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lg.attention import Pattern
from lg.attention.reading import Index, Span, Truth


@dataclass(frozen=True)
class OfHead(Pattern, named=False):
    """What one KV head of a pattern sees, whatever head asks.

    Attributes:
        pattern: of all heads.
        head: which of them.
    """

    pattern: Pattern
    head: int

    def sees(self, q: Index, k: Index, h: Index, doc: Any) -> Any:  # type: ignore[override]
        return self.pattern.read(q, k, self.head, doc)

    def tile(self, q: Span, k: Span, h: Span, doc: Any) -> Truth:
        return self.pattern.tile(q, k, Span(self.head, self.head), doc)
