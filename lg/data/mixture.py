"""Several sources as one: what share of the tokens each has, and which documents are read how often."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lg.data.packing import Packing
from lg.data.source import KEY, Document, Part, Source, fingerprint_of

_KEYS = f"{KEY}.init_args"
_UPSAMPLE = "data.init_args.upsample"
_WORD = (1 << 64) - 1

Cursor = dict[str, dict[str, int]]
"""Where a stream is: of each part, by name, the ``number`` of the next document, the ``bytes`` given, and
how often it was read through (``passes``). Plain data, for a checkpoint."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mixture(Source):
    """Several sources, each with a share of the tokens of an epoch.

    A mixture inside a mixture is taken apart: its sources have its share by theirs, and names such as
    ``code.python``. If one source is streamed all are read as streams, in turns: next is always a
    document of the source that is most behind its share, in bytes.

    Args:
        sources: by name.
        shares: of the tokens, for each name a number above 0; only their ratios count. ``null``: each
            source has as many tokens as it has, so that an epoch is every document once. Of a source whose packing
            leaves some out, the tokens that it keeps count.
        packings: by name, how a source's documents are laid into rows, apart from those of other packings; sources
            that are not named, and all by default, have the packing of the data.

    Raises:
        ValueError: no source, a share that is missing, of no source, or not above 0, or none for streams; a packing of
            no source, or of a stream.
    """

    sources: dict[str, Source]
    shares: dict[str, float] | None = None
    packings: dict[str, Packing] | None = None

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError(f"{_KEYS}.sources: {{}} is not allowed; at least one source is needed")
        if self.shares is not None:
            self._check_shares(self.shares)
        elif self.streamed and len(self.sources) > 1:
            raise ValueError(
                f"{_KEYS}.shares: null is not allowed where a source is streamed, for nobody knows its length; "
                f"each of {', '.join(self.sources)} needs a number above 0"
            )
        for name, source in self.sources.items():
            # One number for the whole and none for what is in it, or the other way round, say no share.
            inner = source.parts()
            if len(inner) > 1 and any((part.share is None) != (self.shares is None) for part in inner):
                inside, here = ("null", "has numbers") if self.shares else ("numbers", "is null")
                raise ValueError(
                    f"{_KEYS}.sources.{name}.init_args.shares: {inside} cannot stand where {_KEYS}.shares {here}; "
                    "of mixtures in one another all have shares or none"
                )
        self._check_packings(self.packings or {})
        if self.streamed and (partial := [name for name, source in self.sources.items() if source.partial]):
            raise ValueError(
                f"{_KEYS}.sources.{partial[0]}: it has targets of its own choice, which is not allowed where another "
                "source is streamed; sources that are read into the cache are needed"
            )
        names = [part.name for part in self.parts()]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{_KEYS}.sources: {twice[0]!r} is the name of two sources; each needs its own")

    @property
    def streamed(self) -> bool:
        """Whether any of its sources is."""
        return any(source.streamed for source in self.sources.values())

    @property
    def partial(self) -> bool:
        """Whether any of its sources is."""
        return any(source.partial for source in self.sources.values())

    def documents(self, start: int = 0) -> Iterator[Document]:
        """Every document of every source once, one source after another, each named after its source."""
        pairs = (
            replace(document, name=f"{part.name}/{document.name}")
            for part in self.parts()
            for _, document in part.numbered()
        )
        for _ in zip(range(start), pairs, strict=False):
            pass
        return pairs

    def fingerprint(self) -> str:
        """Of the names and fingerprints of its sources."""
        values = []
        for part in self.parts():
            with part.placed():
                values += [part.name.encode(errors="replace"), part.source.fingerprint().encode()]
        return fingerprint_of(iter(values))

    def parts(self) -> tuple[Part, ...]:
        """Its sources, those of a mixture inside it in its place; their shares sum to 1, or are all None."""
        total = math.fsum(self.shares.values()) if self.shares else 0.0
        parts = []
        for name, source in self.sources.items():
            share = self.shares[name] / total if self.shares else None
            key = f"{_KEYS}.sources.{name}"
            packing = (self.packings or {}).get(name)
            for part in source.parts():
                own = part.share if part.share is not None else 1.0
                parts.append(
                    Part(
                        f"{name}.{part.name}" if part.name else name,
                        part.source,
                        None if share is None else share * own,
                        key + part.key.removeprefix(KEY),
                        part.packing or packing,
                        key + part.packing_key.removeprefix(KEY) if part.packing else f"{_KEYS}.packings.{name}",
                    )
                )
        return tuple(parts)

    def _check_packings(self, packings: dict[str, Packing]) -> None:
        key = f"{_KEYS}.packings"
        for name in packings:
            if name not in self.sources:
                raise ValueError(f"{key}.{name}: not a source of the mixture; they are {', '.join(self.sources)}")
        apart = [part.packing_key for part in self.parts() if part.packing]
        if apart and self.streamed:
            raise ValueError(
                f"{apart[0]}: a packing of its own is not allowed where a source is streamed, for documents are "
                "packed together as they come; null is needed"
            )

    def _check_shares(self, shares: dict[str, float]) -> None:
        key = f"{_KEYS}.shares"
        names = ", ".join(self.sources)
        for name, share in shares.items():
            if name not in self.sources:
                raise ValueError(f"{key}.{name}: not a source of the mixture; they are {names}")
            if not (math.isfinite(share) and share > 0):
                raise ValueError(f"{key}.{name}: {share} is not allowed; it must be a number above 0")
        if missing := [name for name in self.sources if name not in shares]:
            raise ValueError(f"{key}: {missing[0]!r} is missing; each of {names} needs a number above 0")


