"""One example of every pattern that comes with lg, and of what they make together: for pictures and documentation.

Each has two sizes: one small enough that every token can be drawn, and one that models are trained with.

>>> EXAMPLES["SinkWindow"].small, EXAMPLES["SinkWindow"].papers
(SinkWindow(window=12, sinks=4), ('2410.01485', '2309.17453'))
>>> expression(EXAMPLES["sparse-transformer"].small)
'Window(window=8) | Dilated(window=6, dilation=8)'
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from lg.attention.compose import And, Not, Or, PerHead
from lg.attention.pattern import Pattern
from lg.attention.patterns import (
    Causal,
    Chunked,
    Dilated,
    GlobalTokens,
    PrefixLM,
    ShiftedGroups,
    SinkWindow,
    Strided,
    Window,
)

LENGTH = 48
"""Tokens in a drawing of the small size."""


@dataclass(frozen=True)
class Example:
    """A pattern worth a picture.

    Attributes:
        name: that of its class, or of the composition.
        small: at a size to draw, on `LENGTH` tokens.
        real: at a size to train with.
        num_kv_heads: KV heads of ``small``.
        num_real_heads: KV heads of ``real``.
        about: what it is and where it comes from; by default the class's docstring.
    """

    name: str
    small: Pattern
    real: Pattern
    num_kv_heads: int = 1
    num_real_heads: int = 1
    about: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "about", self.about or inspect.cleandoc(type(self.small).__doc__ or ""))

    @property
    def summary(self) -> str:
        """The first paragraph of what it is about, on one line."""
        return " ".join(self.about.split("\n\n")[0].split())

    @property
    def papers(self) -> tuple[str, ...]:
        """The arXiv numbers that are named."""
        return tuple(dict.fromkeys(re.findall(r"arXiv (\d{4}\.\d{5})", self.summary)))

    @property
    def is_composed(self) -> bool:
        """Whether it is made of several patterns, rather than a class of its own."""
        return self.name != type(self.small).__name__


_ALL = [
    Example("Causal", Causal(), Causal()),
    Example("Window", Window(12), Window(4096)),
    Example("SinkWindow", SinkWindow(window=12, sinks=4), SinkWindow(window=1984, sinks=64)),
    Example("Strided", Strided(block=4, local_blocks=2, stride=4), Strided(), 4, 8),
    Example("Dilated", Dilated(window=6, dilation=4), Dilated(window=1024, dilation=4)),
    Example("Chunked", Chunked(12), Chunked(8192)),
    Example("ShiftedGroups", ShiftedGroups(16, num_kv_heads=2), ShiftedGroups(8192, num_kv_heads=8), 2, 8),
    Example("PrefixLM", PrefixLM(), PrefixLM()),
    Example("GlobalTokens", GlobalTokens(4), GlobalTokens(64)),
    Example(
        "PerHead",
        PerHead((Causal(), SinkWindow(window=8, sinks=4)), heads=(0, 1, 1)),
        PerHead((Causal(), SinkWindow(window=256, sinks=64)), heads=(0, 0, 1, 1, 1, 1, 1, 1)),
        3,
        8,
    ),
    Example(
        "longformer",
        Window(12) | GlobalTokens(4),
        Window(512) | GlobalTokens(64),
        about="A window, and global tokens that see all and are seen by all: Longformer (Beltagy et al. 2020, arXiv "
        "2004.05150, section 3.1), with the window one-sided. Its global tokens see later keys, so a decoder trains "
        "with ``GlobalTokens(64) & Causal()`` in their place, which is SinkWindow.",
    ),
    Example(
        "sparse-transformer",
        Window(8) | Dilated(window=6, dilation=8),
        Window(128) | Dilated(window=64, dilation=128),
        about='A window and, as far apart as it is long, single keys before it: the "strided" attention of the Sparse '
        "Transformer (Child et al. 2019, arXiv 1904.10509, section 4.3), both of its parts in one head.",
    ),
    Example(
        "sparse-transformer-fixed",
        Chunked(12) | Strided(block=4, local_blocks=1, stride=3, head_step=0, offset=1),
        Chunked(128) | Strided(block=32, local_blocks=1, stride=4, head_step=0, offset=1),
        about='The query\'s own chunk, and the last tokens of every earlier one: the "fixed" attention of the Sparse '
        "Transformer (Child et al. 2019, arXiv 1904.10509, section 4.3).",
    ),
    Example(
        "overlapping-chunks",
        Chunked(12) | Window(6),
        Chunked(8192) | Window(1024),
        about="Chunks, and a window that reaches over their edges: the first tokens of a chunk see the last of the "
        "one before.",
    ),
    Example(
        "beyond-window",
        Causal() & ~Window(12),
        Causal() & ~Window(4096),
        about="What a window leaves out, to measure what is lost with it. The first tokens see nothing at all: their "
        "attention is 0.",
    ),
]

EXAMPLES: dict[str, Example] = {example.name: example for example in _ALL}
"""Every example by its name: classes first, then compositions."""


def expression(pattern: Pattern) -> str:
    """The Python that makes a pattern, with ``&``, ``|`` and ``~`` where they will do."""
    match pattern:
        case And():
            return f"{_operand(pattern.left, And)} & {_operand(pattern.right)}"
        case Or():
            return f"{_operand(pattern.left, Or)} | {_operand(pattern.right)}"
        case Not():
            return f"~{_operand(pattern.pattern)}"
        case PerHead():
            inner = "".join(f"{expression(part)}, " for part in pattern.patterns)
            return f"PerHead(({inner.rstrip() if len(pattern.patterns) == 1 else inner[:-2]}), heads={pattern.heads})"
    return repr(pattern)


def configuration(pattern: Pattern) -> Any:
    """A pattern as YAML has it: a class's name, or a dict of ``class_path`` and ``init_args``."""
    name = type(pattern).__name__
    path = name if type(pattern).__module__.startswith("lg.") else f"{type(pattern).__module__}.{name}"
    values = {field.name: _configured(getattr(pattern, field.name)) for field in fields(pattern)}  # type: ignore[arg-type]
    return {"class_path": path, "init_args": values} if values else path


def parts(pattern: Pattern) -> Iterator[Pattern]:
    """A pattern and, first to last, all those that it is made of."""
    yield pattern
    for field in fields(pattern):  # type: ignore[arg-type]
        value = getattr(pattern, field.name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Pattern):
                yield from parts(part)


def _configured(value: Any) -> Any:
    if isinstance(value, Pattern):
        return configuration(value)
    return [_configured(item) for item in value] if isinstance(value, tuple) else value


def _operand(pattern: Pattern, first_of: type[Pattern] | None = None) -> str:
    """In parentheses where it is an operation, unless it is the first of several that are the same."""
    text = expression(pattern)
    return f"({text})" if isinstance(pattern, (And, Or)) and type(pattern) is not first_of else text
