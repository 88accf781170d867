"""Reads texts out of an R package, without R: character vectors in a lazy-load database.

Such a database is two files: ``.rdb`` holds objects one after another, each with its size and compressed; ``.rdx``
says where each lies. Both are in R's own serialisation, big-endian ("XDR").
Source: R Internals, section 1.8 "Serialization Formats", https://cran.r-project.org/doc/manuals/R-ints.html
"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# Numbers of R's types, as they are called there.
_SYMBOL, _PAIRLIST, _CHAR, _LOGICAL, _INTEGER, _REAL, _STRINGS, _LIST = 1, 2, 9, 10, 13, 14, 16, 19
_NIL, _REFERENCE = 254, 255

_LATIN1 = 1 << 2  # in the levels of a string


def character_vectors(rdx: bytes, rdb: bytes) -> dict[str, list[str]]:
    """The vectors of strings of a database, by name; what else it holds is left out.

    Args:
        rdx: the index, as the file is.
        rdb: the objects, as the file is.

    Raises:
        ValueError: a file is damaged, or holds what this reader does not know.
    """
    try:
        index = _read(zlib.decompress(rdx, wbits=zlib.MAX_WBITS | 32))  # zlib's header or gzip's
        if index["compressed"] not in ([1], [True]):
            raise ValueError(f"objects are compressed as {index['compressed']}; only R's 1, zlib, is known")
        values = {name: _read(_object(rdb, *place)) for name, place in index["variables"].items()}
    except (struct.error, zlib.error, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"not a lazy-load database of R: {error}") from error
    return {name: value for name, value in values.items() if isinstance(value, list) and _all_strings(value)}


def _object(rdb: bytes, start: int, length: int) -> bytes:
    # Four bytes say how long it is when decompressed.
    return zlib.decompress(rdb[start + 4 : start + length])


def _all_strings(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _read(serialised: bytes) -> Any:
    """One object: lists with names become dicts, vectors lists, NULL and missing strings None."""
    stream = _Stream(serialised)
    if stream.take(2) != b"X\n":
        raise ValueError("not in R's XDR serialisation")
    version = stream.integers(3)[0]
    if version == 3:
        stream.take(stream.integer())  # the encoding of strings that bear no mark of their own
    elif version != 2:
        raise ValueError(f"version {version} of R's serialisation is not known; only 2 and 3 are")
    return stream.item()


@dataclass
class _Stream:
    """What is left of a serialised object."""

    serialised: bytes
    place: int = 0
    symbols: list[Any] = field(default_factory=list)

    def take(self, num_bytes: int) -> bytes:
        taken = self.serialised[self.place : self.place + num_bytes]
        if num_bytes < 0 or len(taken) < num_bytes:
            raise ValueError("the object ends too early")
        self.place += num_bytes
        return taken

    def integer(self) -> int:
        return self.integers(1)[0]

    def integers(self, count: int) -> list[int]:
        return list(struct.unpack(f">{count}i", self.take(4 * count)))

    def length(self) -> int:
        length = self.integer()
        if length < 0:
            raise ValueError("an object is longer than this reader knows")
        return length

    def item(self) -> Any:
        flags = self.integer()
        kind = flags & 0xFF
        if kind == _NIL:
            return None
        if kind == _REFERENCE:
            return self.symbols[(flags >> 8 or self.integer()) - 1]
        if kind not in _READERS:
            raise ValueError(f"an object of R's type {kind} is not known to this reader")
        value = _READERS[kind](self, flags)
        # Pairlists have their attributes before them, and read them by themselves.
        attributes = self.item() if flags & 0x200 and kind != _PAIRLIST else None
        names = (attributes or {}).get("names")
        return dict(zip(names, value, strict=True)) if names else value

    def symbol(self, flags: int) -> Any:
        self.symbols.append(self.item())
        return self.symbols[-1]

    def pairlist(self, flags: int) -> dict[Any, Any]:
        if flags & 0x200:
            self.item()
        tag = self.item() if flags & 0x400 else None
        value = self.item()
        return {tag: value, **(self.item() or {})}

    def char(self, flags: int) -> str | None:
        length = self.integer()
        if length == -1:
            return None
        # Marked as neither, it is ASCII, or of the locale that wrote it: UTF-8 today.
        return self.take(length).decode("latin-1" if flags >> 12 & _LATIN1 else "utf-8")

    def numbers(self, flags: int) -> list[int]:
        return self.integers(self.length())

    def reals(self, flags: int) -> list[float]:
        count = self.length()
        return list(struct.unpack(f">{count}d", self.take(8 * count)))

    def values(self, flags: int) -> list[Any]:
        return [self.item() for _ in range(self.length())]


_READERS: dict[int, Callable[[_Stream, int], Any]] = {
    _SYMBOL: _Stream.symbol,
    _PAIRLIST: _Stream.pairlist,
    _CHAR: _Stream.char,
    _LOGICAL: _Stream.numbers,
    _INTEGER: _Stream.numbers,
    _REAL: _Stream.reals,
    _STRINGS: _Stream.values,
    _LIST: _Stream.values,
}
