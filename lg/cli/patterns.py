"""``lg patterns``: every pattern there is, or those of a configuration, drawn in the terminal and as PNG."""

from __future__ import annotations

import argparse
import difflib
import inspect
import io
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lg.cli.configuration import FLAGS
from lg.cli.lengths import tokens_in
from lg.cli.written import write

if TYPE_CHECKING:
    from lg.attention import Pattern
    from lg.attention.gallery import Example
    from lg.cli.pattern_card import Card

HELP = """usage: lg patterns [NAME] [--FIELD=VALUE ...] [--length N] [--kv_heads N] [--config FILE] [--png DIR]

Lists the patterns that come with lg; with a name, shows one larger.

  lg patterns                                  all of them, and some that they make together
  lg patterns SinkWindow                       one, with all that there is to say of it
  lg patterns SinkWindow --window=64           at a size of your own
  lg patterns mine.Near --width=64             a class of yours, in mine.py
  lg patterns --config configs/hybrid.yaml     those of a configuration, and its schedule

options:
  --FIELD=VALUE   a field of the pattern's class; --init_args.FIELD=VALUE if it is named like an option below
  --length N      tokens to draw, such as 4096, 32K or 1M; by default what shows the pattern best
  --kv_heads N    KV heads to draw, where they differ
  --config FILE   a YAML file; NAME is then one of its patterns, and any key of its model part is an option
  --png DIR       a folder to write DIR/NAME.png into, for each pattern shown
"""

_OWN = ("length", "kv_heads", "png")


def run(args: list[str]) -> None:
    """Prints cards, and writes pictures if asked to.

    Args:
        args: "patterns", and the words after it.

    Raises:
        ValueError: when the input is at fault.
    """
    words = args[1:]
    if {"-h", "--help"} & set(words):
        print(HELP, end="")
        return
    names, options = _names_and_options(words)
    if len(names) > 1:
        raise ValueError(
            f"{names[1]!r}: one pattern is shown at a time, and {names[0]} is named already; fields are given by name, "
            "as in --window=64"
        )
    name = names[0] if names else None
    own, rest = _own_options(options)
    length = tokens_in(own["length"], "--length") if "length" in own else None
    heads = _heads(own["kv_heads"]) if "kv_heads" in own else None
    if any(word.split("=")[0] in FLAGS for word in rest):
        title, cards = _of_configuration(name, rest, length, heads)
    else:
        title, cards = "", _named(name, rest, length, heads) if name else _all(rest, length, heads)
    width, encoding = shutil.get_terminal_size().columns, sys.stdout.encoding or "ascii"
    shown = [card.large(width, encoding) if name else card.small(width, encoding) for card in cards]
    print("\n\n".join([title] * bool(title) + shown))
    if "png" in own:
        _write(cards, Path(own["png"]))


def _names_and_options(words: list[str]) -> tuple[list[str], list[str]]:
    """The words that are neither an option nor its value, and the options, each as one word, ``--key=value``."""
    names: list[str] = []
    options: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("-"):
            names.append(word)
        elif "=" in word or word == "--print_config":
            options.append(word)
        elif left and not left[0].startswith("--"):
            options.append(f"{word}={left.pop(0)}")
        else:
            raise ValueError(f"{word}: a value is needed (see lg patterns --help)")
    return names, options


def _own_options(options: list[str]) -> tuple[dict[str, str], list[str]]:
    """The options of the command itself, and the others."""
    own: dict[str, str] = {}
    rest: list[str] = []
    for option in options:
        flag, _, value = option.partition("=")
        if flag not in [f"--{name}" for name in _OWN]:
            rest.append(option)
        elif value:
            own[flag[2:]] = value
        else:
            raise ValueError(f"{flag}: a value is needed (see lg patterns --help)")
    return own, rest


def _heads(word: str) -> int:
    if not word.isdecimal() or not 1 <= int(word) <= 1024:
        raise ValueError(f"--kv_heads: {word!r} is not allowed; it must be a number of KV heads from 1 to 1024")
    return int(word)


def _card(
    name: str, pattern: Pattern, about: str, length: int | None, heads: int | None, num_kv_heads: int | None = None
) -> Card:
    """A card of as many KV heads as asked for, else as the pattern is made for, else ``num_kv_heads``, else what shows.

    Raises:
        ValueError: if other KV heads are asked for than the pattern is made for.
    """
    from lg.cli.pattern_card import Card, fitting_length

    if heads and pattern.made_for not in (None, heads):
        raise ValueError(
            f"--kv_heads: {heads} is not allowed; {name} is made for {pattern.made_for} KV heads: {pattern}"
        )
    shown = heads or pattern.made_for or num_kv_heads or (4 if pattern.heads_differ else 1)
    return Card(name, pattern, length or fitting_length(pattern, shown), shown, about)


