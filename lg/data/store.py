"""Keeps arrays in a folder so that whoever opens it meets all of them as they were written, or knows why not.

A folder holds a file of raw numbers for each array, and ``meta.json``, written last, with the arrays' types, sizes
and checksums and what they were made from.
"""

import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

_BLOCK = 1 << 24  # bytes that share a checksum
_META = "meta.json"

Origin = Mapping[str, str | int]
"""What the arrays of a folder were made from: another origin is another folder."""


class Damaged(Exception):
    """A folder is not as it was written; the message names the file and what is wrong with it."""


class Draft:
    """A folder in the making: written under a name of its own, and renamed when it is complete.

    Used in a ``with``, which removes it if it was not finished, whatever the reason.

    Args:
        part: where it is written; what lies there is removed.
        names: of the arrays.

    Raises:
        ValueError: by all that writes: the disk is full, or the folder cannot be written.
    """

    def __init__(self, part: Path, names: Iterable[str]) -> None:
        self._part = part
        self._names = tuple(names)
        self._files: dict[str, _File] = {}

    def append(self, name: str, array: npt.NDArray[Any]) -> None:
        """Write more of an array; all pieces of one array have the same type."""
        with writable(self._part):
            self._files[name].append(array)

    def finish(self, final: Path, origin: Origin) -> None:
        """Bring all to the disk and give the folder its final name, which nothing bears."""
        with writable(self._part):
            files = {name: file.finish() for name, file in self._files.items()}
            content = {"origin": dict(origin), "files": files}
            with (self._part / _META).open("xb") as meta:
                meta.write(json.dumps({**content, "crc32": _checksum(content)}, indent=1).encode())
                meta.flush()
                os.fsync(meta.fileno())
            _sync(self._part)
            self._part.rename(final)
            _sync(final.parent)

    def __enter__(self) -> "Draft":
        with writable(self._part):
            remove(self._part)
            self._part.mkdir()
            try:
                for name in self._names:
                    self._files[name] = _File(_file(self._part, name))
            except BaseException:
                self._discard()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()

    def _discard(self) -> None:
        for file in self._files.values():
            file.close()
        shutil.rmtree(self._part, ignore_errors=True)


class _File:
    """The raw numbers of one array, and their checksums as they are written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._dtype = ""
        self._size = 0
        self._checksums: list[int] = []

    def append(self, array: npt.NDArray[Any]) -> None:
        assert self._dtype in ("", array.dtype.str), f"{self._dtype} goes on as {array.dtype.str}"
        self._dtype = array.dtype.str
        data = np.ascontiguousarray(array).view(np.uint8)
        while len(data):
            into = self._size % _BLOCK
            if into == 0:
                self._checksums.append(0)
            piece = data[: _BLOCK - into]
            self._file.write(piece.data)
            self._checksums[-1] = zlib.crc32(piece.data, self._checksums[-1])
            self._size += len(piece)
            data = data[len(piece) :]

    def finish(self) -> dict[str, Any]:
        assert self._dtype, "an array is appended at least once, if only one without elements"
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"dtype": self._dtype, "bytes": self._size, "crc32": self._checksums}

    def close(self) -> None:
        """Let go of the file; what the disk has no room for is given up."""
        with suppress(OSError):
            self._file.close()


def verify(folder: Path, origin: Origin) -> None:
    """Read all of a folder, and compare it with what was written.

    Raises:
        Damaged: it is not complete, has changed, or is of another origin.
    """
    meta = _meta(folder)
    if meta["origin"] != dict(origin):
        raise Damaged(f"{folder / _META} is of another text, tokenizer or version")
    for name, written in meta["files"].items():
        path = _file(folder, name)
        try:
            if not path.is_file():
                raise Damaged(f"{path} is missing")
            if (size := path.stat().st_size) != written["bytes"]:
                raise Damaged(f"{path} has {size} bytes, and {written['bytes']} were written")
            if _checksums(path, size) != written["crc32"]:
                raise Damaged(f"{path} has changed since it was written")
        except OSError as error:
            raise Damaged(f"{path} cannot be read: {error.strerror}") from error


def opened(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a folder by name, mapped to memory, not to be written to; only ``meta.json`` is verified.

    Raises:
        Damaged: ``meta.json`` is not as it was written, or an array cannot be mapped.
    """
    arrays = {}
    for name, written in _meta(folder)["files"].items():
        path, dtype = _file(folder, name), np.dtype(written["dtype"])
        length = written["bytes"] // dtype.itemsize
        try:
            # No file without a byte can be mapped.
            arrays[name] = np.memmap(path, dtype, "r", shape=(length,)) if length else np.zeros(0, dtype)
        except (OSError, ValueError) as error:
            raise Damaged(f"{path} cannot be mapped: {error}") from error
    return arrays


def remove(path: Path) -> None:
    """Remove whatever is at a path, if anything.

    Raises:
        OSError: it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Tells the user of what the file system refuses while something is made at a path.

    Raises:
        ValueError: in place of an OSError.
    """
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(
            f"data.init_args.cache: {str(path)!r} cannot be written: {reason}; a folder on a disk with room is needed, "
            "named there or in the environment as LG_CACHE"
        ) from error


def _meta(folder: Path) -> dict[str, Any]:
    path = folder / _META
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content, dict) and content.pop("crc32", None) == _checksum(content) and _has_shape(content):
            return content
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is not JSON") from error
    raise Damaged(f"{path} has changed since it was written")


def _has_shape(content: dict[str, Any]) -> bool:
    """Whether it is what another version, or whoever knows how to make a checksum, writes too."""
    files = content.get("files")
    return (
        isinstance(content.get("origin"), dict)
        and isinstance(files, dict)
        and all(
            isinstance(file, dict)
            and isinstance(file.get("bytes"), int)
            and isinstance(file.get("crc32"), list)
            and re.fullmatch(r"[<|][iuf][1248]", str(file.get("dtype")))
            for file in files.values()
        )
    )


def _checksum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _checksums(path: Path, size: int) -> list[int]:
    """Of each block of a file. Read, not mapped: a file that shrinks meanwhile would end a process that maps it."""
    with path.open("rb") as file, ThreadPoolExecutor(8) as threads:
        descriptor = file.fileno()
        return list(threads.map(lambda begin: zlib.crc32(os.pread(descriptor, _BLOCK, begin)), range(0, size, _BLOCK)))


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.bin"


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
