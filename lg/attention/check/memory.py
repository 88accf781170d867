"""Verdicts are remembered on disk, for each machine and all that computes: a second run starts without the check.

One file for each case, written aside and renamed, so that ranks and runs that write at the same time do no harm.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lg.attention.check.budget import Yardstick
from lg.attention.check.case import Case, Facts
from lg.attention.check.examine import BrokenDevice, Verdict, examined
from lg.attention.constant import constant_in_graphs
from lg.attention.impl import Implementation
from lg.attention.pattern import Pattern
from lg.attention.routed import Routed
from lg.attention.tiles import Tiles
from lg.folder import aside, cache_folder

log = logging.getLogger(__name__)

# What computes besides torch and lg.
_PACKAGES = ("triton", "flash-attn-4", "nvidia-cutlass-dsl", "quack-kernels")

# What the cache folder's place depends on.
_PLACES = ("LG_CACHE", "XDG_CACHE_HOME", "HOME")


class _Entry(NamedTuple):
    """A verdict, and the case that it is on, in words."""

    case: str
    verdict: Verdict


def refused(name: str, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> str | None:
    """Why an implementation is not to be used for this on this machine, or None; nothing is computed.

    It is refused what it has failed. And where it has given wrong results for some pattern at this head width and type,
    it is refused every other that it has not passed.

    Args:
        name: of the implementation.
        q, k, v: as `attend` takes them.
        tiles: what is seen.

    Returns:
        What the check found, and the command that checks anew.
    """
    return _answer(name, _text(tiles.pattern, tiles.text), *Facts.of(q, k, tiles)).refusal


def proven(name: str, implementation: Implementation, case: Case) -> str | None:
    """Why an implementation is not to be used in a case: by a check now, unless there has been one.

    Raises:
        torch.OutOfMemoryError: there is no room for the check.
        BrokenDevice: nothing more can be computed on the device.
    """
    text = _text(case.pattern, case.pattern.text)
    known = _answer(name, text, *case.facts)
    if known.is_checked:
        return known.refusal
    try:
        verdict = checked(name, implementation, case, Yardstick.of(case))
    except Unwritable as error:
        log.warning("the check of attention by %s is not remembered: %s", name, error)
        verdict = _shelf(_folder(name, case.facts))[_digest(text, case.facts)].verdict
    if verdict.failure is None:
        log.info("attention by %s of %s passed its check: at most %s", name, case, verdict.told)
    return _answer(name, text, *case.facts).refusal


class _Answer(NamedTuple):
    """Whether there has been a check of a case, and why an implementation is not to be used in it."""

    is_checked: bool
    refusal: str | None


@constant_in_graphs
def _answer(
    name: str,
    text: str,
    heads_kv: int,
    groups: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    packed: bool,
    chunk: bool,
) -> _Answer:
    facts = Facts(heads_kv, groups, width, dtype, device, packed, chunk)
    shelf = _shelf(_folder(name, facts))
    if not shelf:
        return _Answer(False, None)
    entry = shelf.get(_digest(text, facts))
    if entry is not None:
        failure = entry.verdict.failure
        refusal = failure and f"{failure}; `lg check --config FILE --again` checks anew"
    else:
        # A chunk of queries is computed as all are.
        whole = shelf.get(_digest(text, facts._replace(chunk=False)))
        passed = whole is not None and whole.verdict.failure is None
        wrong = None if passed else next((other for other in shelf.values() if other.verdict.is_wrong), None)
        refusal = wrong and (
            f"of {wrong.case}: {wrong.verdict.failure}; whether it is right here, `lg check --config FILE` finds out"
        )
    if refusal:
        _warn(name, text, facts.width, dtype, refusal)
    return _Answer(entry is not None, refusal)


def checked(name: str, implementation: Implementation, case: Case, yardstick: Yardstick) -> Verdict:
    """A new verdict, remembered.

    Args:
        name: of the implementation.
        implementation: that takes the case.
        case: what the verdict holds for.
        yardstick: of the case.

    Raises:
        torch.OutOfMemoryError: there is no room for the check.
        BrokenDevice: nothing more can be computed on the device; that is remembered.
        Unwritable: the verdict is known to this process alone.
    """
    try:
        verdict = examined(implementation, yardstick)
    except BrokenDevice as error:
        remember(name, case, error.verdict)
        raise BrokenDevice(error.verdict, f"attention by {name} of {case}") from error
    remember(name, case, verdict)
    return verdict


def recall(name: str, case: Case) -> Verdict | None:
    """What is remembered of an implementation in a case."""
    entry = _shelf(_folder(name, case.facts)).get(_digest(_text(case.pattern, case.pattern.text), case.facts))
    return entry.verdict if entry else None


class Unwritable(ValueError):
    """The cache folder takes no verdict."""


def remember(name: str, case: Case, verdict: Verdict) -> None:
    """Keeps a verdict, in place of an earlier one.

    Raises:
        Unwritable: the verdict is known to this process alone.
    """
    folder = _folder(name, case.facts)
    digest = _digest(_text(case.pattern, case.pattern.text), case.facts)
    _shelf(folder)[digest] = _Entry(str(case), verdict)
    content = {"implementation": name, "case": str(case), **verdict._asdict(), "machine": machine(case.facts.device)}
    path = folder / f"{digest}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with aside(path) as part:
            part.write_text(json.dumps(content, indent=1), encoding="utf-8")
    except OSError as error:
        raise Unwritable(
            f"LG_CACHE: {str(folder)!r} cannot be written: {error.strerror or error}; a folder on a disk with room is "
            "needed, named in the environment as LG_CACHE"
        ) from error


def folder_of(device: torch.device) -> Path:
    """Where the verdicts on this machine are kept, as long as nothing changes that computes."""
    return cache_folder() / "attention" / _hash(machine(device))


@cache
def machine(device: torch.device) -> dict[str, str]:
    """The device, and the versions of all that computes on it."""
    here = {"device": platform.machine(), "capability": torch.backends.cpu.get_cpu_capability()}
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        here = {"device": torch.cuda.get_device_name(device), "capability": f"{major}.{minor}"}
    return {
        **here,
        "torch": torch.__version__,
        "cuDNN": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]  # torch's stub
        **{name: _version(name) for name in _PACKAGES},
        "lg.attention": _sources(),
    }


@cache
def _warn(name: str, text: str, width: int, dtype: torch.dtype, refusal: str) -> None:
    """Says a refusal once."""
    log.warning("attention by %s of `%s`, head width %d, %s, is not used: %s", name, text, width, dtype, refusal)


def _text(pattern: Pattern, text: str) -> str:
    """What tells patterns apart: their text; of one that is chosen by content, whose text is what it admits, also who
    chooses.
    """
    return f"{text}, chosen by {type(pattern).__qualname__}" if isinstance(pattern, Routed) else text


def _folder(name: str, facts: Facts) -> Path:
    # Asked in each layer of each step, and by then the folder is known, unless the environment has changed.
    places = tuple(map(os.environ.get, _PLACES))
    # A relative folder is another one in each working directory.
    within = os.getcwd() if places[0] and not os.path.isabs(places[0]) else None
    return _folder_in((*places, within), name, facts.width, facts.dtype, facts.device)


@cache
def _folder_in(places: tuple[str | None, ...], name: str, width: int, dtype: torch.dtype, device: torch.device) -> Path:
    return folder_of(device) / f"{name}-{width}-{str(dtype).removeprefix('torch.')}"


@cache
def _shelf(folder: Path) -> dict[str, _Entry]:
    """The verdicts of a folder by their cases, read once. What cannot be read is not there, and is checked anew."""
    return {path.stem: entry for path in sorted(folder.glob("*.json")) if (entry := _read(path))}


def _read(path: Path) -> _Entry | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        verdict = Verdict(**{name: content[name] for name in Verdict._fields})
        return _Entry(content["case"], verdict._replace(repeats=tuple(verdict.repeats)))
    except (OSError, ValueError, KeyError, TypeError):
        return None


@lru_cache(maxsize=4096)
def _digest(text: str, facts: Facts) -> str:
    """What tells a case from others: what the pattern says, not what it is called."""
    return _hash({**facts._asdict(), "device": facts.device.type, "dtype": str(facts.dtype), "text": text})


@cache
def _sources() -> str:
    """Of all that lg computes attention with, and checks it by."""
    root = Path(__file__).parents[1]
    paths = sorted([*root.glob("*.py"), *root.glob("impl/**/*.py"), *root.glob("check/**/*.py")])
    return _hash([f"{path.relative_to(root)}\n{path.read_text(encoding='utf-8')}" for path in paths])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _hash(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=12).hexdigest()