def _all(rest: list[str], length: int | None, heads: int | None) -> list[Card]:
    """Every example at its small size."""
    from lg.attention.gallery import EXAMPLES

    if rest:
        raise ValueError(f"{rest[0]}: not a known option without the name of a pattern (see lg patterns --help)")
    return [_of_example(example, length, heads) for example in EXAMPLES.values()]


def _of_example(e: Example, length: int | None, heads: int | None) -> Card:
    from lg.attention.gallery import LENGTH

    return _card(e.name, e.small, e.about, length or LENGTH, heads, e.num_kv_heads)


def _named(name: str, options: list[str], length: int | None, heads: int | None) -> list[Card]:
    """One pattern: an example as it is, or a class at the size that the options say."""
    from lg.attention.gallery import EXAMPLES, expression
    from lg.attention.pattern import NAMES

    example = EXAMPLES.get(name)
    if example and not options:
        return [_of_example(example, length, heads)]
    if example and example.is_composed:
        raise ValueError(
            f"{options[0]}: {name} has no fields to set; it is a composition, {expression(example.small)}, and its "
            "parts are shown by their own names"
        )
    known = [*EXAMPLES, *(other for other in NAMES if other not in EXAMPLES)]
    if "." not in name and name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        question = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"{name!r} is not a known pattern; {question}allowed: {', '.join(known)} or the dotted path of a class of "
            "yours"
        )
    pattern = _built(name, options)
    return [_card(name, pattern, inspect.cleandoc(type(pattern).__doc__ or ""), length, heads)]


def _built(name: str, options: list[str]) -> Pattern:
    """An instance of a class with the fields that the options give, as YAML would make it."""
    from jsonargparse import ArgumentParser

    from lg.attention import Pattern
    from lg.cli.complaint import explain
    from lg.cli.given import overlay

    parser = ArgumentParser(prog="lg patterns", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--pattern", type=Pattern)
    words = [f"--pattern={name}", *(re.sub("^--", "--pattern.", word) for word in options)]
    try:
        values = parser.parse_args(words)
    except argparse.ArgumentError as error:
        told = explain(error.message, overlay({}, words), {"pattern": Pattern})
        told = told.removeprefix("pattern.init_args.").removeprefix("pattern: ")
        for field in _OWN:
            if re.search(rf"\b{field}(,.*)?: missing", told):
                told += f" (--{field} is an option of lg patterns itself: the field is --init_args.{field})"
        raise ValueError(told) from error
    try:
        built: Pattern = parser.instantiate_classes(values).pattern
        built.text  # noqa: B018 (a predicate that cannot be read says so here)
    except ValueError as error:
        raise ValueError(re.sub(r" \(YAML: .*\)$", "", str(error))) from error
    return built


def _of_configuration(
    name: str | None, words: list[str], length: int | None, heads: int | None
) -> tuple[str, list[Card]]:
    """The schedule and the patterns of a configuration's model, or one of them."""
    from lg.attention import Pattern
    from lg.attention.schedule import written
    from lg.cli.model_part import model_parser, read_model

    model, _, _ = read_model(model_parser("patterns", "Draws what layers may see."), words, [])
    patterns = {key: pattern for key, pattern in model.patterns.items() if isinstance(pattern, Pattern)}
    if name is not None and name not in patterns:
        raise ValueError(f"{name!r} is not a pattern of this configuration; allowed: {', '.join(patterns)}")
    shown = {key: patterns[key] for key in ([name] if name else patterns)}
    num_kv_heads = model.decoder_config.num_kv_heads
    # All at the length that the one needs which needs most, to be compared.
    cards = [
        _card(key, pattern, inspect.cleandoc(type(pattern).__doc__ or ""), length, heads, num_kv_heads)
        for key, pattern in shown.items()
    ]
    longest = max((card.length for card in cards), default=0)
    cards = [replace(card, length=longest) for card in cards]
    return f"schedule  {written(model.schedule)}", cards


def _write(cards: list[Card], folder: Path) -> None:
    """One PNG a card."""
    from lg.attention.picture import drawing

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--png: {str(folder)!r} cannot be written to: {error}") from error
    for card in cards:
        image = io.BytesIO()
        drawing(card.tiles(), card.caption).save(image, "PNG")
        write(folder / f"{card.name.replace('/', '_')}.png", image.getvalue(), "--png")
    print(f"\n{len(cards)} picture{'s' * (len(cards) > 1)} in {folder}")
