"""What ``lg patterns`` shows of a pattern: a drawing in characters, and beside or below it the facts."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from itertools import zip_longest

import torch

from lg.attention.gallery import expression
from lg.attention.pattern import Pattern
from lg.attention.picture import plausible, terminal
from lg.attention.tiles import Tiles

_SHORTEST, _LONGEST = 64, 1 << 17


@dataclass(frozen=True)
class Card:
    """A pattern to show.

    Attributes:
        name: what it is called: its class, its name in a YAML file, or that of a composition.
        pattern: the pattern.
        length: tokens to draw.
        num_kv_heads: KV heads to draw, where they differ.
        about: what it is for; may be empty.
    """

    name: str
    pattern: Pattern
    length: int
    num_kv_heads: int
    about: str

    def tiles(self) -> Tiles:
        """The pattern on a document of that length."""
        return self.pattern.tiles(plausible(self.pattern, self.length), self.num_kv_heads)

    @property
    def caption(self) -> str:
        """One line below a picture."""
        attributes = self.tiles().documents.attributes.items()
        told = "".join(f", doc.{name} = {value:,}" for name, (value,) in attributes)
        return f"{expression(self.pattern)}, {self.length:,} tokens{told}"

    def small(self, width: int, encoding: str) -> str:
        """A drawing of few lines, of two heads at most, with the facts to its right."""
        drawn = terminal(self.tiles(), self._cells(24), encoding, most=2).splitlines()
        edge = max(map(len, drawn)) + 3
        facts = [self.name, *_paragraph(self.about.split("\n\n")[0], width - edge), *self._facts(width - edge)]
        lines = zip_longest(drawn, facts, fillvalue="")
        return "\n".join(f"{left:<{edge}}{right}".rstrip() for left, right in lines)

    def large(self, width: int, encoding: str) -> str:
        """All that is to say of it, and a drawing of as many heads as fit side by side."""
        cells = self._cells(48 if width < 100 else 96)
        drawn = terminal(self.tiles(), cells, encoding, most=1)
        most = (width + 2) // (max(map(len, drawn.splitlines())) + 2)
        # Lists, whose lines are indented, keep their form.
        said = [part if "\n " in part else "\n".join(_paragraph(part, width)) for part in self.about.split("\n\n")]
        facts = "\n".join(self._facts(width))
        drawn = terminal(self.tiles(), cells, encoding, max(1, min(8, most)))
        return "\n\n".join([self.name, *filter(None, said), facts, drawn])

    def _cells(self, about: int) -> int:
        """Dots in a row: ``about`` so many, or a third more where a power of two fits better."""
        return about if self.length % about == 0 else about // 3 * 4

    def _facts(self, width: int) -> list[str]:
        tiles, grid = self.tiles(), self.pattern.grid
        told = {
            "here": self.caption,
            "sees": self.pattern.text,
            "grid": f"{grid} token{'s' if grid > 1 else ''}",
            "heads": f"differ; {self.num_kv_heads} here" if self.pattern.heads_differ else "all alike",
            "causal": "no, some queries see later keys" if bool(tiles.leaks().any()) else "yes",
        }
        return [line for name, text in told.items() for line in _paragraph(f"{name:<8}{text}", width, 8)]


def fitting_length(pattern: Pattern, num_kv_heads: int) -> int:
    """The shortest power of two, of tokens, at which some head's last query sees at most a quarter of them.

    Of a pattern that sees more at any length, the shortest that there is to draw.
    """
    length = _SHORTEST
    while length <= _LONGEST:
        tiles = pattern.tiles(plausible(pattern, length), num_kv_heads)
        seen = tiles.seen(torch.tensor(length - 1), torch.arange(length), torch.arange(tiles.heads)[:, None])
        if 4 * int(seen.sum(1).min()) <= length:
            return length
        length *= 2
    return _SHORTEST


def _paragraph(text: str, width: int, indent: int = 0) -> list[str]:
    """Lines of at most ``width``, all but the first indented; the spaces that lead a text's columns stay."""
    return textwrap.wrap(text, max(width, 30), subsequent_indent=" " * indent)
