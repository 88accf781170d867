"""What can be fetched, as it lies on the disk: a folder of files, and the list of their checksums.

The list is a file ``SHA256SUMS`` as ``sha256sum`` writes it; the table of assets holds the checksum of that list, so
that what was fetched is known to the bit, wherever it was fetched from.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lg.data.assets.archive import Files
from lg.data.assets.packages import Package
from lg.folder import cache_folder

SUMS = "SHA256SUMS"


@dataclass(frozen=True)
class Asset:
    """Texts, or files of a model, that packages hold.

    Args:
        about: what it is, in a line.
        licence: of what is kept; the user's to heed.
        packages: what is brought.
        files: patterns of the paths, in the packages, of the files that are read.
        make: what is kept of these files, by file name.
        num_documents: how many documents it has; 0 if it is no text.
        num_bytes: of all that is kept.
        sha256: of the list of checksums of all that is kept.
    """

    about: str
    licence: str
    packages: tuple[Package, ...]
    files: tuple[str, ...]
    make: Callable[[Files], Files]
    num_documents: int
    num_bytes: int
    sha256: str


class Damaged(Exception):
    """What lies in an asset's folder is not what was fetched."""


def folder_of(name: str) -> Path:
    """Where an asset is, or will be."""
    return cache_folder() / "assets" / name


def sums(files: Files) -> bytes:
    """The list of checksums of some files, in the order of their names."""
    return "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)).encode()


def listed(folder: Path, asset: Asset) -> dict[str, str]:
    """The checksums of the files of a fetched asset, by name, in order.

    Raises:
        FileNotFoundError: nothing is there.
        Damaged: the list is not the asset's.
    """
    try:
        text = (folder / SUMS).read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(f"{folder / SUMS} cannot be read: {error.strerror}") from error
    if hashlib.sha256(text).hexdigest() != asset.sha256:
        raise Damaged(f"{folder / SUMS} is not the list that was fetched")
    return {name: digest for digest, name in (line.split("  ", 1) for line in text.decode().splitlines())}


def read(path: Path, digest: str) -> bytes:
    """The content of a file of an asset.

    Raises:
        Damaged: it is not what was fetched.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise Damaged(f"{path} is not what was fetched")
    return content
