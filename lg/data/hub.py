"""Any dataset that the ``datasets`` library can load: of the Hugging Face hub, of a folder, of files."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from lg.data.source import fingerprint_of
from lg.data.tables import KEYS, Check, Table, batches, told, told_as

# Formats that `datasets` reads: without files to read it would take those of the working directory.
_FORMATS = ("arrow", "csv", "json", "pandas", "parquet", "text", "webdataset", "xml")
_PATIENCE = 5.0  # seconds to wait for the hub to answer


@dataclass(frozen=True)
class HuggingFace(Table):
    """A text column of a dataset that the ``datasets`` library can load, one row a document.

    Args:
        path: a dataset's name on the hub, a local folder, or a format such as ``json``.
        split: the split to read; lg holds out documents of it by itself. A folder that ``save_to_disk``
            wrote of one split has no other.
        column: the column of text.
        name: the dataset's configuration, if it has several.
        data_files: the files to read, for a format given as ``path``.
        streaming: read the dataset anew as training goes, instead of fetching all of it and tokenizing
            it once into a cache.
        revision: the commit or tag of a dataset on the hub; ``null`` is the newest, which may change.
    """

    path: str
    split: str = "train"
    column: str = "text"
    name: str | None = None
    data_files: str | list[str] | None = None
    streaming: bool = False
    revision: str | None = None

    @property
    def streamed(self) -> bool:
        """As ``streaming`` says."""
        return self.streaming

    def fingerprint(self) -> str:
        """Of the fingerprint that ``datasets`` gives it; of a stream, of what names it."""
        own = repr(self) if self.streaming else self._loaded()._fingerprint
        return fingerprint_of(value.encode(errors="replace") for value in (own, self.column))

    def _cells(self, start: int, check: Check) -> Iterator[tuple[int, object, str]]:
        dataset = self._loaded()
        # A stream's columns may be known from its rows only.
        if dataset.features is not None:
            check(self.column, dataset.features, self.path)
        if self.streaming:
            rest = dataset.skip(start)
        elif start < len(dataset):
            rest = dataset.select(range(start, len(dataset)))
        else:
            return
        number = start
        for values in told(batches(rest, self.column), self.what()):
            for value in values:
                yield number, value, f"{self.what()}, row {number}"
                number += 1

    def what(self) -> str:
        """What names the dataset."""
        return f"{KEYS}.path: {self.path!r} (split {self.split!r}, name {self.name!r}, data_files {self.data_files!r})"

    def _loaded(self) -> Any:
        """The split, as a Dataset or an IterableDataset.

        Raises:
            ValueError: it cannot be loaded.
        """
        import datasets

        path = os.path.expanduser(self.path)
        is_format = self.path in _FORMATS and not os.path.exists(path)
        if is_format and not self.data_files:
            raise ValueError(f"{KEYS}.data_files: null is not allowed for the format {self.path!r}; files are needed")
        is_local = os.path.exists(path) or path.startswith((".", "/"))
        if is_local and not os.path.isdir(path):
            raise ValueError(f"{KEYS}.path: {self.path!r} is not a folder; an existing one is needed, or a name")
        is_remote = not is_local and not is_format
        if is_remote:
            self._check_hub(datasets.config.HF_ENDPOINT, datasets.config.HF_HUB_OFFLINE)
        # Fetching takes long: its progress is shown.
        with told_as(self.what(), "cannot be loaded"), nullcontext() if is_remote else _local():
            # What `save_to_disk` wrote: one split, or a folder for each.
            for folder in (path, os.path.join(path, self.split)):
                if os.path.isfile(os.path.join(folder, "state.json")):
                    saved = datasets.load_from_disk(folder)
                    return saved.to_iterable_dataset() if self.streaming else saved
            return datasets.load_dataset(
                path,
                self.name,
                split=self.split,
                data_files=self.data_files,
                revision=self.revision,
                streaming=self.streaming,
            )

    def _check_hub(self, endpoint: str, offline: bool) -> None:
        """Refuse a name where the hub cannot be reached: ``datasets`` would try for half a minute."""
        if offline or getproxies():
            return
        address = urlsplit(endpoint)
        port = address.port or (80 if address.scheme == "http" else 443)
        try:
            socket.create_connection((address.hostname or "", port), timeout=_PATIENCE).close()
        except OSError as error:
            raise ValueError(
                f"{KEYS}.path: {self.path!r} is no folder here, and {endpoint} cannot be reached "
                f"({error.strerror or error}); with HF_HUB_OFFLINE=1 a dataset that was fetched before is read"
            ) from error


@contextmanager
def _local() -> Iterator[None]:
    """Inside it, ``datasets`` opens no connection to count the load of a format, and shows no progress bars."""
    import datasets
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    counts, shown = datasets.config.HF_UPDATE_DOWNLOAD_COUNTS, not are_progress_bars_disabled()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    disable_progress_bars()
    try:
        yield
    finally:
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = counts
        if shown:
            enable_progress_bars()
