"""A corpus: the documents of a source as token ids, end to end, and what rows need to know of each of them.

Shape suffixes: N tokens of all documents, D documents.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lg.data.marked import Marked
from lg.data.source import Document
from lg.data.store import Damaged, opened
from lg.data.tokenizer import Ids, Tokenizer


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokenised documents, in the order of their source. Each ends with the tokenizer's ``end``.

    One that lies in a folder is pickled as the folder's path: a process that prepares batches opens it again, and all
    of them share the same memory.

    Attributes:
        tokens: ids of all documents: [N], of the type that ``id_type`` gives.
        starts: where each document begins, and, last, where they all end: int64 [D + 1].
        num_bytes: bytes of text of each document, the end counted as one: int64 [D].
        places: the ``place`` of each document's name: float64 [D].
        folder: where the arrays are mapped from; None if they are in memory.
        counted: which tokens are targets, 1 or 0: uint8 [N]; None if all are.
    """

    tokens: Ids
    starts: npt.NDArray[np.int64]
    num_bytes: npt.NDArray[np.int64]
    places: npt.NDArray[np.float64]
    folder: Path | None = None
    counted: npt.NDArray[np.uint8] | None = None

    @classmethod
    def of(cls, documents: Iterable[Document], tokenizer: Tokenizer) -> "Corpus":
        """Tokenise documents in memory, each as a whole. The end of one with targets of its own is none of them.

        Raises:
            ValueError: the tokenizer gives what is no id of its own vocabulary.
        """
        dtype = id_type(tokenizer)
        end = _checked(np.array([tokenizer.end]), tokenizer, "the end of a document").astype(dtype)
        pieces, lengths, num_bytes, places = [np.zeros(0, dtype)], [0], [], []
        targets: dict[int, npt.NDArray[np.uint8]] = {}
        for number, document in enumerate(documents):
            given: Any
            if isinstance(document, Marked):
                given, targets[number] = document.encoded(tokenizer)
            else:
                given = tokenizer.encode(document.text)
            ids = _checked(given, tokenizer, f"document {document.name!r}")
            pieces += [ids.astype(dtype, copy=False), end]
            lengths.append(len(ids) + 1)
            num_bytes.append(len(document.text) + 1)
            places.append(place(document.name))
        starts = np.cumsum(lengths, dtype=np.int64)
        counted = np.ones(starts[-1], np.uint8) if targets else None
        for number, of_document in targets.items():
            assert counted is not None
            counted[starts[number] : starts[number + 1]] = np.append(of_document, np.uint8(0))
        return cls(
            tokens=np.concatenate(pieces),
            starts=starts,
            num_bytes=np.array(num_bytes, np.int64),
            places=np.array(places, np.float64),
            counted=counted,
        )

    @classmethod
    def mapped(cls, folder: Path) -> "Corpus":
        """The corpus that a folder holds, mapped to memory; nothing is verified.

        Raises:
            Damaged: the folder is not there any more, or holds other arrays.
        """
        arrays = opened(folder)
        types = {name: arrays[name].dtype.str for name in sorted(arrays)}
        allowed = {"num_bytes": "<i8", "places": "<f8", "starts": "<i8", "tokens": types.get("tokens")}
        if types not in (allowed, {**allowed, "counted": "|u1"}):
            raise Damaged(f"{folder} holds the arrays {types}, which are not those of a corpus")
        return cls(**arrays, folder=folder)

    def __len__(self) -> int:
        return len(self.num_bytes)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each document, its end counted: int64 [D]."""
        return np.diff(self.starts)

    def __reduce__(self) -> tuple[Callable[..., "Corpus"], tuple[Any, ...]]:
        if self.folder is not None:
            return Corpus.mapped, (self.folder,)
        return Corpus, (self.tokens, self.starts, self.num_bytes, self.places, None, self.counted)


def id_type(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The smallest type that holds every id: uint8, uint16 or int32, in little-endian order."""
    if tokenizer.vocab_size <= 1 << 8:
        return np.dtype("u1")
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<i4")


def place(name: str) -> float:
    """A number in [0, 1) drawn from a document's name, the same in every process (``hash`` is not).

    Documents whose place is below some share are held out: a document keeps its side when others are added.
    """
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _checked(ids: Any, tokenizer: Tokenizer, what: str) -> Ids:
    """What a tokenizer, a user's own too, gave for something, if these are ids."""
    array = np.asarray(ids)
    key = f"data.init_args.tokenizer: {type(tokenizer).__name__} turns {what} into"
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{key} {array.dtype} of shape {list(array.shape)}; it must be one row of integers")
    if array.size and not 0 <= array.min() <= array.max() < tokenizer.vocab_size:
        raise ValueError(
            f"{key} ids from {array.min()} to {array.max()}; they must be at least 0 and below its vocab_size of "
            f"{tokenizer.vocab_size}"
        )
    return array
