"""Writes the page of a pattern from the pattern: its pictures, its predicate, how it is used, and what it costs."""

from __future__ import annotations

import inspect
import io
import re
import textwrap
from collections.abc import Sequence

import yaml
from cost_curve import svg

from lg.attention import Causal, Pattern
from lg.attention.cost import AttentionCost
from lg.attention.gallery import LENGTH, Example, configuration, expression, parts
from lg.attention.picture import drawing, plausible
from lg.cli.figures import percent
from lg.testing import check_pattern

LENGTHS = tuple(2**n for n in range(10, 18))


def written(example: Example) -> str:
    """The page, in Markdown."""
    return "\n\n".join(
        [
            f"# {example.name}",
            _about(example.about),
            f"![What each query sees: keys to the right, queries downward]({example.name}.png)",
            "Three documents, packed into one sequence:",
            f"![The same, packed]({example.name}-packed.png)",
            "## The predicate",
            _predicate(example),
            "## Use it",
            f"```python\n{python(example)}```",
            _configured(example),
            f"```yaml\n{in_yaml(example)}```",
            "## What it costs",
            _cost(example),
        ]
    )


def picture(example: Example, starts: Sequence[int]) -> bytes:
    """A PNG of the small size."""
    documents = plausible(example.small, LENGTH, starts)
    attributes = "".join(f", doc.{name} = {list(values)}" for name, values in documents.attributes.items())
    tiles = example.small.tiles(documents, example.num_kv_heads)
    file = io.BytesIO()
    drawing(tiles, f"{expression(example.small)}{attributes}").save(file, "PNG")
    return file.getvalue()


def python(example: Example) -> str:
    """Lines that run, with the pattern at its real size."""
    documents = plausible(example.real, 8192)
    attributes = {name: list(values) for name, values in documents.attributes.items()}
    names = sorted({type(part).__name__ for part in parts(example.real)} - {"And", "Or", "Not"} | {"Documents"})
    layout = f"Documents(8192, attributes={attributes})" if attributes else "Documents(8192)"
    return (
        f"from lg.attention import {', '.join(names)}, attend\n\n"
        f"pattern = {expression(example.real)}\n"
        f"tiles = pattern.tiles({layout}, num_kv_heads={example.num_real_heads})\n"
        "# out = attend(q, k, v, tiles), with q [B, H, 8192, D] and k, v [B, G, 8192, D]\n"
    )


def in_yaml(example: Example) -> str:
    """The part of a configuration that names it, such that a decoder trains with it."""
    pattern = example.real & Causal() if _leaks_everywhere(example) else example.real
    model = {"init_args": {"patterns": {"local": configuration(pattern), "full": "Causal"}}}
    data = {"data": {"init_args": {"prefix": 0.3}}} if "prefix" in pattern.attributes else {}
    return yaml.safe_dump({"model": model, **data}, sort_keys=False)


def _configured(example: Example) -> str:
    """What stands above the part of a configuration."""
    if _leaks_everywhere(example):
        return (
            "In a configuration, with `& Causal()`: by itself it shows later keys to queries that must predict them, "
            "so `lg fit` refuses it."
        )
    if "prefix" in example.real.attributes:
        return (
            "In a configuration, where the data say what share of each document is its prefix. The targets that a "
            "prefix shows are left out of the loss."
        )
    return "In a configuration:"


def _leaks_everywhere(example: Example) -> bool:
    """Whether later keys are seen, and no document says where: then nothing is left to learn."""
    return not example.real.attributes and example.real.sees_later(LENGTHS[0], example.num_real_heads)


def _about(text: str) -> str:
    """A docstring as Markdown: papers are links, attributes a list."""
    text = re.sub(r"arXiv\s+(\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    prose, _, attributes = text.partition("Attributes:\n")
    items = re.sub(r"^(\w+): ", r"- `\1`: ", textwrap.dedent(attributes), flags=re.MULTILINE)
    return f"{prose}{items}".strip()


def _predicate(example: Example) -> str:
    source = expression(example.small)
    # What is made of other patterns says more by its parts than by the lines that join them.
    if len(list(parts(example.small))) == 1:
        source = textwrap.dedent(inspect.getsource(type(example.small).sees))
        source = source.replace("  # type: ignore[override]", "")
    heads = "see different keys" if example.small.heads_differ else "all see the same"
    tiles = example.small.tiles(plausible(example.small, LENGTH), example.num_kv_heads)
    causal = "no: some queries see later keys" if bool(tiles.leaks().any()) else "yes"
    return (
        f"```python\n{source.strip()}\n```\n\n"
        f"Read as text, at the size that is drawn: `{example.small.text}`\n\n"
        f"| KV heads | causal | grid |\n|---|---|---|\n| {heads} | {causal} | {_tokens(example.small.grid)} |"
    )


def _cost(example: Example) -> str:
    visible, kept = zip(*(_shares(example.real, length, example.num_real_heads) for length in LENGTHS), strict=True)
    asks = "; its prefix is a third of the document" if example.real.attributes else ""
    longest = f"{LENGTHS[-1] // 1024}K"
    return (
        f"Of `{expression(example.real)}`{asks}: pairs of query and key that are seen, and keys that a cache keeps "
        f"while the last token is computed, as shares of full causal attention. At {longest} tokens "
        f"{percent(visible[-1])} and {percent(kept[-1])}.\n\n"
        f"{svg(LENGTHS, {'pairs seen': visible, 'keys kept': kept})}\n\n{_excess(example)}"
    )


def _shares(pattern: Pattern, length: int, num_kv_heads: int) -> tuple[float, float]:
    attributes = {name: value for name, (value,) in plausible(pattern, length).attributes.items()}
    cost = AttentionCost(pattern, length, num_kv_heads, num_kv_heads, attributes=attributes)
    return cost.visible / (num_kv_heads * length * (length + 1) / 2), cost.kept / (num_kv_heads * length)


def _excess(example: Example) -> str:
    """How many tiles are listed in vain, which `check_pattern` measures while it holds every reading to brute force."""
    found = check_pattern(example.small, example.num_kv_heads, lengths=(1, 63, 200), blocks=((8, 8), (16, 16)))
    if not found.empty:
        return "The tile table lists no tile in which nothing is seen."
    return (
        f"Intervals are not tight for it: of the tiles that the table lists, {percent(found.excess)} are empty (the "
        "size that is drawn, on random packings of 200 tokens, tiles of 8 and 16). They cost time, and change nothing."
    )


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"
