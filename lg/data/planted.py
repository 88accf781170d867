"""Texts that ask for what they told long before, so that a model learns to look back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from lg.data.source import KEY, Document, Source

_KEYS = f"{KEY}.init_args"
_ANIMALS = (
    "badger", "beaver", "bison", "camel", "condor", "cougar", "coyote", "dingo", "donkey", "eagle", "ferret", "gecko",
    "gibbon", "heron", "hyena", "ibis", "jackal", "koala", "lemur", "llama", "lynx", "marten", "moose", "newt",
    "otter", "panda", "puffin", "python", "rabbit", "raven", "salmon", "seal", "stork", "tapir", "turtle", "walrus",
)  # fmt: skip


@dataclass(frozen=True)
class Planted(Source):
    """Pieces of another source's documents with codes written into them, and at their ends a question for each.

    A code stands on a line of its own somewhere in the piece, after a line that was there. Draws depend on the seed and
    on the document's name alone.

    Args:
        source: the texts; what is left of a document behind its last whole piece is passed over.
        size: bytes of a piece, without codes and questions.
        codes: how many a piece has.
        digits: of a code.
        seed: of the draws.

    Raises:
        ValueError: a number is out of its range, or the source is streamed or a mixture.
    """

    source: Source
    size: int = 100_000
    codes: int = 4
    digits: int = 7
    seed: int = 0

    def __post_init__(self) -> None:
        most = {"size": 2**40, "codes": len(_ANIMALS), "digits": 18}
        for name, limit in most.items():
            value = getattr(self, name)
            if not 1 <= value <= limit:
                raise ValueError(f"{_KEYS}.{name}: {value} is not allowed; it must be from 1 to {limit}")
        if self.source.streamed or len(self.source.parts()) > 1:
            raise ValueError(
                f"{_KEYS}.source: {type(self.source).__name__} is not allowed; a single source that is not streamed is"
            )

    def documents(self, start: int = 0) -> Iterator[Document]:
        """The pieces of each document, in order, named by it and by their number.

        Raises:
            ValueError: as the source does.
        """
        return islice(self._pieces(), start, None)

    def _pieces(self) -> Iterator[Document]:
        for document in self.source.read():
            for number in range(len(document.text) // self.size):
                name = f"{document.name}#{number}"
                text = document.text[number * self.size : (number + 1) * self.size]
                yield Document(name, self._asked(text, random.Random(f"{self.seed} {name}")))

    def _asked(self, text: bytes, draw: random.Random) -> bytes:
        """A piece with its codes and its questions."""
        least = 10 ** (self.digits - 1)
        told = [(animal, draw.randrange(least, 10 * least)) for animal in draw.sample(_ANIMALS, self.codes)]
        places = sorted(draw.randrange(len(text)) for _ in told)
        parts, at = [], 0
        for place, (animal, code) in zip(places, told, strict=True):
            line = text.find(b"\n", place)
            end = max(at, len(text) if line < 0 else line + 1)
            parts += [text[at:end], f"Remember that the {animal} answers to {code}.\n".encode()]
            at = end
        draw.shuffle(told)
        questions = (f"\nWhat does the {animal} answer to? It answers to {code}.".encode() for animal, code in told)
        return b"".join([*parts, text[at:], *questions, b"\n"])
