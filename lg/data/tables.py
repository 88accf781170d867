"""Text that is a column of a table, one row a document: JSON lines and Parquet files.

They are read through the ``datasets`` library, which is imported where it is used only: 1.7 s.
"""

import glob
import json
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from lg.data.source import KEY, Document, Source, fingerprint_of

KEYS = f"{KEY}.init_args"
"""The YAML keys of a source's own arguments."""

Check = Callable[[str, Mapping[str, object], str], None]
"""Refuses a column, by its name, the kinds of all columns and the table, that is not of the kind needed."""

_BATCH = 256  # rows read at once
_REASON = 300  # characters of another library's complaint that are shown


class Table(Source):
    """Rows with a text each, numbered from 0; a row without text counts, but is no document."""

    column: str

    def documents(self, start: int = 0) -> Iterator[Document]:
        """One document a row that has text, named by the row's number.

        Raises:
            ValueError: what is to be read is missing or damaged, or has no such column, or no row has text.
        """
        return (document for _, document in self.numbered(start))

    def numbered(self, start: int = 0) -> Iterator[tuple[int, Document]]:
        # JSON can spell halves of characters, which UTF-8 cannot.
        cells = ((number, text_of(value, self.column, place)) for number, value, place in self.cells(start))
        documents = ((number, Document(str(number), text.encode(errors="replace"))) for number, text in cells if text)
        # What is wrong from the first row on is told now, not where the iterator ends up.
        first = next(documents, None)
        if first is None and start == 0:
            raise ValueError(f"{self.what()} has no text in column {self.column!r}; at least one row must have some")
        return chain([] if first is None else [first], documents)

    def cells(self, start: int, check: Check | None = None) -> Iterator[tuple[int, object, str]]:
        """What the column holds in the rows from ``start`` on: number, value or None, and the place in words.

        Args:
            start: the first row.
            check: of the column's kind, where that is known before its values are; by default it is text.

        Raises:
            ValueError: as :meth:`documents`.
        """
        return self._cells(start, check or check_column)

    @abstractmethod
    def what(self) -> str:
        """The YAML key and the value that name the table: how a complaint begins."""

    @abstractmethod
    def _cells(self, start: int, check: Check) -> Iterator[tuple[int, object, str]]:
        """As `cells`."""


class _TableFiles(Table):
    """Files of rows, one after another."""

    path: str | list[str]
    streaming: bool

    @property
    def streamed(self) -> bool:
        """As ``streaming`` says."""
        return self.streaming

    def fingerprint(self) -> str:
        """Of the files' bytes; of a stream's, of their names and sizes."""
        files = _existing(self.path)
        if self.streaming:
            values = (f"{os.path.basename(file)} {os.path.getsize(file)}".encode(errors="replace") for file in files)
        else:
            values = (value for file in files for value in _pieces(file))
        return fingerprint_of(chain([self.column.encode(errors="replace")], values))

    def what(self) -> str:
        """The path."""
        return f"{KEYS}.path: {self.path!r}"


@dataclass(frozen=True)
class Jsonl(_TableFiles):
    """A text of each line of some files, a line being a JSON object; empty lines are passed over.

    Args:
        path: a file, a pattern such as ``data/*.jsonl``, or a list of these; read in that order, and a
            pattern's files in path order. They may be compressed (``.gz``, ``.xz``, ``.zst``).
        column: the key of the text; ``null`` is no text.
        streaming: read the files anew as training goes, instead of tokenizing them once into a cache.
    """

    path: str | list[str]
    column: str = "text"
    streaming: bool = False

    def _cells(self, start: int, check: Check) -> Iterator[tuple[int, object, str]]:
        number = 0
        # One file at a time, so that a complaint can name it.
        for file in _existing(self.path):
            what = f"{KEYS}.path: {file!r}"
            line = 0
            for lines in told(_lines(file), what):
                for offset in range(max(0, start - number), len(lines)):
                    place = f"{what}, line {line + offset + 1}"
                    yield number + offset, self._value(lines[offset], place), place
                number += len(lines)
                line += len(lines)

    def _value(self, line: str, place: str) -> object:
        if not line or line.isspace():
            return None
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place} is not JSON: {reason(error)}; each line must be a JSON object") from error
        if not isinstance(row, dict):
            raise ValueError(f"{place} is of type {type(row).__name__}; each line must be a JSON object")
        if self.column not in row:
            raise ValueError(f"{KEYS}.column: {self.column!r} is not a key of {place}; it has {_named(row)}")
        value: object = row[self.column]
        return value


@dataclass(frozen=True)
class Parquet(_TableFiles):
    """A column of text of some Parquet files, one row a document.

    Args:
        path: a file, a pattern such as ``data/*.parquet``, or a list of these; read in that order, and
            a pattern's files in path order.
        column: the column of text; a null is no text.
        streaming: read the files anew as training goes, instead of tokenizing them once into a cache.
    """

    path: str | list[str]
    column: str = "text"
    streaming: bool = False

    def _cells(self, start: int, check: Check) -> Iterator[tuple[int, object, str]]:
        import datasets
        import pyarrow.parquet  # type: ignore[import-untyped, unused-ignore]

        number = 0
        for file in _existing(self.path):
            what = f"{KEYS}.path: {file!r}"
            with told_as(what):
                footer = pyarrow.parquet.read_metadata(file)
                features = datasets.Features.from_arrow_schema(footer.schema.to_arrow_schema())
            check(self.column, features, file)
            # Whole files before the start cost no more than their footers.
            skipped = min(max(0, start - number), footer.num_rows)
            row = number + skipped
            if skipped < footer.num_rows:
                for values in told(self._batches(file, skipped), what):
                    for value in values:
                        yield row, value, f"{what}, row {row}"
                        row += 1
            number += footer.num_rows

    def _batches(self, file: str, skipped: int) -> Iterator[Sequence[object]]:
        from datasets.io.parquet import ParquetDatasetReader

        reader = ParquetDatasetReader(
            _verbatim(file), split="train", streaming=True, columns=[self.column], batch_size=_BATCH
        )
        yield from batches(reader.read().skip(skipped), self.column)


