"""Tokenises a source once: the next run, and the other ranks of this one, map its tokens from disk."""

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from lg.data.corpus import Corpus, id_type
from lg.data.encoders import tokenised
from lg.data.source import Document, Source
from lg.data.store import Damaged, Draft, Origin, remove, verify, writable
from lg.data.tokenizer import Tokenizer
from lg.folder import cache_folder

_VERSION = 1  # of what a folder holds, and of how lg's own tokenizers read text
_ARRAYS = ("tokens", "starts", "num_bytes", "places")
_COUNTED = "counted"  # an array of sources only some of whose tokens are targets
_PART, _LOCK = ".part", ".lock"  # beside the entry
_SOON = 2  # seconds before progress is shown

_log = logging.getLogger(__name__)


def cached(source: Source, tokenizer: Tokenizer, folder: str | None = None, processes: int | None = None) -> Corpus:
    """The corpus of a source, from the cache if it is there, else tokenised into it.

    An entry of the cache stands for one content, one tokenizer and one format. Whatever happens while it is made, it
    is either complete or not there; one that has changed since is made anew, and the log says so. Of several processes
    that need the same entry one makes it, and the others wait.

    Args:
        source: of documents; never all in memory at once.
        tokenizer: what turns them into ids.
        folder: of the cache; by default the one of ``lg.folder.cache_folder``.
        processes: that tokenise; by default as many as there are cores, where that pays.

    Raises:
        ValueError: the source or the tokenizer raises it, or the disk has no room, or the source changes meanwhile.
    """
    origin: Origin = {
        "version": _VERSION,
        "source": _fingerprint(source),
        "tokenizer": tokenizer.fingerprint(),
        "ids": id_type(tokenizer).str,
    }
    key = hashlib.blake2b(json.dumps(origin, sort_keys=True).encode(), digest_size=16).hexdigest()
    entries = _root(folder) / "corpora"
    entry = entries / key
    with writable(entries):
        # Neither a lock nor the right to write is needed to read.
        there = entry.exists()
    if there:
        try:
            return _read(entry, origin)
        except Damaged:
            pass  # perhaps only replaced by another process; told below if not
    with writable(entries):
        entries.mkdir(parents=True, exist_ok=True)
    with _alone(entry):
        if entry.exists():
            try:
                return _read(entry, origin)
            except Damaged as damage:
                _log.warning("the cache is damaged, and is made anew: %s", damage)
        _remove_leftovers(entries)
        with writable(entry):
            remove(entry)  # now, for its room
        _build(entry, origin, source, tokenizer, processes)
        try:
            return _verified(entry, origin)
        except Damaged as damage:
            raise ValueError(
                f"data.init_args.cache: {str(entries)!r} does not keep what is written there ({damage}); a folder on "
                "a sound disk is needed"
            ) from damage


def _verified(entry: Path, origin: Origin) -> Corpus:
    verify(entry, origin)
    return Corpus.mapped(entry)


def _read(entry: Path, origin: Origin) -> Corpus:
    corpus = _verified(entry, origin)
    _log.info("%d tokens of %d documents are in the cache, %s", corpus.starts[-1], len(corpus), entry)
    return corpus


def _build(entry: Path, origin: Origin, source: Source, tokenizer: Tokenizer, processes: int | None) -> None:
    began = time.monotonic()
    num_tokens = num_documents = num_bytes = 0
    with (
        Draft(entry.with_suffix(_PART), (*_ARRAYS, _COUNTED) if source.partial else _ARRAYS) as draft,
        closing(tokenised(_documents(source), tokenizer, processes)) as pieces,
        _Bar(desc="tokenising", unit="B", unit_scale=True, delay=_SOON, disable=None) as bar,
    ):
        nothing = Corpus.of([], tokenizer)
        for name in _ARRAYS:
            draft.append(name, getattr(nothing, name))  # the types, and the first start
        if source.partial:
            draft.append(_COUNTED, np.zeros(0, np.uint8))
        for piece in pieces:
            draft.append("tokens", piece.tokens)
            draft.append("starts", piece.starts[1:] + num_tokens)
            draft.append("num_bytes", piece.num_bytes)
            draft.append("places", piece.places)
            if source.partial:
                draft.append(_COUNTED, np.ones(len(piece.tokens), np.uint8) if piece.counted is None else piece.counted)
            elif piece.counted is not None:
                raise ValueError(
                    f"data.init_args.source: {type(source).__name__} has documents with targets of their own; its "
                    "property `partial` must be true"
                )
            num_tokens += len(piece.tokens)
            num_documents += len(piece)
            num_bytes += int(piece.num_bytes.sum())
            bar.update(int(piece.num_bytes.sum()))
        if _fingerprint(source) != origin["source"]:
            raise ValueError(
                f"data.init_args.source: the text of {type(source).__name__} changed while it was read; one that stays "
                "as it is is needed"
            )
        draft.finish(entry, origin)
    seconds = time.monotonic() - began
    _log.info(
        "%d tokens of %d documents (%d bytes) tokenised in %.1f s, %.1f MB/s, and kept in %s",
        num_tokens,
        num_documents,
        num_bytes,
        seconds,
        num_bytes / seconds / 1e6,
        entry,
    )


class _Bar(tqdm):  # type: ignore[misc, unused-ignore]  # it comes without types
    """Without tqdm's own thread, which would stay for good: workers are forked from this process."""

    monitor_interval = 0


def _root(folder: str | None) -> Path:
    """The folder of the cache; nothing is made."""
    try:
        return cache_folder() if folder is None else Path(folder).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(
            f"data.init_args.cache: {folder!r} is no folder ({error}); one is needed, named there or in the "
            "environment as LG_CACHE"
        ) from error


@contextmanager
def _alone(entry: Path) -> Iterator[None]:
    """Waits until no other process makes an entry. The lock goes with the process that holds it, however it ends."""
    path = entry.with_suffix(_LOCK)
    lock = FileLock(path)
    with writable(path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _log.info("another process makes %s: waiting for it", entry)
            lock.acquire()
        except NotImplementedError as error:  # older versions of filelock
            raise OSError("its file system has no locks") from error
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(entries: Path) -> None:
    """Removes what processes that were killed left half-written. What another process writes now is locked."""
    for part in entries.glob(f"*{_PART}"):
        lock = FileLock(part.with_suffix(_LOCK))
        with suppress(OSError), lock.acquire(timeout=0):  # Timeout is an OSError
            remove(part)


def _documents(source: Source) -> Iterator[Document]:
    try:
        yield from source.read()
    except OSError as error:
        raise _unreadable(source, error) from error


def _fingerprint(source: Source) -> str:
    try:
        return source.fingerprint()
    except OSError as error:
        raise _unreadable(source, error) from error


def _unreadable(source: Source, error: OSError) -> ValueError:
    return ValueError(
        f"data.init_args.source: {type(source).__name__} cannot be read: {error}; every document must be readable"
    )
