"""What is answered: OpenAI's objects for completions and for chat, whole or in chunks."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from lg.serve.asked import Asked, chat, completion


@dataclass(frozen=True)
class Told:
    """One token that was written.

    Attributes:
        text: its bytes.
        logprob: natural.
        offset: characters of the text before it.
    """

    text: bytes
    logprob: float
    offset: int


@dataclass(frozen=True)
class Piece:
    """What was written since the last piece of the same choice.

    Attributes:
        index: which choice.
        text: what may be shown.
        tokens: those that were written.
        finish: "stop" or "length" if nothing follows.
    """

    index: int
    text: str
    tokens: tuple[Told, ...]
    finish: str | None


@dataclass
class Usage:
    """Tokens of a request: of its prompts, and written so far."""

    prompt: int
    new: int = 0

    @property
    def json(self) -> dict[str, int]:
        """What is sent."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.new,
            "total_tokens": self.prompt + self.new,
        }


class Answer(ABC):
    """The answer to one request.

    Args:
        asked: what was asked for.
    """

    prefix: str
    kind: str
    chunk_kind: str
    param: str

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self._id = f"{self.prefix}-{uuid4().hex}"
        self._created = int(time.time())

    @staticmethod
    @abstractmethod
    def read(body: bytes) -> Asked:
        """Understands a request.

        Raises:
            Refusal: a field cannot be honoured.
        """

    def whole(self, pieces: Sequence[Piece], usage: Usage) -> dict[str, Any]:
        """The answer that is not streamed; one piece a choice."""
        return {**self._head(self.kind), "choices": [self._choice(piece) for piece in pieces], "usage": usage.json}

    def opening(self) -> list[dict[str, Any]]:
        """The chunks before the first piece."""
        return []

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """A piece as it is streamed."""
        return self._chunk([self._delta(piece)])

    def closing(self, usage: Usage) -> list[dict[str, Any]]:
        """The chunks after the last piece."""
        return [{**self._chunk([]), "usage": usage.json}] if self.asked.usage else []

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        # Where usage is asked for, every chunk has the key.
        return {**self._head(self.chunk_kind), "choices": choices, **({"usage": None} if self.asked.usage else {})}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self.asked.model}

    @abstractmethod
    def _choice(self, piece: Piece) -> dict[str, Any]: ...

    @abstractmethod
    def _delta(self, piece: Piece) -> dict[str, Any]: ...


class Completions(Answer):
    """Texts that go on from prompts."""

    prefix, kind, chunk_kind, param = "cmpl", "text_completion", "text_completion", "prompt"
    read = staticmethod(completion)

    def _choice(self, piece: Piece) -> dict[str, Any]:
        told = None
        if self.asked.logprobs is not None:
            words = [token.text.decode(errors="replace") for token in piece.tokens]
            chances = [token.logprob for token in piece.tokens]
            tops = [{word: chance} for word, chance in zip(words, chances, strict=True)]
            told = {
                "tokens": words,
                "token_logprobs": chances,
                "top_logprobs": tops if self.asked.logprobs else None,
                "text_offset": [token.offset for token in piece.tokens],
            }
        return {"index": piece.index, "text": piece.text, "logprobs": told, "finish_reason": piece.finish}

    _delta = _choice


class Chat(Answer):
    """The next turn of a conversation."""

    prefix, kind, chunk_kind, param = "chatcmpl", "chat.completion", "chat.completion.chunk", "messages"
    read = staticmethod(chat)

    def opening(self) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [self._chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}])]

    def _choice(self, piece: Piece) -> dict[str, Any]:
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {"index": 0, "message": message, "logprobs": self._told(piece), "finish_reason": piece.finish}

    def _delta(self, piece: Piece) -> dict[str, Any]:
        delta = {"content": piece.text} if piece.text else {}
        return {"index": 0, "delta": delta, "logprobs": self._told(piece), "finish_reason": piece.finish}

    def _told(self, piece: Piece) -> dict[str, Any] | None:
        if self.asked.logprobs is None:
            return None
        tokens = []
        for token in piece.tokens:
            one = {"token": token.text.decode(errors="replace"), "logprob": token.logprob, "bytes": list(token.text)}
            tokens.append({**one, "top_logprobs": [one] * self.asked.logprobs})
        return {"content": tokens, "refusal": None}
