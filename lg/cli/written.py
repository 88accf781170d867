"""Writes a file that an option names, whole: whoever reads it meanwhile, or writes it too, never meets half of one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lg.folder import aside


def file_for(name: str | None, key: str, suffix: str) -> Path | None:
    """The file that an option names to be written; None if it names none.

    Args:
        name: what the user gave.
        key: the option.
        suffix: that the file must have.

    Raises:
        ValueError: if it can be no such file.
    """
    if not name:
        return None
    path = Path(name)
    if path.suffix != suffix or not path.parent.is_dir() or path.is_dir():
        raise ValueError(f"{key}: {name!r} is not allowed; it must be a {suffix} file in a folder that exists")
    return path


def write(path: Path, content: bytes, key: str) -> None:
    """Puts the content where the path says, in place of what was there.

    Args:
        path: a file in a folder that exists.
        content: all of it.
        key: the option that named the file.

    Raises:
        ValueError: if it cannot be written; what was there is then as it was.
    """
    try:
        with aside(path) as part:
            part.write_bytes(content)
    except OSError as error:
        raise ValueError(f"{key}: {str(path)!r} cannot be written: {error.strerror}") from error


def save(path: Path, content: Mapping[str, Any], key: str) -> None:
    """Puts a checkpoint where the path says, on the disk before it gets its name.

    Args:
        path: a file in a folder that exists.
        content: what ``torch.save`` takes.
        key: the argument that named the file.

    Raises:
        ValueError: if it cannot be written; what was there is then as it was.
    """
    import torch

    try:
        with aside(path) as part, part.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    # torch tells a full disk so.
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{key}: {str(path)!r} cannot be written: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What an error of a library says first; its kind, if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
