"""Text that lies in files: a folder's, whole repositories', and the interpreter's own library."""

import os
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lg.data.source import KEY, Document, Source

_PATH = f"{KEY}.init_args.path"
_HEAD = 8192  # bytes that tell text from other files, as git and grep do


@dataclass(frozen=True)
class Stdlib(Source):
    """The running interpreter's standard library: real code, and nothing to download.

    A document is a top-level module, or a top-level package with all its ``*.py`` files joined in
    path order; a line ``# file: <path below the library>`` precedes each file.

    Args:
        exclude: top-level names to leave out. ``test`` is by default: as one document of 17 MB it
            outweighs all the others together (14 MB), and many installations come without it.
    """

    exclude: tuple[str, ...] = ("test",)

    def documents(self, start: int = 0) -> Iterator[Document]:
        """One document a top-level module or package, by name; about 14 MB in 200 documents."""
        library = Path(sysconfig.get_path("stdlib"))
        files = {entry.stem: paths for entry in library.iterdir() if (paths := self._files(entry))}
        if not files:
            raise ValueError(
                f"{KEY}: Stdlib found no .py file in {library}; an interpreter "
                "with its standard library in source form, or another source, is needed"
            )
        return (Document(name, _joined(files[name], library, KEY)) for name in sorted(files)[start:])

    def _files(self, entry: Path) -> list[Path]:
        """The ``*.py`` files of one top-level entry; none if the library does not own it."""
        # site-packages, lib-dynload and config-* are no identifiers: nothing can import them.
        # _sysconfigdata* is written by the build and full of the building machine's paths.
        if not entry.stem.isidentifier() or entry.stem in self.exclude or entry.stem.startswith("_sysconfigdata"):
            return []
        if entry.is_dir():
            return sorted(entry.rglob("*.py"))
        return [entry] if entry.suffix == ".py" else []


@dataclass(frozen=True)
class Folder(Source):
    """The text files under a folder, each a document named by its path below that folder.

    Hidden files and folders, and files without a single byte, are passed over.

    Args:
        path: the folder; ``~`` is understood.
        suffixes: the endings of the names of the files to read.
    """

    path: str
    suffixes: tuple[str, ...] = (
        ".txt", ".md", ".rst", ".tex",
        ".py", ".c", ".h", ".cpp", ".rs", ".go", ".java", ".js", ".ts",
    )  # fmt: skip

    def documents(self, start: int = 0) -> Iterator[Document]:
        """One document a file, in path order.

        Raises:
            ValueError: there is no such folder, no file in it that has text, or one cannot be read.
        """
        folder = _existing(self.path)
        files = sorted(path for path in _visible(folder) if self._has_text(path))
        if not files:
            raise ValueError(
                f"{_PATH}: {self.path!r} holds no text; at least one file that is not empty and ends "
                f"in one of {', '.join(self.suffixes)} is needed ({KEY}.init_args.suffixes)"
            )
        return (Document(_name(path, folder), _read(path)) for path in files[start:])

    def _has_text(self, path: Path) -> bool:
        with _readable(path):
            return path.name.endswith(tuple(self.suffixes)) and path.is_file() and path.stat().st_size > 0


@dataclass(frozen=True)
class Repositories(Source):
    """Folders of code, each one document: its text files joined in path order.

    A line ``# file: <path below the repository>`` precedes each file, whatever its language. Passed
    over are hidden files and folders (``.git``), files that are not text (a NUL in the first 8 KiB),
    links that lead out of the repository or nowhere, and repositories without any text.

    Args:
        path: the folder whose folders are the repositories; ``~`` is understood.
        suffixes: the endings of the names of the files to read; ``null`` reads every text file.
    """

    path: str
    suffixes: tuple[str, ...] | None = None

    def documents(self, start: int = 0) -> Iterator[Document]:
        """One document a repository, by name; one is in memory at a time.

        Raises:
            ValueError: there is no such folder, no folder with text in it, or a file cannot be read.
        """
        top = _existing(self.path)
        with _readable(top):
            folders = sorted(entry for entry in top.iterdir() if not entry.name.startswith(".") and entry.is_dir())
        # A link back up would hold all the repositories once more.
        folders = [folder for folder in folders if not top.resolve().is_relative_to(folder.resolve())]
        repositories = [folder for folder in folders if any(True for _ in self._texts(folder, least=1))]
        if not repositories:
            ending = f" in files that end in one of {', '.join(self.suffixes)}" if self.suffixes else ""
            raise ValueError(
                f"{_PATH}: {self.path!r} holds {len(folders)} folders, none with text{ending}; each folder "
                "directly below it is a repository, and at least one with text is needed"
            )
        return (
            Document(_name(folder, top), _joined(sorted(self._texts(folder)), folder, _PATH))
            for folder in repositories[start:]
        )

    def _texts(self, folder: Path, least: int = 0) -> Iterator[Path]:
        """The text files of a repository that have ``least`` bytes or more, in no order."""
        root = os.path.realpath(folder)
        for path in _visible(folder):
            with _readable(path):
                named = self.suffixes is None or path.name.endswith(tuple(self.suffixes))
                if not named or not path.is_file() or not _is_inside(path, root) or path.stat().st_size < least:
                    continue
                with path.open("rb") as file:
                    is_text = b"\0" not in file.read(_HEAD)
            if is_text:
                yield path


def _existing(path: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{_PATH}: {path!r} is not a folder; an existing one is needed")
    return folder


def _visible(folder: Path) -> Iterator[Path]:
    """The files below a folder that are not hidden, in no order; folders that are links are not entered."""

    def stop(error: OSError) -> None:
        raise error

    walk = os.walk(folder, onerror=stop)
    while True:
        with _readable(folder):
            parent, folders, files = next(walk, ("", [], []))
        if not parent:
            return
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in files if not name.startswith("."))


def _is_inside(path: Path, root: str) -> bool:
    return not path.is_symlink() or Path(os.path.realpath(path)).is_relative_to(root)


def _name(path: Path, folder: Path) -> str:
    """The path below the folder; a name is any bytes on disk, but text here."""
    return os.fsencode(path.relative_to(folder).as_posix()).decode(errors="replace")


def _joined(files: Iterable[Path], folder: Path, key: str) -> bytes:
    """Some files of a folder as one text, each after a line with its path."""
    parts = []
    for path in files:
        text = _read(path, key)
        ending = b"" if text.endswith(b"\n") or not text else b"\n"
        parts += [b"# file: " + os.fsencode(path.relative_to(folder).as_posix()) + b"\n", text, ending]
    return b"".join(parts)


def _read(path: Path, key: str = _PATH) -> bytes:
    with _readable(path, key):
        return path.read_bytes()


@contextmanager
def _readable(path: Path, key: str = _PATH) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"{key}: {error.filename or str(path)!r} cannot be read: {error.strerror or error}") from error
