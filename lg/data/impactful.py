"""Which sentences of a long document are worth keeping: those whose tokens a model predicts otherwise once extended.

LongRecipe (Hu et al. 2024, arXiv 2409.00509, section 3) scores each token of a document under a base model and under
one that was extended already, takes the softmax over the document of the change, calls the top share of tokens
impactful, drops sentences without any and samples the others to a budget; `LongRecipe` positions then spread what is
left over the document's length. The paper leaves open what is chosen here:

- a score is the log-probability of the token that is there: a logit alone is known only up to a constant that each
  model has of its own, at each place;
- sentences that hold an impactful token are drawn without replacement, in proportion to the share of their tokens that
  is impactful (almost every long sentence holds one in five: evenly drawn, the choice would be nearly by chance), and
  taken as far as they fit;
- the whole document is scored and drawn from, a piece of one length of it at a time; what fills no piece is left out.

Shapes: n tokens of a document, S sentences of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lg.data.positions import Sentences
from lg.data.source import Document
from lg.data.tokenizer import Ids, Tokenizer

Floats = npt.NDArray[np.floating[Any]]

Scorer = Callable[[Ids], Floats]
"""From tokens [n] to the log-probability of each given those before it, [n]; NaN where there is none before it."""


@dataclass(frozen=True)
class Kept:
    """What is kept of one piece of a document.

    Attributes:
        name: the document's, and the piece's number behind a ``#``.
        text: of the sentences that are kept, in order.
        num_tokens: as many as they have.
        num_impactful: of these.
    """

    name: str
    text: bytes
    num_tokens: int
    num_impactful: int


@dataclass(frozen=True)
class Impactful:
    """How sentences are chosen.

    Attributes:
        length: tokens of a document, or a piece of one, from which is chosen; 80K and 128K in the paper.
        budget: tokens that are kept of it at most; 30 % in the paper.
        share: of a piece's tokens, those that are impactful.
        seed: of the draw.

    Raises:
        ValueError: if a number is out of its range.
    """

    length: int = 81920
    budget: int = 24576
    share: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ValueError(f"--length: {self.length} is not allowed; it must be at least 2")
        if not 1 <= self.budget <= self.length:
            raise ValueError(f"--budget: {self.budget} is not allowed; it must be from 1 to --length, {self.length}")
        if not 0 < self.share <= 1:
            raise ValueError(f"--share: {self.share} is not allowed; it must be above 0 and at most 1")

    def select(
        self, documents: Iterable[Document], tokenizer: Tokenizer, base: Scorer, extended: Scorer
    ) -> Iterator[Kept]:
        """What is kept of each piece of each document; nothing of a document shorter than a piece.

        Args:
            documents: read as they are needed.
            tokenizer: the models' own.
            base: scores tokens as they were predicted before.
            extended: scores them as they are since.
        """
        sentences = Sentences(tokenizer)
        number = 0
        for document in documents:
            tokens = tokenizer.encode(document.text)
            for first in range(0, len(tokens) - self.length + 1, self.length):
                piece = tokens[first : first + self.length]
                marked = top(impact(base(piece), extended(piece)), self.share)
                starts = sentences.starts(piece)
                generator = np.random.default_rng((self.seed, number))
                kept = np.repeat(drawn(marked, starts, self.budget, generator), np.diff([*starts, len(piece)]))
                name = f"{document.name}#{first // self.length}"
                yield Kept(name, tokenizer.decode(piece[kept]), int(kept.sum()), int((kept & marked).sum()))
                number += 1


def impact(base: Floats, extended: Floats) -> npt.NDArray[np.float64]:
    """The softmax over a document of the change of its tokens' scores: [n], 0 where there is no score.

    >>> impact(np.array([np.nan, -3.0, -1.0]), np.array([np.nan, -1.0, -1.0])).round(2)
    array([0.  , 0.88, 0.12])
    """
    change = extended.astype(np.float64) - base.astype(np.float64)
    change = np.where(np.isnan(change), -np.inf, change)
    raised = np.exp(change - change.max())
    shares: npt.NDArray[np.float64] = raised / raised.sum()
    return shares


def top(values: Floats, share: float) -> npt.NDArray[np.bool_]:
    """Which are the largest: ``share`` of them, rounded up; of equal ones the first."""
    marked = np.zeros(len(values), np.bool_)
    marked[np.argsort(-values, kind="stable")[: int(np.ceil(share * len(values)))]] = True
    return marked


def drawn(
    marked: npt.NDArray[np.bool_], starts: npt.NDArray[np.int64], budget: int, generator: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """The sentences that are kept: bool [S]; at most ``budget`` tokens, and none without a marked token.

    Args:
        marked: impactful tokens, [n].
        starts: the first token of each sentence, 0 first, [S].
        budget: tokens.
        generator: of the draw.
    """
    lengths = np.diff([*starts, len(marked)])
    weights = np.add.reduceat(marked.astype(np.float64), starts) / lengths
    held = np.flatnonzero(weights)
    # The largest of u ** (1 / weight) are a draw without replacement by weight (Efraimidis and Spirakis, 2006).
    order = held[np.argsort(generator.exponential(size=len(held)) / weights[held])]
    kept = np.zeros(len(starts), np.bool_)
    for sentence in order.tolist():
        if lengths[sentence] <= budget:
            kept[sentence] = True
            budget -= int(lengths[sentence])
    return kept