def batches(dataset: Any, column: str) -> Iterator[Sequence[object]]:
    """The values of a column of a Dataset or an IterableDataset, some rows at a time."""
    # A stream's columns may be known from its rows only.
    chosen = dataset if dataset.features is None else dataset.select_columns([column])
    # `iter` gives every row, where looping over a stream in a worker of a DataLoader gives a share of the
    # files. Not as Arrow's tables: datasets 3 fails on those of a stream that skips.
    for batch in chosen.iter(_BATCH):
        if column not in batch:
            raise ValueError(f"it has no column {column!r}, but {_named(batch)}")
        yield batch[column]


def told(read: Iterator[Sequence[object]], what: str) -> Iterator[Sequence[Any]]:
    """The same, with whatever the library says while it reads told as one sentence.

    Raises:
        ValueError: the library failed.
    """
    while True:
        with told_as(what):
            batch = next(read, None)
        if batch is None:
            return
        yield batch


@contextmanager
def told_as(what: str, how: str = "cannot be read") -> Iterator[None]:
    """Inside it, an error of the library is one sentence, and its log is silent.

    Args:
        what: the YAML key and the value that name what is read.
        how: what has gone wrong.

    Raises:
        ValueError: the library failed.
    """
    import datasets

    verbosity = datasets.logging.get_verbosity()
    # It logs at the level of errors what it then raises.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except Exception as error:  # it raises its own, pyarrow's, the file system's and the hub's
        raise ValueError(f"{what} {how}: {reason(error)}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)


def reason(error: BaseException) -> str:
    """What another library complains of, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return said if len(said) <= _REASON else f"{said[:_REASON]}..."


def check_column(column: str, features: Mapping[str, object], table: str) -> None:
    """Refuse a column that is not of text.

    Raises:
        ValueError: there is no such column, or it is of something else.
    """
    texts = {
        name: None for name, kind in features.items() if getattr(kind, "dtype", None) in ("string", "large_string")
    }
    if column not in texts:
        raise ValueError(f"{KEYS}.column: {column!r} is not a column of text; {table!r} has {_named(texts)}")


def text_of(value: object, column: str, place: str) -> str:
    """The text of a cell, "" for null.

    Raises:
        ValueError: it is something else.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{KEYS}.column: {column!r} is not text but of type {type(value).__name__} in {place}")
    return value


def _lines(file: str) -> Iterator[Sequence[object]]:
    # Opens no connection, unlike load_dataset.
    from datasets.io.text import TextDatasetReader

    # A byte order mark at its head is no text.
    reader = TextDatasetReader(_verbatim(file), split="train", streaming=True, encoding="utf-8-sig")
    yield from batches(reader.read(), "text")


def _existing(path: str | list[str]) -> list[str]:
    """The files that a path, a pattern or a list of these names.

    Raises:
        ValueError: there is none, or one is no file, or empty.
    """
    key = f"{KEYS}.path"
    files: list[str] = []
    for pattern in [path] if isinstance(path, str) else path:
        given = os.path.expanduser(pattern)
        # What looks like a pattern may be a file's name.
        if os.path.exists(given) or not glob.has_magic(given):
            files.append(given)
            continue
        found = sorted(file for file in glob.glob(given, recursive=True) if os.path.isfile(file))
        if not found:
            raise ValueError(f"{key}: {pattern!r} matches no file; at least one is needed")
        files += found
    if not files:
        raise ValueError(f"{key}: {path!r} names no file; at least one is needed")
    for file in files:
        if os.path.isdir(file):
            raise ValueError(f"{key}: {file!r} is a folder; its files are needed, as in {os.path.join(file, '*')!r}")
        if not os.path.isfile(file):
            raise ValueError(f"{key}: {file!r} is not a file; an existing one is needed")
        if os.path.getsize(file) == 0:
            raise ValueError(f"{key}: {file!r} is empty; a file with text is needed")
    return files


def _verbatim(file: str) -> str:
    """The file for ``datasets``, which takes names for patterns."""
    return glob.escape(os.path.abspath(file))


def _pieces(file: str) -> Iterator[bytes]:
    """The bytes of a file, 1 MiB at a time, then none: files cannot be confused with one another."""
    try:
        with Path(file).open("rb") as opened:
            while piece := opened.read(1 << 20):
                yield piece
    except OSError as error:
        raise ValueError(f"{KEYS}.path: {file!r} cannot be read: {error.strerror}") from error
    yield b""


def _named(names: Mapping[str, object]) -> str:
    some = [repr(name[:40]) for name in list(names)[:8]]
    return ", ".join([*some, "..."] if len(names) > len(some) else some) or "none"
