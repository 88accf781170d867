"""What a model is to go on from: a text, ids or a conversation, of which the head can be taken without the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from lg.serve.tokenizer import Speaker, Turn

# What a template puts around what is said, in characters.
_AROUND = 16


class Prompt(ABC):
    """What a model is to go on from."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Its characters, or ids."""

    @abstractmethod
    def head(self, size: int) -> Prompt:
        """About so much of its beginning, which has no more tokens than the whole, but for some at the cut."""

    @abstractmethod
    def ids(self, tokenizer: Speaker) -> list[int]:
        """Its tokens.

        Raises:
            ValueError: it is a conversation that the tokenizer cannot write.
        """


@dataclass(frozen=True)
class Words(Prompt):
    """A text."""

    text: str

    @property
    def size(self) -> int:
        return len(self.text)

    def head(self, size: int) -> Words:
        return Words(self.text[:size])

    def ids(self, tokenizer: Speaker) -> list[int]:
        return list(map(int, tokenizer.encode(self.text.encode())))


@dataclass(frozen=True)
class Ids(Prompt):
    """Tokens as they are."""

    tokens: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.tokens)

    def head(self, size: int) -> Ids:
        return Ids(self.tokens[:size])

    def ids(self, tokenizer: Speaker) -> list[int]:
        return list(self.tokens)


@dataclass(frozen=True)
class Conversation(Prompt):
    """Turns, at least one, as a template writes them."""

    turns: tuple[Turn, ...]

    @property
    def size(self) -> int:
        return sum(len(turn.content) + _AROUND for turn in self.turns)

    def head(self, size: int) -> Conversation:
        """Its turns with what they say cut, so that the order of roles stays one that the template allows."""
        kept = self.turns[: size // _AROUND]
        if len(kept) > 1 and kept[-1].role != self.turns[-1].role:
            kept = kept[:-1]
        turns = []
        for turn in kept:
            said = turn.content[: max(size, 1)]
            size -= len(said)
            # Some templates take space from the ends, and may not find what they took.
            turns.append(turn if said == turn.content else turn._replace(content=said.rstrip() or said))
        return Conversation(tuple(turns))

    def ids(self, tokenizer: Speaker) -> list[int]:
        return list(tokenizer.apply(self.turns))
