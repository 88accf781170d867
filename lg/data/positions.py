"""Positions for rotary angles that are not places: short rows that read as parts of a long context.

What is drawn for a row is a function of the seed and the row's number alone, so that a run that goes on draws what it
would have drawn. Attention, its windows and its documents go by true places all the same.

>>> from lg.data import Bytes
>>> PoSE(target=32).draw([Text(np.arange(8), Sentences(Bytes()))], 8, np.random.default_rng(0))
[array([ 0,  1,  2,  3,  4,  5, 21, 22])]

Shapes: B rows, L tokens of a row, n tokens of a document, S sentences of it, V ids of the vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lg.data.rows import Batch
from lg.data.tokenizer import Ids, Tokenizer

KEY = "data.init_args.positions.init_args"

Places = npt.NDArray[Any]
"""Positions of the tokens of a document, [n]: int64, or float64 where there are fractions."""

_SINKS = 4  # tokens of a document that E2-LLM never moves
_CLOSING = b" \t\"')]"
_ENDS = (b".", b"!", b"?", b"\n", "。".encode(), "！".encode(), "？".encode())  # noqa: RUF001  # as Chinese has them


class Sentences:
    """Where sentences end, told from the tokens alone.

    A token ends a sentence if its text ends with a full stop, an exclamation or question mark or a newline, quotes and
    brackets behind that not counted; of several in a row it is the last. So a number with a decimal point may be two.

    Args:
        tokenizer: tells each token's text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def ends(self) -> npt.NDArray[np.bool_]:
        """Whether each id ends a sentence: bool [V]. Found when it is first asked for: about a second for 100,000."""
        texts = (self.tokenizer.decode([number]) for number in range(self.tokenizer.vocab_size))
        ends = np.array([text.rstrip(_CLOSING).endswith(_ENDS) for text in texts])
        ends[self.tokenizer.end] = True
        return ends

    def starts(self, tokens: Ids) -> npt.NDArray[np.int64]:
        """The first token of each sentence: int64 [S], 0 first."""
        ends = self.ends[tokens]
        return np.concatenate([[0], np.flatnonzero(ends[:-1] & ~ends[1:]) + 1])


@dataclass(frozen=True, eq=False)
class Text:
    """A document of a row, or as much of it as is there.

    Attributes:
        tokens: its ids, [n].
        sentences: tells where its sentences end.
    """

    tokens: Ids
    sentences: Sentences

    def __len__(self) -> int:
        return len(self.tokens)

    def starts(self) -> npt.NDArray[np.int64]:
        """The first token of each sentence: int64 [S], 0 first."""
        return self.sentences.starts(self.tokens)


class Positions(ABC):
    """A way to draw positions for the rows that are trained on. Subclasses are frozen dataclasses.

    Subclass it and name the class in YAML as ``data.init_args.positions``.
    """

    @abstractmethod
    def draw(self, documents: Sequence[Text], row_length: int, generator: np.random.Generator) -> Sequence[Places]:
        """Positions of the tokens of each document of one row; padding is no document.

        Args:
            documents: in the row's order. Without document masks, the whole row as one.
            row_length: L.
            generator: the row's own; nothing else may be drawn from.
        """

    @abstractmethod
    def num_positions(self, row_length: int) -> int:
        """How many positions rows are drawn from: what a model that was trained on them knows.

        Raises:
            ValueError: rows are too long for it, naming the YAML key and what is allowed.
        """


@dataclass(frozen=True)
class E2LLM(Positions):
    """Each row has positions ``(m + t) / g``, with a scale g and an offset t of its own.

    g is uniform in 1 to ``most``, t in 0 to ``g * reach - row_length``; the first four tokens of a document are never
    offset. So no position is ``reach`` or more: a model sees every density of positions where it was trained to read,
    and reads g times as far with ``rope_scaling: Linear`` and a ``factor`` of g, with the same weights for every g. Liu
    et al. 2024, arXiv 2401.06951, section 3 (one g and t for a sample, which is a row here, whatever documents it has).

    Attributes:
        most: the largest scale.
        reach: positions that the model was trained on before; null is the row's length.

    Raises:
        ValueError: if a number is below 1.
    """

    most: int = 20
    reach: int | None = None

    def __post_init__(self) -> None:
        _check_least("most", self.most, 1)
        if self.reach is not None:
            _check_least("reach", self.reach, 1)

    def draw(self, documents: Sequence[Text], row_length: int, generator: np.random.Generator) -> Sequence[Places]:
        scale = int(generator.integers(1, self.most, endpoint=True))
        offset = int(generator.integers(0, scale * self.num_positions(row_length) - row_length, endpoint=True))
        drawn = []
        for document in documents:
            places = np.arange(len(document), dtype=np.float64)
            places[_SINKS:] += offset
            drawn.append(places / scale)
        return drawn

    def num_positions(self, row_length: int) -> int:
        if self.reach is None:
            return row_length
        _check_target("reach", self.reach, row_length)
        return self.reach


