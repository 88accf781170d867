"""What the user wrote, YAML files and command line in one tree, to say where a complaint belongs.

The parser's own tree is not there yet when it refuses something, and its messages leave out the
names in a dict and the numbers in a list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any

from jsonargparse import get_loader

from lg.cli.configuration import Config, check_size

Place = tuple[str, ...]
"""The keys from the root of the YAML down to a value; an item of a list counts as its number."""


def overlay(config: Config, options: list[str]) -> Config:
    """A copy of ``config`` with ``--key=value`` and ``--key value`` put in their places.

    Raises:
        ValueError: a value is too large or too deep to be meant.
    """
    given: Config = _copy(config)
    words = [piece for word in options for piece in _split(word)]
    for flag, value in zip_longest(words, words[1:], fillvalue="--"):
        if flag.startswith("--") and not value.startswith("--"):
            content = _read(value)
            check_size(content, flag)
            _put(given, flag[2:].split("."), content)
    return given


def locate(given: Config, trail: Place, fits: Callable[[Any], bool]) -> tuple[Place, Any]:
    """The place and value in ``given`` that the parser's ``trail`` of keys leads to.

    Args:
        given: the tree to look in.
        trail: keys in order, with steps left out between them.
        fits: whether a value is the one complained of.

    Returns:
        The shortest such place; ``(trail, None)`` if the value came from elsewhere.
    """
    found = [(place, value) for place, value in _walk(given) if _leads_to(trail, place) and fits(value)]
    place, value = min(found, key=lambda pair: len(pair[0]), default=(trail, None))
    return (place[:-1] if place[-1:] == ("class_path",) else place), value


def class_path(value: Any) -> str:
    """The class that a YAML value names, as ``Causal`` and ``class_path: Causal`` both do."""
    return str(value.get("class_path") if isinstance(value, dict) else value)


def fill_names(message: str, given: Config) -> str:
    """Puts the name for ``<name>`` in a key like ``patterns.<name>.init_args.window``.

    A pattern does not know under which name YAML lists it: that of the entry whose value the
    message complains of.
    """
    key = re.search(r"[\w.]*<name>[\w.]*", message)
    value = re.search(r"=(\S+) is not allowed", message)
    if not key or not value:
        return message
    pattern = re.compile(re.escape(key[0]).replace("<name>", r"[^.]+"))
    for place, found in _walk(given):
        if pattern.fullmatch(".".join(place)) and repr(found) == value[1]:
            return message.replace(key[0], ".".join(place))
    return message


def _leads_to(trail: Place, place: Place) -> bool:
    steps = iter(place)
    return all(key in steps for key in trail)


def _walk(node: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    if place:
        yield place, node
    keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        yield from _walk(node[key], (*place, str(key)))


def _copy(node: Any) -> Any:
    return {key: _copy(child) for key, child in node.items()} if isinstance(node, dict) else node


def _split(word: str) -> list[str]:
    return word.split("=", 1) if word.startswith("--") else [word]


def _read(text: str) -> Any:
    try:
        return get_loader("yaml")(text)
    except Exception:  # the parser will say what it makes of it; PyYAML raises whatever Python does
        return text


def _put(node: Config, keys: list[str], value: Any) -> None:
    # On the command line `model.schedule` is short for `model.init_args.schedule`.
    if ("class_path" in node or "init_args" in node) and keys[0] not in ("class_path", "init_args"):
        keys = ["init_args", *keys]
    key, *rest = keys
    if not rest:
        node[key] = value
        return
    child = node.get(key)
    if not isinstance(child, dict):
        node[key] = child = {"class_path": child} if isinstance(child, str) else {}
    _put(child, rest, value)
