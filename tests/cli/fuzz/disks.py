"""Folders that cannot be written: full disks, limits, missing rights, and files where folders should be."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from broken_sources import _become_nobody
from good import config, fit, train
from trial import Case

KIND = "disk"
PLACES = ("cache", "logs", "checkpoints")
ALL = ("Checkpoints", "RunCard", "ModelCard", "PatternSheet", "Throughput", "LossByPosition", "Summary")
# Bytes that one file may have, and that a whole disk may have.
LIMITS = (0, 1, 10, 100, 300, 500, 1000, 2000, 4000, 8000, 12_000, 16_000, 20_000, 30_000, 50_000, 100_000)
SIZES = (4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 72, 80, 96, 128, 160, 200, 256, 512)  # KiB


def cases() -> Iterator[Case]:
    """Limits of a file's size, small disks in each place, and folders that are none."""
    for limit in LIMITS:
        for callbacks in (("Checkpoints",), ALL):
            yield Case(KIND, f"files up to {limit} bytes, {len(callbacks)} callbacks", _limited(limit, callbacks))
        yield Case(KIND, f"files up to {limit} bytes, going on", _limited(limit, ("Checkpoints",), going_on=True))
    if os.geteuid() == 0:
        for place in (*PLACES, "."):
            taken = 64 if place == "." else 0  # by the texts and the configuration
            for size in SIZES:
                yield Case(KIND, f"{place} on a disk of {size} KiB", _small(place, taken + size))
            for files in (2, 3, 5, 8):
                yield Case(KIND, f"{place}, {files} inodes", _small(place, 512, f",nr_inodes={taken // 3 + files}"))
            yield Case(KIND, f"{place} on a disk that is read only", _small(place, 512, read_only=True))
    for place in PLACES:
        for name, spoil in SPOILT.items():
            yield Case(KIND, f"{place} is {name}", _spoilt(place, spoil))
    for files in (3, 8, 12, 16, 20, 24, 30):
        yield Case(KIND, f"{files} open files", _few_files(files))


def _given(place: str, callbacks: tuple[str, ...] = ("Checkpoints",)) -> dict[str, Any]:
    given = config()
    given["trainer"]["callbacks"] = [{"class_path": name} for name in callbacks]
    arguments: dict[str, Any] = {"every": 1, "keep": 2}
    if place == "checkpoints":
        arguments["folder"] = "checkpoints"
    given["trainer"]["callbacks"][0]["init_args"] = arguments
    return given


def _limited(limit: int, callbacks: tuple[str, ...], going_on: bool = False) -> Callable[[], list[str]]:
    def prepare() -> list[str]:
        given = _given("logs", callbacks)
        if going_on:
            train(given)
            given["trainer"]["max_steps"] = 4
        words = fit(given, *(["--ckpt_path=last"] if going_on else []))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        return words

    return prepare


def _small(place: str, kib: int, options: str = "", read_only: bool = False) -> Callable[[], list[str]]:
    def prepare() -> list[str]:
        words = fit(_given(place))
        folder = Path(place)
        folder.mkdir(exist_ok=True)
        library = ctypes.CDLL(None, use_errno=True)
        if library.unshare(0x00020000):  # CLONE_NEWNS: the mount is this process's own
            raise OSError(ctypes.get_errno(), "no mount of one's own")
        library.mount(None, b"/", None, 0x4000 | 0x40000, None)  # MS_REC | MS_PRIVATE
        if place == ".":
            kept = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        flags = 1 if read_only else 0
        if library.mount(b"none", os.fsencode(folder.absolute()), b"tmpfs", flags, f"size={kib}k{options}".encode()):
            raise OSError(ctypes.get_errno(), "cannot mount")
        if place == ".":
            os.chdir(Path.cwd())
            if read_only:
                library.mount(None, os.fsencode(Path.cwd()), None, 0x20, None)
            for path, content in kept.items():
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(content)
            if read_only:
                library.mount(None, os.fsencode(Path.cwd()), None, 0x20 | 1, None)
        return words

    return prepare


def _spoilt(place: str, spoil: Callable[[Path], Any]) -> Callable[[], list[str]]:
    def prepare() -> list[str]:
        words = fit(_given(place))
        spoil(Path(place))
        return words

    return prepare


def _no_rights(folder: Path) -> None:
    folder.mkdir()
    _become_nobody()
    folder.chmod(0o555)


def _no_look(folder: Path) -> None:
    folder.mkdir()
    _become_nobody()
    folder.chmod(0)


SPOILT: dict[str, Callable[[Path], Any]] = {
    "a file": lambda folder: folder.write_text("x"),
    "a link to itself": lambda folder: folder.symlink_to(folder.name),
    "a link to nothing": lambda folder: folder.symlink_to("nowhere/at/all"),
    "a device": lambda folder: folder.symlink_to("/dev/null"),
    "in the kernel": lambda folder: folder.symlink_to("/proc"),
    "not to be written": _no_rights,
    "not to be looked at": _no_look,
}


def _few_files(number: int) -> Callable[[], list[str]]:
    def prepare() -> list[str]:
        words = fit(_given("logs"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))
        return words

    return prepare
