"""Turns the parser's page of errors into one sentence: the YAML key, its value, what is allowed.

jsonargparse tries every alternative of a union and reports how each failed, nested by indentation.
Here the deepest failure is kept, its place is looked up in what the user wrote, and what is allowed
is read off the signatures.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args, get_type_hints

from lg.cli.configuration import Config
from lg.cli.given import Place, class_path, locate

_KEY = re.compile(r'Parser key "(.+?)":\s*(.*)')
_CLASS = re.compile(r"Problem with given class_path '(.+)':")
_UNKNOWN_CLASS = re.compile(
    r"(?:Expected a dot import path string: |Import path |Expected an instantiatable class, but )"
    r"(.*?)(?: does not .*| is .*)?$|Not a valid subclass of"
)
_UNKNOWN_KEY = re.compile(r"(?:[Oo]ption '|unrecognized arguments: --)([^\s='\"]+)")
_MISSING = re.compile(r"the following arguments are required: (.+)")
_TYPE = re.compile(r"Expected (?:an? )?(.+)")
_VALUE = re.compile(r"(?:(.*)\. Got|Given) value: (.*)")
# What a union's report says besides the failures.
_HEADINGS = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Given value type:|Subclass types expect"
    r"|a class path \(str\)|a dict with|Expected a path but|Expected a <class 'NoneType'>"
)
_NOISE = re.compile(rf"{_HEADINGS.pattern}|Not a valid subclass of \w+$")


@dataclass(frozen=True)
class Failure:
    """How one alternative failed, in the parser's words, and the keys and classes that lead there.

    Attributes:
        text: the parser's words.
        trail: keys from the root; an ``init_args`` stands for each class on the way.
        classes: import paths of those classes.
        value: the value refused, as the parser prints it; None if it does not.
    """

    text: str
    trail: Place
    classes: tuple[str, ...]
    value: str | None

    @property
    def subject(self) -> str | None:
        """The class that the failure is about; None if it is about the value of a key."""
        return self.classes[-1] if self.trail[-1:] == ("init_args",) else None


def explain(text: str, given: Config, roots: Mapping[str, type]) -> str:
    """One sentence for the parser's error.

    Args:
        text: the error.
        given: what the user wrote, as one tree.
        roots: the class behind each top-level key, whose signature says what is allowed below it.
    """
    # What has no shape of a class at all fails in no other way than that.
    failures = _failures(text, _NOISE) or _failures(text, _HEADINGS)
    if not failures:
        return " ".join(text.split())
    depth = max(len(failure.trail) for failure in failures)
    deepest = [failure for failure in failures if len(failure.trail) == depth]
    # A class that is not found says more than "not a str" beside it.
    first = next((f for f in deepest if _UNKNOWN_CLASS.match(f.text)), deepest[0])
    if match := _UNKNOWN_KEY.search(first.text):
        return _unknown_key(first, match[1], given, roots)
    if match := _MISSING.search(first.text):
        return _missing(first, match[1].split(", "), given)
    kinds = [_plain(f.text) for f in deepest if f is not first and _TYPE.match(f.text)]
    if match := _UNKNOWN_CLASS.match(first.text):
        return _unknown_class(first, match[1] or str(first.value), kinds, given, roots)
    if _TYPE.match(first.text):
        place, value = locate(given, first.trail, lambda value: first.value in (None, str(value)))
        kinds = [_plain(first.text), *kinds]
        return f"{_dotted(place)}: {value!r} is not allowed; it must be {_either(kinds)}"
    if first.subject:
        place = _place_of_subject(first, given)
        return f"{_dotted(place)}: {first.subject!r} cannot be used: {first.text}"
    return f"{_dotted(first.trail)}: {first.text}" if first.trail else first.text


def _failures(text: str, noise: re.Pattern[str]) -> list[Failure]:
    """The leaves of the report that are no noise; what stands above a leaf is told by indentation."""
    failures: list[tuple[int, Failure]] = []
    above: list[tuple[int, Place, tuple[str, ...]]] = []
    for line in text.splitlines():
        content = line.lstrip(" ")
        indent = len(line) - len(content)
        if content.startswith("- "):
            content, indent = content[2:], indent + 2
        if not content or noise.match(content):
            continue
        value = None
        if match := _VALUE.fullmatch(content):
            content, value = match.groups()
            if content is None:  # a union tells its value once, after its failures
                failures = [
                    (depth, replace(f, value=value) if depth > indent and f.value is None else f)
                    for depth, f in failures
                ]
                continue
        while above and above[-1][0] >= indent:
            above.pop()
        trail = tuple(key for _, keys, _ in above for key in keys)
        classes = tuple(name for _, _, names in above for name in names)
        if match := _CLASS.match(content):
            above.append((indent, ("init_args",), (match[1],)))
            continue
        if match := _KEY.match(content):
            keys, content = tuple(match[1].split(".")), match[2]
            above.append((indent, keys, ()))
            trail += keys
        if content:
            failures.append((indent, Failure(content, trail, classes, value)))
    return [failure for _, failure in failures]


def _unknown_key(failure: Failure, key: str, given: Config, roots: Mapping[str, type]) -> str:
    if failure.subject:
        place, _ = locate(given, (*failure.trail, key), lambda value: True)
        allowed = _parameters(_imported(failure.subject))
    else:
        place = tuple(key.split("."))
        root = roots.get(place[0]) if len(place) > 1 else None
        place = place[:2] if root else place[:1]
        allowed = _parameters(root) if root else list(roots)
    return f"{_dotted(place)}: not a known key; {_choice(place[-1], allowed)}"


def _missing(failure: Failure, names: list[str], given: Config) -> str:
    if failure.subject:
        place = (*_place_of_subject(failure, given), "init_args")
        keys = ", ".join(_dotted((*place, name)) for name in names)
        return f"{keys}: missing; {_last(failure.subject)} needs it"
    keys = ", ".join(sorted(name.split(".", 1)[-1] for name in names))
    return f"{keys}: missing; name a configuration, as in --config configs/hybrid.yaml"


def _unknown_class(failure: Failure, name: str, kinds: list[str], given: Config, roots: Mapping[str, type]) -> str:
    place, _ = locate(given, failure.trail, lambda value: class_path(value) == name)
    bases = _bases(failure, roots)
    known = sorted({name for base in bases for name in _subclasses(base)})
    allowed = [_choice(name, known)] if known else []
    allowed += ["the dotted path of a class of yours", *kinds]
    what = _either([base.__name__ for base in bases] or ["class"])
    return f"{_dotted(place)}: {name!r} is not a known {what}; {_either(allowed)}"


def _place_of_subject(failure: Failure, given: Config) -> Place:
    # The parser has resolved the name; the user may have written the short one.
    name = _last(failure.classes[-1])
    return locate(given, failure.trail[:-1], lambda value: _last(class_path(value)) == name)[0]


def _bases(failure: Failure, roots: Mapping[str, type]) -> list[type]:
    """The classes of which a subclass is wanted here, from the parameter's annotation."""
    *above, key = failure.trail
    if not above:
        return [roots[key]] if key in roots else []
    owner = _imported(failure.classes[-1]) if failure.classes else roots.get(above[0])
    if owner is None:
        return []
    try:
        hint = get_type_hints(inspect.getattr_static(owner, "__init__")).get(key)
    except NameError:  # an annotation that only a type checker can read
        return []
    return list(dict.fromkeys(kind for kind in _named_in(hint) if kind.__module__ != "builtins"))


