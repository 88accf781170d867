"""Where text comes from: a source yields whole documents, however long, always in one order.

A source of one's own is a subclass of :class:`Source`, named in YAML by its dotted path.
"""

import sysconfig
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Document:
    """One text that attention may see as a whole.

    Attributes:
        name: what tells it from the source's other documents; alone decides whether it is held out.
        text: its bytes, in whatever encoding the source has (UTF-8 but for rare exceptions).
    """

    name: str
    text: bytes


class Source(ABC):
    """A collection of documents that can be read more than once."""

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Every document, in the same order at each call and on each machine with the same text.

        Raises:
            ValueError: the source is missing or holds no text.
        """


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

    def documents(self) -> Iterator[Document]:
        """One document a top-level module or package, by name; about 14 MB in 200 documents."""
        library = Path(sysconfig.get_path("stdlib"))
        files = {entry.stem: paths for entry in library.iterdir() if (paths := self._files(entry))}
        if not files:
            raise ValueError(
                f"data.init_args.source: Stdlib found no .py file in {library}; an interpreter "
                "with its standard library in source form, or another source, is needed"
            )
        return (_joined(name, library, files[name]) for name in sorted(files))

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

    def documents(self) -> Iterator[Document]:
        """One document a file, in path order.

        Raises:
            ValueError: there is no such folder, or no file in it that has text.
        """
        key = "data.init_args.source.init_args.path"
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            raise ValueError(f"{key}: {self.path!r} is not a folder; an existing one is needed")
        files = [path for path in sorted(folder.rglob("*")) if self._is_text(path, folder)]
        if not files:
            raise ValueError(
                f"{key}: {self.path!r} holds no text; at least one file that is not empty and ends "
                f"in one of {', '.join(self.suffixes)} is needed "
                "(data.init_args.source.init_args.suffixes)"
            )
        return (Document(path.relative_to(folder).as_posix(), path.read_bytes()) for path in files)

    def _is_text(self, path: Path, folder: Path) -> bool:
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        named = path.name.endswith(tuple(self.suffixes))
        return named and not hidden and path.is_file() and path.stat().st_size > 0


@dataclass(frozen=True)
class HuggingFace(Source):
    """A text column of a dataset that the ``datasets`` library can load, one row a document.

    Args:
        path: a dataset's name on the hub, a local folder, or a format such as ``json``.
        split: the split to read; lg holds out documents of it by itself.
        column: the column of text.
        name: the dataset's configuration, if it has several.
        data_files: the files to read, for a format given as ``path``.
    """

    path: str
    split: str = "train"
    column: str = "text"
    name: str | None = None
    data_files: str | list[str] | None = None

    def documents(self) -> Iterator[Document]:
        """One document a row that has text, named by the row's number.

        Raises:
            ValueError: the dataset cannot be loaded, or has no such column of text.
        """
        # 1.7 s, so only where it is used; it ships no types.
        import datasets  # type: ignore[import-untyped, unused-ignore]

        key = "data.init_args.source.init_args"
        try:
            rows = datasets.load_dataset(self.path, self.name, split=self.split, data_files=self.data_files)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{key}.path: {self.path!r} (split {self.split!r}, name {self.name!r}, data_files "
                f"{self.data_files!r}) cannot be loaded: {error}"
            ) from error
        columns = [
            name
            for name, feature in rows.features.items()
            if getattr(feature, "dtype", None) in ("string", "large_string")
        ]
        if self.column not in columns:
            raise ValueError(
                f"{key}.column: {self.column!r} is not a column of text; {self.path!r} has "
                f"{', '.join(columns) or 'none'}"
            )
        texts = enumerate(rows[self.column])
        return (Document(str(index), text.encode()) for index, text in texts if text)


def _joined(name: str, library: Path, files: list[Path]) -> Document:
    parts = []
    for path in files:
        text = path.read_bytes()
        ending = b"" if text.endswith(b"\n") or not text else b"\n"
        parts += [f"# file: {path.relative_to(library).as_posix()}\n".encode(), text, ending]
    return Document(name, b"".join(parts))
