"""What the tests of this folder have in common: a tokenizer of bytes, and a server that runs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property

import httpx
import openai

from lg.serve.server import Server
from lg.serve.tokenizer import Turn

MAX_LENGTH = 192
END = 200


class Spoken:
    """Bytes, whose conversations are lines."""

    ends = frozenset({END})

    def encode(self, text: bytes) -> Sequence[int]:
        return list(text)

    def decode(self, ids: Sequence[int]) -> bytes:
        return bytes(ids)

    def apply(self, turns: Sequence[Turn]) -> Sequence[int]:
        if turns[-1].role == "assistant":
            raise ValueError("the last turn is the assistant's")
        return list("".join(f"{role}: {said}\n" for role, said in [*turns, Turn("assistant", "")]).encode())


class Port:
    """A server that runs."""

    def __init__(self, server: Server, url: str, thread: threading.Thread) -> None:
        self.server = server
        self.thread = thread
        self.url = url

    @cached_property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    @cached_property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    @property
    def num_pages(self) -> int:
        return sum(group.num_held for kind in self.server.engine.scheduler.runner.cache.kinds for group in kind.groups)

    def close(self) -> None:
        self.http.close()
        self.client.close()