def _named_in(hint: Any) -> Iterator[type]:
    parts = get_args(hint)
    if not parts and isinstance(hint, type):
        yield hint
    for part in parts:
        yield from _named_in(part)


def _subclasses(base: type) -> Iterator[str]:
    if not inspect.isabstract(base) and not base.__name__.startswith("_"):
        yield base.__name__
    children: list[type] = base.__subclasses__()
    for child in children:
        yield from _subclasses(child)


def _parameters(kind: type | None) -> list[str]:
    return list(inspect.signature(kind).parameters) if kind else []


def _imported(path: str) -> type | None:
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name, None)
    return found if isinstance(found, type) else None


def _choice(name: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(name, allowed, n=1)
    if near and len(allowed) > 20:
        return f"did you mean {near[0]}? (--help lists all)"
    question = f"did you mean {near[0]}? " if near else ""
    return f"{question}allowed: {', '.join(allowed)}"


def _either(names: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _plain(text: str) -> str:
    match = _TYPE.match(text)
    kind = match[1] if match else text
    return re.sub(r"<class '(?:.*\.)?(.+?)'>", r"\1", kind).replace("typing.", "")


def _dotted(place: Place) -> str:
    return ".".join(place)


def _last(path: str) -> str:
    return path.rpartition(".")[2]
