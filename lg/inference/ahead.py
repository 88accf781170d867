"""Which tokens must be read together: those of a beginning that sees forward."""

from __future__ import annotations

from collections.abc import Mapping

from lg.attention import Documents, Pattern


def read_together(pattern: Pattern, num_heads: int, length: int, doc: Mapping[str, int]) -> int:
    """How many tokens at the beginning of a document see later ones, or come to know of them; 0 of a causal pattern.

    >>> from lg.attention import Causal, PrefixLM
    >>> read_together(Causal(), 1, 1000, {}), read_together(PrefixLM(), 1, 1000, {"prefix": 300})
    (0, 300)
    """
    told = pattern.tiles(Documents(length, attributes={name: (value,) for name, value in doc.items()}), num_heads)
    leaks = told.leaks().nonzero()
    return int(leaks.max()) + 2 if len(leaks) else 0
