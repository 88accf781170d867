"""Every pattern of lg has an example, which says where it comes from and how it is written."""

from __future__ import annotations

import json

import pytest
from jsonargparse import ArgumentParser

import lg.attention
from lg.attention import Causal, Pattern, PerHead, Window
from lg.attention.gallery import EXAMPLES, LENGTH, configuration, expression, parts
from lg.attention.pattern import NAMES
from lg.attention.picture import plausible

OWN = {name: kind for name, kind in NAMES.items() if kind.__module__.startswith("lg.")}
EVERY = pytest.mark.parametrize("name", EXAMPLES)


@EVERY
def test_an_example_is_of_the_class_it_is_named_after_and_fits_its_heads(name: str) -> None:
    example = EXAMPLES[name]
    assert example.is_composed == (name not in OWN)
    assert type(example.small) is type(example.real)
    for pattern, heads in ((example.small, example.num_kv_heads), (example.real, example.num_real_heads)):
        assert pattern.tiles(plausible(pattern, 1000), heads).heads == (heads if pattern.heads_differ else 1)
        assert pattern.heads_differ or heads == 1


def test_every_pattern_class_has_an_example() -> None:
    shown = {type(part).__name__ for example in EXAMPLES.values() for part in parts(example.small)}
    assert set(OWN) == shown
    # And those that are more than an operator have one of their own.
    assert set(OWN) - {"And", "Or", "Not"} == {name for name in EXAMPLES if not EXAMPLES[name].is_composed}


@EVERY
def test_small_is_small_enough_to_tell_from_full_attention(name: str) -> None:
    example = EXAMPLES[name]
    tiles = example.small.tiles(plausible(example.small, LENGTH), example.num_kv_heads)
    table, full = (t.table(1, 1) for t in (tiles, Causal().tiles(tiles.documents)))
    listed = table.num_full + table.num_partial
    assert name == "Causal" or listed != tiles.heads * (full.num_full + full.num_partial)


@EVERY
def test_it_is_told_what_it_is_and_where_it_comes_from(name: str) -> None:
    example = EXAMPLES[name]
    assert example.summary.endswith(".") and "\n" not in example.summary
    cited = example.papers or name in ("Causal", "Chunked", "overlapping-chunks", "beyond-window")
    assert cited, "name the paper in the docstring, as arXiv 2310.06825"


@EVERY
def test_its_expression_makes_it(name: str) -> None:
    for pattern in (EXAMPLES[name].small, EXAMPLES[name].real):
        assert eval(expression(pattern), vars(lg.attention)) == pattern


def test_expressions_have_the_parentheses_they_need_and_no_others() -> None:
    a, b, c = Causal(), Window(2), Window(3)
    assert expression((a | b) & ~(b | c)) == "(Causal() | Window(window=2)) & ~(Window(window=2) | Window(window=3))"
    assert expression(a | b | c) == "Causal() | Window(window=2) | Window(window=3)"
    for pattern in (a | (b | c), ~~a, ~(a & b) | c, PerHead((a | b,), (0,)), PerHead((a, ~b), (0, 1))):
        assert eval(expression(pattern), vars(lg.attention)) == pattern


@EVERY
def test_its_configuration_makes_it(name: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--pattern", type=Pattern)
    for pattern in (EXAMPLES[name].small, EXAMPLES[name].real):
        said = configuration(pattern)
        word = said if isinstance(said, str) else json.dumps(said)
        assert parser.instantiate_classes(parser.parse_args([f"--pattern={word}"])).pattern == pattern
