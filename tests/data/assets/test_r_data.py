"""What a small writer of R's serialisation wrote is read back."""

from __future__ import annotations

import gzip
import struct
import zlib
from typing import Any

import pytest

from lg.data.assets.r_data import character_vectors

SYMBOL, PAIRLIST, CHAR, INTEGER, REAL, STRINGS, LIST, NIL, REFERENCE = 1, 2, 9, 13, 14, 16, 19, 254, 255
HAS_ATTRIBUTES, HAS_TAG = 0x200, 0x400
UTF8, LATIN1 = 8 << 12, 4 << 12


def number(*values: int) -> bytes:
    return struct.pack(f">{len(values)}i", *values)


def char(text: str | None, encoding: int = UTF8) -> bytes:
    if text is None:
        return number(CHAR, -1)
    content = text.encode("latin-1" if encoding == LATIN1 else "utf-8")
    return number(CHAR | encoding, len(content)) + content


def strings(*values: str | None, flags: int = 0) -> bytes:
    return number(STRINGS | flags, len(values)) + b"".join(map(char, values))


def named(values: dict[str, bytes], tag: bytes) -> bytes:
    """A list with the attribute `names`, whose symbol is `tag`."""
    items = number(LIST | HAS_ATTRIBUTES, len(values)) + b"".join(values.values())
    return items + number(PAIRLIST | HAS_TAG) + tag + strings(*values) + number(NIL)


def serialised(item: bytes, version: int = 3) -> bytes:
    head = b"X\n" + number(version, 0x40201, 0x30500)
    return head + (number(5) + b"UTF-8" if version == 3 else b"") + item


def database(objects: dict[str, bytes], version: int = 3, compressed: int = 1) -> tuple[bytes, bytes]:
    rdb, places = b"", {}
    for name, item in objects.items():
        content = serialised(item, version)
        packed = struct.pack(">I", len(content)) + zlib.compress(content)
        places[name] = number(INTEGER, 2, len(rdb), len(packed))
        rdb += packed
    first, again = number(SYMBOL) + char("names"), number(REFERENCE | 1 << 8)
    index = {
        "variables": named(places, first),
        "references": named({}, again),
        "compressed": number(INTEGER, 1, compressed),
    }
    return gzip.compress(serialised(named(index, again), version)), rdb


@pytest.mark.parametrize("version", [2, 3])
def test_vectors_of_strings_are_read(version: int) -> None:
    objects = {"emma": strings("EMMA", "", "dæmon"), "latin": number(STRINGS, 1) + char("café", LATIN1)}
    assert character_vectors(*database(objects, version)) == {"emma": ["EMMA", "", "dæmon"], "latin": ["café"]}


def test_an_index_may_be_compressed_either_way() -> None:
    rdx, rdb = database({"a": strings("x")})
    assert character_vectors(zlib.compress(gzip.decompress(rdx)), rdb) == {"a": ["x"]}


def test_attributes_are_passed_over() -> None:
    attributes = number(PAIRLIST | HAS_TAG, SYMBOL) + char("class") + strings("book") + number(NIL)
    objects = {"a": strings("x", flags=HAS_ATTRIBUTES) + attributes, "b": strings("y")}
    assert character_vectors(*database(objects)) == {"a": ["x"], "b": ["y"]}


def test_what_is_no_vector_of_strings_is_left_out() -> None:
    reals = number(REAL, 1) + struct.pack(">d", 0.5)
    objects = {"n": number(INTEGER, 2, 3, 4), "r": reals, "m": strings("x", None), "s": strings("x")}
    assert character_vectors(*database(objects)) == {"s": ["x"]}


WRONG: dict[str, tuple[bytes, bytes]] = {
    "empty": (b"", b""),
    "no database": (b"not", b"one"),
    "an index cut short": (gzip.compress(gzip.decompress(database({"a": strings("x")})[0])[:-20]), b""),
    "objects cut short": (database({"a": strings("x")})[0], database({"a": strings("x")})[1][:-4]),
    "another compression": database({"a": strings("x")}, compressed=2),
    "another version": (gzip.compress(serialised(strings("x"), 2).replace(number(2), number(4), 1)), b""),
    "no index": (gzip.compress(serialised(strings("x"))), b""),
    "a type that is not known": database({"a": number(238)}),
    "a length below zero": database({"a": number(STRINGS, -5)}),
    "not R's format": (gzip.compress(b"RDX3"), b""),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_told(what: str) -> None:
    with pytest.raises(ValueError):
        character_vectors(*WRONG[what])


def test_bytes_that_changed_never_end_in_another_error() -> None:
    rdx, rdb = database({"a": strings("x", "yz"), "b": number(INTEGER, 1, 1)})
    index: Any = gzip.decompress(rdx)
    for place in range(len(index)):
        for bit in (1, 64, 128):
            changed = index[:place] + bytes([index[place] ^ bit]) + index[place + 1 :]
            try:
                character_vectors(gzip.compress(changed, 0), rdb)
            except ValueError:
                continue
