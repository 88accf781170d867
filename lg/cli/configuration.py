"""YAML files that build on one another: ``base: other.yaml`` first, then the file's own values.

A file names at most one base, relative to itself; the base may name another. Values merge key by
key, so a file says only what differs. Several ``--config`` files merge the same way, in order; the
command line's other options come last.
"""

from __future__ import annotations

import json
import os.path
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from jsonargparse import get_loader

Config = dict[str, Any]

FLAGS = ("-c", "--config")
"""The options that name a YAML file."""

# More than anyone writes, and less than the parser's recursion and patience bear.
_MOST, _DEEPEST = 10_000, 40


def gather(args: list[str]) -> tuple[Config, list[str]]:
    """Takes every ``--config FILE`` out of ``args``.

    Returns:
        The files merged into one configuration that stands alone, and the arguments that are left.

    Raises:
        ValueError: a file is missing or no YAML, or its bases run in a circle.
    """
    merged: Config = {}
    rest: list[str] = []
    words = iter(args)
    for word in words:
        flag, equals, path = word.partition("=")
        if flag not in FLAGS:
            rest.append(word)
            continue
        path = path if equals else next(words, "")
        if not path:
            raise ValueError(f"{flag}: a YAML file is needed, as in {flag} configs/hybrid.yaml")
        merged = merge(merged, load(Path(path)))
    return merged, rest


def load(path: Path, above: tuple[Path, ...] = ()) -> Config:
    """Reads a YAML file on its chain of bases.

    Args:
        path: the file.
        above: the files that led here by their ``base``, in order.

    Raises:
        ValueError: as ``gather`` does.
    """
    chain = (*above, path)
    own = _read(path, above)
    if path.resolve() in [file.resolve() for file in above]:
        circle = " -> ".join(map(str, chain))
        raise ValueError(f"base: {circle} runs in a circle; a chain of bases must end")
    base = own.pop("base", None)
    if base is None:
        return own
    if not isinstance(base, str):
        raise ValueError(f"base: {base!r} in {path} is not allowed; it must be one YAML file's path")
    return merge(load(path.parent / base, chain), own)


def merge(under: Config, over: Config) -> Config:
    """``under`` with ``over`` on top, nested; another ``class_path`` discards the old arguments.

    >>> window = {"class_path": "Window", "init_args": {"window": 8}}
    >>> merge({"local": window}, {"local": {"init_args": {"window": 4}}})
    {'local': {'class_path': 'Window', 'init_args': {'window': 4}}}
    >>> merge({"local": window}, {"local": {"class_path": "Causal"}})
    {'local': {'class_path': 'Causal'}}
    """
    merged = dict(under)
    for key, value in over.items():
        below = under.get(key)
        if isinstance(below, str) and isinstance(value, dict) and list(value) == ["init_args"]:
            below = {"class_path": below}  # a class without arguments may be its bare name
        if isinstance(below, dict) and isinstance(value, dict) and _same_class(below, value):
            value = merge(below, value)
        merged[key] = value
    return merged


def check_size(content: Any, what: str) -> None:
    """Refuses what cannot be meant: integers of more than 64 bits, trees that anchors make endless, texts with a NUL.

    Args:
        content: what YAML was read as.
        what: names it in a complaint.

    Raises:
        ValueError: it is so.
    """
    if _num_values(content, 0) > _MOST:
        raise ValueError(f"{what} holds more than {_MOST} values or {_DEEPEST} levels, anchors followed")
    for place, value in _leaves(content):
        key = ".".join(place) or what
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            bits = value.bit_length() + 1
            raise ValueError(f"{key}: an integer of {bits} bits is not allowed; it must be from -2**63 to 2**63 - 1")
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"{key}: {value!r:.60} is not allowed; it must not hold a NUL character")


def as_argument(config: Config) -> str:
    """The configuration as ``--config`` takes it in place of a file: JSON, every string quoted."""
    return json.dumps(config, ensure_ascii=False, default=str)


def _same_class(under: Config, over: Config) -> bool:
    return over.get("class_path", under.get("class_path")) == under.get("class_path")


def _read(path: Path, above: tuple[Path, ...]) -> Config:
    key = f"base (in {above[-1]})" if above else "--config"
    if not os.path.isfile(path):
        near = ""
        with suppress(OSError, ValueError):  # a path that no folder can have
            near = ", ".join(sorted(file.name for file in path.parent.glob("*.yaml")))
        raise ValueError(f"{key}: {str(path)!r} is not a file; {path.parent} has {near or 'no YAML file'}")
    try:
        content = get_loader("yaml")(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{key}: {str(path)!r} cannot be read: {error.strerror}") from error
    except Exception as error:  # a tag's value, as in `!!bool perhaps`, raises what Python does
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{key}: {str(path)!r} is not YAML: {why}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{key}: {str(path)!r} must map keys to values, not be {content!r:.60}")
    check_size(content, f"{key}: {str(path)!r}")
    return content


def _leaves(node: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The values that hold no others, after the keys that lead to them."""
    if not isinstance(node, (dict, list)):
        yield place, node
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in items:
        yield from _leaves(child, (*place, str(key)))


def _num_values(node: Any, depth: int) -> int:
    """The values in a tree, an anchor's as often as it is named; too many where it is too deep to tell."""
    if depth > _DEEPEST:
        return _MOST + 1
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    found = 1
    for child in children:
        found += _num_values(child, depth + 1)
        if found > _MOST:
            break
    return found