@dataclass(frozen=True)
class Upsample:
    """Long documents more often: within each source they make up a share of the tokens.

    The sources' own shares do not change (Fu et al., 2024, "Data Engineering for Scaling Language
    Models to 128K Context", https://arxiv.org/abs/2402.10171, section 3: per-source length upsampling).

    Args:
        above: a document of more tokens than this is long.
        share: of each source's tokens, those of its long documents.

    Raises:
        ValueError: a number is out of its range.
    """

    above: int
    share: float

    def __post_init__(self) -> None:
        if self.above < 1:
            raise ValueError(f"{_UPSAMPLE}.above: {self.above} is not allowed; it must be at least 1")
        if not 0 < self.share < 1:
            raise ValueError(f"{_UPSAMPLE}.share: {self.share} is not allowed; it must be a share above 0 and below 1")


def rates(
    lengths: Sequence[npt.NDArray[np.integer[Any]]],
    parts: Sequence[Part],
    upsample: Upsample | None = None,
    kept: Sequence[npt.NDArray[np.integer[Any]]] | None = None,
) -> list[npt.NDArray[np.float64]]:
    """How often an epoch repeats each document on average, for an epoch of as many tokens as there are.

    Args:
        lengths: of each part's documents, in tokens, at least 1.
        parts: their shares; all or none None.
        upsample: long documents more often; None leaves them as they are.
        kept: how many of each document's tokens its packing keeps, which are what shares are of; None for all.

    Returns:
        One array a part, of a rate above 0 for each document; 1 exactly where nothing asks for another.

    Raises:
        ValueError: a part with a share has no documents.
    """
    kept = lengths if kept is None else kept
    totals = [int(of_part.sum()) for of_part in kept]
    given = [part.share for part in parts if part.share is not None]
    assert len(given) in (0, len(parts)), parts
    result = []
    for part, of_part, weights, total in zip(parts, lengths, kept, totals, strict=True):
        rate = 1.0
        if part.share is not None:
            if not total:
                raise ValueError(f"{part.key}: no document of it is left to train on, and it has a share; give it more")
            rate = part.share / math.fsum(given) * sum(totals) / total
        of_documents = np.full(len(of_part), rate)
        if upsample is not None and total:
            of_documents *= _by_length(of_part, weights, upsample, part)
        result.append(of_documents)
    return result


