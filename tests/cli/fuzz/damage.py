"""Ways in which the bytes of a file go wrong."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path


def cut(draw: random.Random, file: Path) -> None:
    """As by a copy that was interrupted."""
    os.truncate(file, draw.randrange(max(file.stat().st_size, 1)))


def flip(draw: random.Random, file: Path) -> None:
    """A few bytes, as by a bad disk."""
    content = bytearray(file.read_bytes())
    for _ in range(draw.randint(1, 4)):
        if content:
            content[draw.randrange(len(content))] ^= draw.randint(1, 255)
    file.write_bytes(content)


def blank(draw: random.Random, file: Path) -> None:
    """A stretch of zeros, as after a power cut."""
    content = bytearray(file.read_bytes())
    at = draw.randrange(max(len(content), 1))
    length = draw.randint(1, 4096)
    content[at : at + length] = bytes(len(content[at : at + length]))
    file.write_bytes(content)


def lengthen(draw: random.Random, file: Path) -> None:
    """Bytes that belong elsewhere, at the end."""
    with file.open("ab") as opened:
        opened.write(draw.randbytes(draw.randint(1, 4096)))


def put_in(draw: random.Random, file: Path) -> None:
    """Bytes that belong elsewhere, in the middle."""
    content = file.read_bytes()
    at = draw.randrange(len(content) + 1)
    file.write_bytes(content[:at] + draw.randbytes(draw.randint(1, 64)) + content[at:])


def replace(draw: random.Random, file: Path) -> None:
    """Something else altogether."""
    file.write_bytes(draw.randbytes(draw.randint(0, 4096)))


def empty(draw: random.Random, file: Path) -> None:
    """Nothing."""
    file.write_bytes(b"")


def remove(draw: random.Random, file: Path) -> None:
    """Not there any more."""
    file.unlink()


def folder_instead(draw: random.Random, file: Path) -> None:
    """A folder of that name."""
    file.unlink()
    file.mkdir()


def link_to_itself(draw: random.Random, file: Path) -> None:
    """A link that leads nowhere."""
    file.unlink()
    file.symlink_to(file.name)


WAYS: tuple[Callable[[random.Random, Path], None], ...] = (
    cut, flip, blank, lengthen, put_in, replace, empty, remove, folder_instead, link_to_itself,
)  # fmt: skip
