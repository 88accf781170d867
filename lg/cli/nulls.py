"""Finds a ``null`` where none is allowed: the parser lets it pass, and the class would stumble over it much later."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from jsonargparse import Namespace

from lg.cli.given import Place


def misplaced_null(parsed: Namespace, roots: Mapping[str, type]) -> Place | None:
    """The keys that lead to the first ``null`` that its class does not take; None if there is none.

    Args:
        parsed: what the parser made of the configuration.
        roots: the class behind each top-level key that has no ``class_path``.
    """
    for key, kind in roots.items():
        node = parsed.get(key)
        if isinstance(node, Namespace):
            for place in _nulls(node, None if "class_path" in node else kind):
                return (key, *place)
    return None


def _nulls(node: Any, kind: type | None) -> Iterator[Place]:
    """The places below a node, that is a value or the arguments of a class."""
    if isinstance(node, list):
        for number, item in enumerate(node):
            yield from ((str(number), *place) for place in _nulls(item, None))
        return
    if not isinstance(node, (Namespace, dict)):
        return
    items = vars(node) if isinstance(node, Namespace) else node
    path = items.get("class_path")
    if isinstance(path, str):
        yield from (("init_args", *place) for place in _nulls(items.get("init_args"), _class(path)))
        return
    refusing = _refusing(kind) if kind else set()
    for key, value in items.items():
        if value is None and key in refusing:
            yield (str(key),)
        yield from ((str(key), *place) for place in _nulls(value, None))


def _refusing(kind: type) -> set[str]:
    """The parameters of a class that are annotated, and not as optional."""
    try:
        hints = get_type_hints(inspect.getattr_static(kind, "__init__"))
        defaults = inspect.signature(kind).parameters
    except (NameError, TypeError, ValueError):  # an annotation that only a type checker can read, or a class in C
        return set()
    return {
        name
        for name, hint in hints.items()
        if name in defaults and defaults[name].default is not None and not _takes_none(hint)
    }


def _takes_none(hint: Any) -> bool:
    # What a list or a dict holds is not what stands in its place.
    union = get_origin(hint) in (Union, UnionType)
    return hint in (type(None), object, Any) or (union and any(map(_takes_none, get_args(hint))))


def _class(path: str) -> type | None:
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name, None)
    return found if isinstance(found, type) else None
