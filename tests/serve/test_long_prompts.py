"""What long prompts cost others: nothing, and each of them little."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import pytest
from behind_port import MAX_LENGTH, Port, Spoken
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from lg.serve.prompts import Conversation, Words
from lg.serve.tokenizer import Turn

Serving = Callable[..., AbstractContextManager[Port]]

LARGE = 100_000


def asked(prompt: str) -> dict[str, object]:
    return {"model": "tiny", "prompt": prompt, "max_tokens": 2}


def wait_until(done: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until
        time.sleep(0.01)


class Gate:
    """Holds up whoever tokenizes a text that begins with "slow"."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.num_begun = 0

    def encode(self, text: bytes) -> Sequence[int]:
        if text.startswith(b"slow"):
            self.num_begun += 1
            assert self.open.wait(20)
        return list(text)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(Spoken, "encode", lambda _, text: gate.encode(text))
    yield gate
    gate.open.set()


@pytest.mark.parametrize("size", [4, LARGE])
def test_a_place_is_taken_before_a_prompt_is_tokenized(serving: Serving, gate: Gate, size: int) -> None:
    with serving(slots=1, queue=1) as port, concurrent.futures.ThreadPoolExecutor(2) as pool:
        body = asked("slow".ljust(size))
        first = [pool.submit(port.http.post, "/v1/completions", json=body) for _ in range(2)]
        wait_until(lambda: port.server.engine.num_open == 2)
        for late in (body, asked("a")):
            answer = port.http.post("/v1/completions", json=late)
            assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
        assert gate.num_begun == 1
        gate.open.set()
        assert {one.result().status_code for one in first} == {200 if size < MAX_LENGTH else 400}
        wait_until(lambda: port.server.engine.num_open == 0)
        assert port.http.post("/v1/completions", json=asked("a")).status_code == 200


def test_several_prompts_have_a_place_each(serving: Serving, gate: Gate) -> None:
    with serving(slots=1, queue=2) as port, concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(port.http.post, "/v1/completions", json={**asked(""), "prompt": ["slow".ljust(LARGE), "a"]})
        wait_until(lambda: gate.num_begun == 1)
        assert port.http.post("/v1/completions", json={**asked(""), "prompt": ["a", "a"]}).status_code == 429
        assert port.server.engine.num_open == 2
        gate.open.set()
        assert first.result().status_code == 400


def test_a_short_prompt_does_not_wait_for_long_ones(port: Port, gate: Gate) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        try:
            long = [pool.submit(port.http.post, "/v1/completions", json=asked("slow".ljust(LARGE))) for _ in range(8)]
            wait_until(lambda: port.server.engine.num_open == 8)
            assert port.http.post("/v1/completions", json=asked("a"), timeout=10).status_code == 200
            assert gate.num_begun == 1 and not any(one.done() for one in long)
        finally:
            gate.open.set()


@pytest.mark.parametrize("size", [4, LARGE])
def test_a_client_that_goes_away_gives_its_place_back(serving: Serving, gate: Gate, size: int) -> None:
    with serving(slots=1, queue=1) as port:
        body = json.dumps(asked("slow".ljust(size))).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n"
        url = port.http.base_url
        with contextlib.ExitStack() as clients:
            for _ in range(2):
                client = clients.enter_context(socket.create_connection((url.host, url.port)))
                client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            # One of them is being tokenized, and the other one waits for that.
            wait_until(lambda: gate.num_begun == 1 and port.server.engine.num_open == 2)
        wait_until(lambda: port.server.engine.num_open == 0)
        gate.open.set()
        assert port.http.post("/v1/completions", json=asked("a")).status_code == 200
        assert gate.num_begun == 1


def test_a_prompt_that_is_far_too_long_is_not_read_to_its_end(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    encode, apply = Spoken.encode, Spoken.apply
    monkeypatch.setattr(Spoken, "encode", lambda self, text: seen.append(len(text)) or encode(self, text))
    monkeypatch.setattr(
        Spoken, "apply", lambda self, turns: seen.append(sum(map(len, map(str, turns)))) or apply(self, turns)
    )
    large = "a " * 1_500_000
    turns = [{"role": role, "content": large if role == "system" else "a"} for role in ("system", "user")]
    many = [{"role": ("user", "assistant")[n % 2], "content": "a"} for n in range(20_001)]
    for path, given in (
        ("/v1/completions", asked(large)),
        ("/v1/completions", {**asked(""), "prompt": [1] * LARGE}),
        ("/v1/chat/completions", {"model": "tiny", "messages": turns, "max_tokens": 2}),
        ("/v1/chat/completions", {"model": "tiny", "messages": many, "max_tokens": 2}),
    ):
        answer = port.http.post(path, json=given)
        said = "more than 192 tokens, with 2 new ones, are more than the 192 that there is room for; the longest that "
        assert answer.status_code == 400 and said + "fits with so many new ones has 190" in answer.text
    assert len(seen) == 3 and max(seen) < 30_000


def test_a_long_text_of_few_tokens_is_served(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spoken, "encode", lambda _, text: list(text[:: len(text) // 1000 or 1][:190]))
    answer = port.http.post("/v1/completions", json=asked("a" * LARGE))
    assert answer.status_code == 200 and answer.json()["usage"]["prompt_tokens"] == 190


def test_what_a_template_says_of_a_part_is_not_said_of_the_whole(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(_: Spoken, turns: Sequence[Turn]) -> Sequence[int]:
        if not turns[-1].content.endswith("."):
            raise ValueError("a turn has no end")
        return [1] * 100

    monkeypatch.setattr(Spoken, "apply", apply)
    for end, status in ((".", 200), ("!", 400)):
        turn = {"role": "user", "content": "a" * LARGE + end}
        answer = port.http.post("/v1/chat/completions", json={"model": "tiny", "messages": [turn], "max_tokens": 2})
        assert answer.status_code == status, answer.text


def test_a_head_has_the_turns_of_the_whole() -> None:
    roles = ["system", *["user", "assistant"] * 3, "user"]
    whole = Conversation(tuple(Turn(role, "ab " * 100) for role in roles))
    head = whole.head(399)
    assert [turn.role for turn in head.turns] == roles
    assert [len(turn.content) for turn in head.turns] == [300, 98, *[1] * 6]
    assert whole.head(whole.size) == whole
    assert [turn.role for turn in whole.head(16 * 5).turns] == roles[:4]


@pytest.mark.parametrize("parted", [True, False])
def test_a_head_has_no_more_tokens_than_the_whole(parted: bool) -> None:
    rng = random.Random(0)
    words = ["".join(rng.choice("abcde") for _ in range(rng.randrange(1, 9))) for _ in range(300)]
    text = " ".join(rng.choice(words) for _ in range(1500))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=parted)
    tokenizer.train_from_iterator(
        [text[at : at + 100] for at in range(0, len(text), 100)],
        trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )

    class Real(Spoken):
        def encode(self, text: bytes) -> Sequence[int]:
            return tokenizer.encode(text.decode()).ids

    whole = Words(text[:5000])
    most = len(whole.ids(Real()))
    assert all(len(whole.head(size).ids(Real())) <= most + 3 for size in range(4900, 5000))