@dataclass(frozen=True)
class PoSE(Positions):
    """Each document is cut into chunks, and positions are skipped between them.

    Zhu et al. 2023, arXiv 2309.10400, section 3.2: chunks have random lengths; the first has no skip, so its positions
    begin at 0, and chunk i's is uniform from the one before it to what is left below the target. The paper may also
    take the chunks from apart in a longer text; here they follow one another, its variant of contiguous content.

    Attributes:
        target: positions lie below it.
        chunks: of a document; fewer where it has fewer tokens.

    Raises:
        ValueError: if a number is below 1.
    """

    target: int = 32768
    chunks: int = 2

    def __post_init__(self) -> None:
        _check_least("target", self.target, 1)
        _check_least("chunks", self.chunks, 1)

    def draw(self, documents: Sequence[Text], row_length: int, generator: np.random.Generator) -> Sequence[Places]:
        return [self._skipped(len(document), generator) for document in documents]

    def num_positions(self, row_length: int) -> int:
        _check_target("target", self.target, row_length)
        return self.target

    def _skipped(self, length: int, generator: np.random.Generator) -> Places:
        positions: Places = np.arange(length)
        num_cuts = min(self.chunks, length) - 1
        cuts = sorted(generator.choice(max(length - 1, 1), num_cuts, replace=False).tolist())
        skipped, room = 0, self.target - length
        for cut in cuts:
            more = int(generator.integers(0, room - skipped, endpoint=True))
            positions[cut + 1 :] += more
            skipped += more
        return positions


@dataclass(frozen=True)
class LongRecipe(Positions):
    """Each document's sentences are spread over the target, in order, without overlap, each contiguous in itself.

    The first begins at 0; the others' starts are uniform over all ways to place them below the target: the position
    index transformation of Hu et al. 2024, arXiv 2409.00509, section 3 and algorithm 1, with its slots for later
    sentences. What a sentence is it leaves open; see `Sentences`.

    Attributes:
        target: positions lie below it.

    Raises:
        ValueError: if it is below 1.
    """

    target: int

    def __post_init__(self) -> None:
        _check_least("target", self.target, 1)

    def draw(self, documents: Sequence[Text], row_length: int, generator: np.random.Generator) -> Sequence[Places]:
        return [self._spread(document, generator) for document in documents]

    def num_positions(self, row_length: int) -> int:
        _check_target("target", self.target, row_length)
        return self.target

    def _spread(self, document: Text, generator: np.random.Generator) -> Places:
        length, starts = len(document), document.starts()
        later = np.arange(len(starts) - 1)
        # Each later sentence takes one of as many slots as there are free positions and sentences: what lies before
        # it, sentences not counted, is skipped.
        slots = generator.choice(self.target - length + len(later), len(later), replace=False, shuffle=False)
        skipped = np.concatenate([[0], np.sort(slots) - later])
        positions: Places = np.arange(length) + np.repeat(skipped, np.diff([*starts, length]))
        return positions


@dataclass(frozen=True, eq=False)
class Drawing:
    """Positions for the batches of a run.

    Attributes:
        positions: how they are drawn.
        sentences: tells them where sentences end.
    """

    positions: Positions
    sentences: Sentences

    def onto(self, batch: Batch, seeds: Sequence[Sequence[int]]) -> Batch:
        """The batch with the key "positions": int64 or float32 [B, L]; those of padding are its places.

        Args:
            batch: stays as it is.
            seeds: of the draw for each row.
        """
        tokens = batch["tokens"].numpy()
        num_rows, row_length = tokens.shape
        starts = np.array(batch["document_starts"])
        padding = np.array(batch["document_padding"])
        bounds = np.append(starts, num_rows * row_length)
        drawn: list[Places] = [np.arange(length) for length in np.diff(bounds)]
        for row, seed in enumerate(seeds):
            own = np.flatnonzero((starts // row_length == row) & ~padding)
            documents = [Text(tokens.ravel()[bounds[n] : bounds[n + 1]], self.sentences) for n in own]
            made = self.positions.draw(documents, row_length, np.random.default_rng(list(seed)))
            for n, places in zip(own, made, strict=True):
                drawn[n] = self._checked(places, len(drawn[n]))
        together = np.concatenate(drawn).reshape(num_rows, row_length)
        exact = torch.from_numpy(together)
        return {**batch, "positions": exact.float() if exact.is_floating_point() else exact}

    def _checked(self, places: Places, length: int) -> Places:
        """What a user's own class may get wrong."""
        if np.shape(places) != (length,):
            raise ValueError(
                f"data.init_args.positions: {type(self.positions).__name__} draws positions of shape "
                f"{list(np.shape(places))} for a document of {length} tokens; it must be one for each"
            )
        return places


def _check_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{KEY}.{name}: {value} is not allowed; it must be at least {least}")


def _check_target(name: str, value: int, row_length: int) -> None:
    if value < row_length:
        raise ValueError(
            f"{KEY}.{name}: {value} is not allowed; it must be at least data.init_args.row_length, {row_length}"
        )
