"""Caches of tokens that were damaged, cut, swapped or put there by something else."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import damage
from good import config, fit, train
from trial import Case

KIND = "cache"
SEEDS = 4
FILES = ("meta.json", "tokens.bin", "starts.bin", "num_bytes.bin", "places.bin")


def cases() -> Iterator[Case]:
    """Every file with every damage; other contents of ``meta.json``; and what may lie about."""
    for file in FILES:
        for way in damage.WAYS:
            for seed in range(SEEDS if way in damage.WAYS[:6] else 1):
                yield _case(f"{file}: {way.__name__.replace('_', ' ')} {seed}", _damage(file, way))
    for name, content in METAS.items():
        yield _case(f"meta.json is {name}", _meta(content))
    for name, change in FIELDS.items():
        yield _case(f"meta.json, checksum kept: {name}", _field(change, fit_checksum=False))
        yield _case(f"meta.json, checksum made to fit: {name}", _field(change, fit_checksum=True))
    for name, tamper in ENTRIES.items():
        yield _case(name, lambda draw, entry, tamper=tamper: tamper(entry))


def _case(name: str, tamper: Callable[[random.Random, Path], Any]) -> Case:
    def prepare() -> list[str]:
        train(config())
        (entry,) = (path for path in Path("cache/corpora").iterdir() if path.is_dir())
        tamper(random.Random(name), entry)
        return fit(config())

    return Case(KIND, name, prepare)


def _damage(file: str, way: Callable[[random.Random, Path], None]) -> Callable[[random.Random, Path], None]:
    return lambda draw, entry: way(draw, entry / file)


METAS: dict[str, bytes] = {
    "null": b"null", "list": b"[]", "number": b"3", "text": b'"a"', "empty dict": b"{}", "NaN": b"NaN",
    "deep": b"[" * 100_000, "not UTF-8": b"\xff\xfe{}",
    "dict of nulls": b'{"origin": null, "files": null, "crc32": null}',
    "files as list": b'{"origin": {}, "files": [], "crc32": 0}', "long number": b'{"crc32": ' + b"9" * 5000 + b"}",
}  # fmt: skip

FIELDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no files": lambda meta: meta.pop("files"),
    "no origin": lambda meta: meta.pop("origin"),
    "files is null": lambda meta: meta.update(files=None),
    "files is empty": lambda meta: meta.update(files={}),
    "origin is null": lambda meta: meta.update(origin=None),
    "no tokens": lambda meta: meta["files"].pop("tokens"),
    "other name": lambda meta: meta["files"].update(other=meta["files"].pop("tokens")),
    "one more": lambda meta: meta["files"].update(more=meta["files"]["tokens"]),
    "a path as name": lambda meta: meta["files"].update({"../../x": meta["files"].pop("tokens")}),
    "bytes negative": lambda meta: meta["files"]["tokens"].update(bytes=-1),
    "bytes too many": lambda meta: meta["files"]["tokens"].update(bytes=10**9),
    "bytes as text": lambda meta: meta["files"]["tokens"].update(bytes="12"),
    "dtype unknown": lambda meta: meta["files"]["tokens"].update(dtype="banana"),
    "dtype of objects": lambda meta: meta["files"]["tokens"].update(dtype="O"),
    "dtype of another width": lambda meta: meta["files"]["starts"].update(dtype="<i2"),
    "dtype is null": lambda meta: meta["files"]["tokens"].update(dtype=None),
    "checksums empty": lambda meta: meta["files"]["tokens"].update(crc32=[]),
    "checksums null": lambda meta: meta["files"]["tokens"].update(crc32=None),
    "version of tomorrow": lambda meta: meta["origin"].update(version=99),
    "swapped": lambda meta: meta["files"].update(starts=meta["files"]["places"], places=meta["files"]["starts"]),
}


def _meta(content: bytes) -> Callable[[random.Random, Path], Any]:
    return lambda draw, entry: (entry / "meta.json").write_bytes(content)


def _field(change: Callable[[dict[str, Any]], Any], fit_checksum: bool) -> Callable[[random.Random, Path], None]:
    def tamper(draw: random.Random, entry: Path) -> None:
        from lg.data.store import _checksum

        meta = json.loads((entry / "meta.json").read_bytes())
        checksum = meta.pop("crc32")
        change(meta)
        (entry / "meta.json").write_text(json.dumps({**meta, "crc32": _checksum(meta) if fit_checksum else checksum}))

    return tamper


def _as_file(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_text("no folder")


def _as_link(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.symlink_to(entry.name)


def _as_link_away(entry: Path) -> None:
    shutil.rmtree(entry)
    Path("elsewhere").mkdir()
    entry.symlink_to(Path("elsewhere").absolute())


def _swapped(entry: Path) -> None:
    (entry / "starts.bin").rename(entry / "x")
    (entry / "places.bin").rename(entry / "starts.bin")
    (entry / "x").rename(entry / "places.bin")


ENTRIES: dict[str, Callable[[Path], Any]] = {
    "entry is empty": lambda entry: [file.unlink() for file in entry.iterdir()],
    "entry is a file": _as_file,
    "entry is a link to itself": _as_link,
    "entry is a link elsewhere": _as_link_away,
    "files swapped": _swapped,
    "a file too many": lambda entry: (entry / "more.bin").write_text("more"),
    "half-written one beside it": lambda entry: shutil.copytree(entry, entry.with_suffix(".part")),
    "half-written one instead": lambda entry: entry.rename(entry.with_suffix(".part")),
    "half-written one is a file": lambda entry: entry.with_suffix(".part").write_text("x"),
    "half-written one of another entry": lambda entry: entry.rename(entry.with_name("0" * 32 + ".part")),
    "lock is a folder": lambda entry: (_unlocked(entry), shutil.rmtree(entry), entry.with_suffix(".lock").mkdir()),
    "lock is a link to itself": lambda entry: (
        _unlocked(entry), shutil.rmtree(entry), entry.with_suffix(".lock").symlink_to(entry.with_suffix(".lock").name),
    ),
    "corpora is a file": lambda entry: (shutil.rmtree(entry.parent), entry.parent.write_text("x")),
    "corpora is a link to itself": lambda entry: (shutil.rmtree(entry.parent), entry.parent.symlink_to("corpora")),
    "cache is a file": lambda entry: (shutil.rmtree("cache"), Path("cache").write_text("x")),
    "cache is a device": lambda entry: (shutil.rmtree("cache"), os.symlink("/dev/null", "cache")),
    "other files about": lambda entry: (entry.parent / "README").write_text("hello"),
}  # fmt: skip


def _unlocked(entry: Path) -> None:
    entry.with_suffix(".lock").unlink(missing_ok=True)
