"""Patterns made of patterns: `&`, `|`, `~`, and one pattern for each KV head."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lg.attention.pattern import Pattern
from lg.attention.reading import Index, Span, Truth


@dataclass(frozen=True)
class _Pair(Pattern):
    """Two patterns, joined by what `sees` says of them."""

    left: Pattern
    right: Pattern

    def __post_init__(self) -> None:
        fits = {side.made_for for side in (self.left, self.right)} - {None}
        if len(fits) > 1:
            raise ValueError(
                f"{type(self).__name__}: {self.left} and {self.right} are made for {self.left.made_for} and "
                f"{self.right.made_for} KV heads; they must be for the same number"
            )

    @property
    def made_for(self) -> int | None:
        return self.left.made_for or self.right.made_for


@dataclass(frozen=True)
class And(_Pair):
    """What both see; also written ``left & right``."""

    def sees(self, q: Index, k: Index, h: Index, doc: Any) -> Any:  # type: ignore[override]
        return self.left.read(q, k, h, doc) & self.right.read(q, k, h, doc)

    def tile(self, q: Span, k: Span, h: Span, doc: Any) -> Truth:
        return self.left.tile(q, k, h, doc) & self.right.tile(q, k, h, doc)


@dataclass(frozen=True)
class Or(_Pair):
    """What either sees; also written ``left | right``."""

    def sees(self, q: Index, k: Index, h: Index, doc: Any) -> Any:  # type: ignore[override]
        return self.left.read(q, k, h, doc) | self.right.read(q, k, h, doc)

    def tile(self, q: Span, k: Span, h: Span, doc: Any) -> Truth:
        return self.left.tile(q, k, h, doc) | self.right.tile(q, k, h, doc)


@dataclass(frozen=True)
class Not(Pattern):
    """What the pattern does not see, later keys included; also written ``~pattern``."""

    pattern: Pattern

    def sees(self, q: Index, k: Index, h: Index, doc: Any) -> Any:  # type: ignore[override]
        seen = self.pattern.read(q, k, h, doc)
        return not seen if isinstance(seen, bool) else ~seen

    def tile(self, q: Span, k: Span, h: Span, doc: Any) -> Truth:
        return ~self.pattern.tile(q, k, h, doc)

    def num_seen(self, q: Tensor, h: Tensor, doc: Any) -> Tensor | None:
        seen = self.pattern.num_seen(q, h, doc)
        return None if seen is None else doc.length - seen

    @property
    def made_for(self) -> int | None:
        return self.pattern.made_for


@dataclass(frozen=True)
class PerHead(Pattern):
    """Each KV head follows a pattern of its own, as in DuoAttention (Xiao et al. 2024, arXiv 2410.10819), where some
    heads see all and the others sinks and a window.

    Attributes:
        patterns: the patterns that heads follow.
        heads: for each KV head of the model, the number of its pattern among ``patterns``.
    """

    patterns: tuple[Pattern, ...]
    heads: tuple[int, ...]

    def __post_init__(self) -> None:
        # YAML hands over lists.
        object.__setattr__(self, "patterns", tuple(self.patterns))
        object.__setattr__(self, "heads", tuple(self.heads))
        for part in self.patterns:
            if not isinstance(part, Pattern) or part.made_for not in (None, len(self.heads)):
                raise ValueError(
                    f"PerHead.patterns: {part!r} is not allowed; it must be a pattern that fits {len(self.heads)} KV "
                    "heads, of which PerHead.heads says which follow it "
                    "(YAML: model.init_args.patterns.<name>.init_args.patterns)"
                )
        wrong = [n for n in self.heads if not isinstance(n, int) or not 0 <= n < len(self.patterns)]
        if wrong or not self.heads:
            raise ValueError(
                f"PerHead.heads={list(self.heads)} is not allowed; it must name for each KV head one of "
                f"{len(self.patterns)} patterns, counted from 0 "
                "(YAML: model.init_args.patterns.<name>.init_args.heads)"
            )

    def sees(self, q: Index, k: Index, h: Index, doc: Any) -> Any:  # type: ignore[override]
        return _any(self._follows(n, h) & pattern.read(q, k, h, doc) for n, pattern in self._used())

    def tile(self, q: Span, k: Span, h: Span, doc: Any) -> Truth:
        seen: Truth = _any(pattern.tile(q, k, h, doc) & self._follows(n, h) for n, pattern in self._used())
        return seen

    def num_seen(self, q: Tensor, h: Tensor, doc: Any) -> Tensor | None:
        seen = {n: pattern.num_seen(q, h, doc) for n, pattern in self._used()}
        total = torch.zeros((), dtype=torch.int64)
        for n, count in seen.items():
            if count is None:
                return None
            total = total + count * self._follows(n, h)
        return total

    def pieces(self, length: int, head: int) -> Sequence[int] | None:
        return self.patterns[self.heads[head]].pieces(length, head)

    @property
    def made_for(self) -> int | None:
        return len(self.heads)

    def _used(self) -> list[tuple[int, Pattern]]:
        return [(n, self.patterns[n]) for n in sorted(set(self.heads))]

    def _follows(self, pattern: int, h: Index) -> Any:
        """Whether head ``h`` follows this pattern: runs of heads, as comparisons."""
        runs, first = [], 0
        for own, group in itertools.groupby(self.heads):
            end = first + len(list(group))
            if own == pattern:
                runs.append((h >= first) & (h < end))
            first = end
        return _any(runs)


def _any(parts: Any) -> Any:
    """Its parts, joined by ``|``."""
    joined, *others = parts
    for part in others:
        joined = joined | part
    return joined