def appearances(rates: Sequence[npt.NDArray[np.float64]], seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """How often each document appears in an epoch, the parts' documents one after another.

    A function of its arguments alone. Over all epochs up to any, a document appears as often as its rate
    says, to within one; at rate 1 once in each.

    Args:
        rates: of each part's documents, at least 0.
        seed: of the draws.
        epoch: counted from 0.
    """
    counts = [np.zeros(0, np.int64)]
    for part, rate in enumerate(rates):
        # Each document has a phase of its own, so that those of rate 1/2 do not all come in the same epoch.
        phase = _uniform(seed, part, len(rate))
        counts.append((np.floor(rate * (epoch + 1) + phase) - np.floor(rate * epoch + phase)).astype(np.int64))
    return np.concatenate(counts)


class Interleaved:
    """The documents of several sources in turns, without end: a source that ends begins again.

    Next is a document of the part most behind its share, in bytes, the first of those that are equally so.

    Args:
        parts: at least one; a share of None counts as one of 1.
        cursor: where to go on; None is the beginning.

    Raises:
        ValueError: a part is missing or damaged, on the way, or has not one document.
    """

    def __init__(self, parts: Sequence[Part], cursor: Cursor | None = None) -> None:
        self._parts = {part.name: part for part in parts}
        start = cursor or {name: {"number": 0, "bytes": 0, "passes": 0} for name in self._parts}
        assert start.keys() == self._parts.keys(), (list(start), list(self._parts))
        self._cursor = {name: dict(start[name]) for name in self._parts}
        self._open: dict[str, Iterator[tuple[int, Document]]] = {}

    def cursor(self) -> Cursor:
        """Where it is now: what goes on from there gives what this would give next."""
        return {name: dict(place) for name, place in self._cursor.items()}

    def __iter__(self) -> Iterator[Document]:
        return self

    def __next__(self) -> Document:
        name = min(self._parts, key=self._progress)
        place = self._cursor[name]
        number, document = self._following(name, place)
        place["number"] = number + 1
        # At least one, or a part of empty documents would be the only one ever read.
        place["bytes"] += len(document.text) + 1
        return document

    def _progress(self, name: str) -> float:
        return self._cursor[name]["bytes"] / (self._parts[name].share or 1.0)

    def _following(self, name: str, place: dict[str, int]) -> tuple[int, Document]:
        part = self._parts[name]
        if name not in self._open:
            self._open[name] = part.numbered(place["number"])
        if (pair := next(self._open[name], None)) is not None:
            return pair
        self._open[name] = part.numbered()
        if (pair := next(self._open[name], None)) is None:
            raise ValueError(f"{part.key}: it has no document; at least one is needed")
        place["passes"] += 1
        return pair


def _by_length(
    lengths: npt.NDArray[np.integer[Any]], kept: npt.NDArray[np.integer[Any]], upsample: Upsample, part: Part
) -> npt.NDArray[np.float64]:
    """Factors for a part's documents that give long ones their share and leave the part's tokens as many."""
    is_long = lengths > upsample.above
    num_long, total = int(kept[is_long].sum()), int(kept.sum())
    if num_long in (0, total):
        which = "all" if num_long else "no"
        _log.warning(
            "%s: %s documents are longer than %s.above (%d tokens), so that there is nothing to choose between",
            part.key, which, _UPSAMPLE, upsample.above,
        )  # fmt: skip
        return np.ones(len(lengths))
    long, short = upsample.share * total / num_long, (1 - upsample.share) * total / (total - num_long)
    return np.where(is_long, long, short)


def _uniform(seed: int, part: int, num_documents: int) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each document: of seed, part and document alone, however many there are.

    The finalizer of SplitMix64 (Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number
    generators", https://doi.org/10.1145/2660193.2660195), of a counter.
    """
    first = _mixed(np.array([(seed + 1) * 0x9E3779B97F4A7C15 & _WORD], np.uint64))
    key = _mixed(first + np.uint64(part + 1))
    words = _mixed(key + np.arange(1, num_documents + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    # 32 bits: added to a whole number up to 2^21 it is exact, so that rate 1 never rounds to 0 or 2.
    return (words >> np.uint64(32)).astype(np.float64) / 2.0**32


def _mixed(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
