from __future__ import annotations

import concurrent.futures
import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import httpx
import openai
import pytest
import torch
from behind_port import MAX_LENGTH, Port, Spoken

from lg.inference import Runner, Sampling, Scheduler
from lg.models.decoder import Decoder
from lg.serve.app import Settings
from lg.serve.server import Server

Solo = Callable[..., str]
Serving = Callable[..., AbstractContextManager[Port]]

PROMPT = "The house was old, and nobody had lived in it. "
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
SAID = "system: Be brief.\nuser: Hello\nassistant: \n"


def wait_until(done: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_completion_is_what_the_model_writes_alone(port: Port, solo: Solo) -> None:
    answer = port.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=16, temperature=0)
    assert answer.choices[0].text == solo(PROMPT.encode(), 16)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == len(PROMPT) and answer.usage.total_tokens == len(PROMPT) + 16


def test_a_completion_is_streamed(port: Port, solo: Solo) -> None:
    chunks = list(
        port.client.completions.create(
            model="tiny",
            prompt=PROMPT,
            max_tokens=16,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == solo(PROMPT.encode(), 16)
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 16 and not chunks[-1].choices and chunks[0].usage is None
    assert len(chunks) > 5


def test_several_prompts_are_several_choices(port: Port, solo: Solo) -> None:
    answer = port.client.completions.create(
        model="tiny", prompt=[list(b"abc"), list(PROMPT.encode())], max_tokens=9, temperature=0
    )
    assert [choice.text for choice in answer.choices] == [solo(b"abc", 9), solo(PROMPT.encode(), 9)]


def test_a_conversation_goes_on(port: Port, solo: Solo) -> None:
    answer = port.client.chat.completions.create(model="tiny", messages=TURNS, max_completion_tokens=20, temperature=0)
    assert answer.choices[0].message.content == solo(SAID.encode(), 20)
    assert answer.choices[0].message.role == "assistant"


def test_a_conversation_is_streamed(port: Port, solo: Solo) -> None:
    chunks = list(
        port.client.chat.completions.create(model="tiny", messages=TURNS, max_tokens=20, temperature=0, stream=True)
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == solo(SAID.encode(), 20)
    assert chunks[-1].choices[0].finish_reason == "length"


def test_without_max_tokens_a_conversation_may_fill_the_room(port: Port) -> None:
    answer = port.client.chat.completions.create(model="tiny", messages=TURNS, temperature=0)
    assert answer.usage.total_tokens == MAX_LENGTH or answer.choices[0].finish_reason == "stop"


def test_draws_are_those_of_the_seed(port: Port, solo: Solo) -> None:
    sampled = {"model": "tiny", "prompt": PROMPT, "max_tokens": 20, "seed": 5, "top_p": 0.9}
    answers = [port.client.completions.create(**sampled, extra_body={"top_k": 40}).choices[0].text for _ in range(2)]
    assert answers == [solo(PROMPT.encode(), 20, Sampling(1.0, top_k=40, top_p=0.9, seed=5))] * 2


def test_no_value_of_a_field_ends_the_server(port: Port) -> None:
    for asked in ({"temperature": 5e-324}, {"temperature": 10**300}, {"repetition_penalty": 1e-323, "top_p": 1e-323}):
        assert port.http.post("/v1/completions", json={**COMPLETION, **asked}).status_code == 200
    assert port.http.get("/health").status_code == 200


@pytest.mark.parametrize("streamed", [True, False])
def test_a_stop_string_ends_a_text_between_tokens(port: Port, solo: Solo, streamed: bool) -> None:
    whole = solo(PROMPT.encode(), 40)
    stop = next(whole[at : at + 3] for at in range(8, 30) if whole.find(whole[at : at + 3]) == at)
    answer = port.client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=40, temperature=0, stop=["no such", stop], stream=streamed
    )
    choices = [choice for chunk in answer for choice in chunk.choices] if streamed else answer.choices
    assert "".join(choice.text for choice in choices) == whole[: whole.index(stop)]
    assert choices[-1].finish_reason == "stop"


def test_log_probabilities_are_told(port: Port) -> None:
    client = port.client
    told = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=5, temperature=0, logprobs=1).choices[0]
    assert len(told.logprobs.token_logprobs) == 5 and all(one < 0 for one in told.logprobs.token_logprobs)
    assert [set(top) for top in told.logprobs.top_logprobs] == [{token} for token in told.logprobs.tokens]
    chat = client.chat.completions.create(model="tiny", messages=TURNS, max_tokens=5, temperature=0, logprobs=True)
    assert len(chat.choices[0].logprobs.content) == 5
    assert not chat.choices[0].logprobs.content[0].top_logprobs


def test_offsets_count_characters_that_tokens_part_once(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spoken, "decode", lambda _, ids: bytes("äöü€".encode()[one % 9] for one in ids))
    runner = port.server.engine.scheduler.runner
    written = iter(range(9))
    monkeypatch.setattr(runner, "read", lambda *_: torch.eye(256)[[next(written)]])
    asked = {"model": "tiny", "prompt": "a", "max_tokens": 9, "temperature": 0, "logprobs": 0}
    choice = port.http.post("/v1/completions", json=asked).json()["choices"][0]
    assert choice["text"] == "äöü€"
    assert choice["logprobs"]["text_offset"] == [0, 0, 1, 1, 2, 2, 3, 3, 3]


def test_models_health_and_metrics(port: Port) -> None:
    assert [model.id for model in port.client.models.list()] == ["tiny"]
    assert port.client.models.retrieve("tiny").id == "tiny"
    assert port.http.get("/health").json() == {"status": "ok"}
    port.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=2)
    counted = dict(
        line.rsplit(" ", 1) for line in port.http.get("/metrics").text.splitlines() if not line.startswith("#")
    )
    assert int(counted['lg_requests_total{path="/v1/completions",status="200"}']) >= 1
    assert int(counted["lg_prompt_tokens_total"]) >= len(PROMPT) and int(counted["lg_new_tokens_total"]) >= 2
    assert int(counted["lg_kv_pages"]) > 0 and int(counted["lg_kv_pages_in_use"]) == 0
    assert port.http.get("/v1/nothing").status_code == 404
    assert port.http.get("/v1/completions").json()["error"]["message"].startswith("GET /v1/completions")


COMPLETION = {"model": "tiny", "prompt": "a", "max_tokens": 2}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}


@pytest.mark.parametrize(
    ("base", "change", "status", "param", "said"),
    [
        (COMPLETION, {"model": "other"}, 404, "model", "allowed is 'tiny'"),
        (COMPLETION, {"model": None}, 400, "model", "the name of a model"),
        (COMPLETION, {"prompt": None}, 400, "prompt", "a text"),
        (COMPLETION, {"prompt": ""}, 400, "prompt", "at least one token"),
        (COMPLETION, {"prompt": [1, 300]}, 400, "prompt", "token 300"),
        (COMPLETION, {"prompt": ["a", 3]}, 400, "prompt", "a list of token ids"),
        (COMPLETION, {"prompt": "\ud800"}, 400, "prompt", "surrogate"),
        (COMPLETION, {"prompt": "a" * 200}, 400, "prompt", "the longest that fits with so many new ones has 190"),
        (COMPLETION, {"max_tokens": 0}, 400, "max_tokens", "at least 1"),
        (COMPLETION, {"max_tokens": 2.5}, 400, "max_tokens", "an integer"),
        (COMPLETION, {"max_tokens": 192}, 400, "max_tokens", "192 is not allowed; it must be at most 191"),
        (COMPLETION, {"max_tokens": 191, "prompt": "aa"}, 400, "prompt", "has 1"),
        (COMPLETION, {"n": 2}, 400, "n", "2 is not served"),
        (COMPLETION, {"n": True}, 400, "n", "True is not served"),
        (COMPLETION, {"n": 1.0}, 400, "n", "1.0 is not served"),
        (COMPLETION, {"echo": 0}, 400, "echo", "0 is not served"),
        (COMPLETION, {"best_of": 3}, 400, "best_of", "not served"),
        (COMPLETION, {"logit_bias": {"5": 1}}, 400, "logit_bias", "not served"),
        (COMPLETION, {"echo": True}, 400, "echo", "not served"),
        (COMPLETION, {"wibble": 1}, 400, "wibble", "not known"),
        (COMPLETION, {"temperature": "hot"}, 400, "temperature", "'hot'"),
        (COMPLETION, {"temperature": float("nan")}, 400, "temperature", "nan"),
        (COMPLETION, {"temperature": 10**400}, 400, "temperature", "100"),
        (COMPLETION, {"top_p": 2}, 400, "top_p", "2"),
        (COMPLETION, {"seed": -1}, 400, "seed", "-1"),
        (COMPLETION, {"stop": ["a", "b", "c", "d", "e"]}, 400, "stop", "up to 4"),
        (COMPLETION, {"stop": [""]}, 400, "stop", "not empty"),
        (COMPLETION, {"logprobs": 3}, 400, "logprobs", "not told"),
        (COMPLETION, {"stream": "yes"}, 400, "stream", "true or false"),
        (COMPLETION, {"stream_options": {"include_usage": True}}, 400, "stream_options", "stream is not true"),
        (CHAT, {"tools": [{"type": "function"}]}, 400, "tools", "not served"),
        (CHAT, {"messages": []}, 400, "messages", "at least one"),
        (CHAT, {"messages": [{"role": "wizard", "content": "a"}]}, 400, "messages[0].role", "system, developer"),
        (CHAT, {"messages": [{"role": ["user"], "content": "a"}]}, 400, "messages[0].role", "system, developer"),
        (CHAT, {"messages": [{"role": "user", "content": "a", "name": "b"}]}, 400, "messages[0].name", "not served"),
        (CHAT, {"messages": [{"role": "user", "content": 3}]}, 400, "messages[0].content", "a text"),
        (CHAT, {"messages": [{"role": "user", "content": "a", "audio": 1}]}, 400, "messages[0].audio", "not served"),
        (CHAT, {"messages": [{"role": "assistant", "content": "a"}]}, 400, "messages", "the assistant's"),
        (CHAT, {"top_logprobs": 1}, 400, "top_logprobs", "logprobs is not true"),
        (CHAT, {"max_tokens": 3, "max_completion_tokens": 4}, 400, "max_tokens", "max_completion_tokens"),
        (CHAT, {"max_tokens": 3000}, 400, "max_tokens", "3000 is not allowed; it must be at most 191"),
        (CHAT, {"max_completion_tokens": 3000}, 400, "max_completion_tokens", "at most 191"),
    ],
)  # fmt: skip
def test_what_is_not_served_is_refused_by_name(
    port: Port, base: dict[str, object], change: dict[str, object], status: int, param: str, said: str
) -> None:
    path = "/v1/completions" if "prompt" in base else "/v1/chat/completions"
    answer = port.http.post(path, content=json.dumps({**base, **change}), headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert error["param"] == param and said in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("nothing", [{"n": 1}, {"presence_penalty": 0.0}, {"frequency_penalty": 0}, {"echo": False}])
def test_a_field_that_asks_for_nothing_is_allowed(port: Port, nothing: dict[str, object]) -> None:
    assert port.http.post("/v1/completions", json={**COMPLETION, **nothing}).status_code == 200


def test_what_developers_say_is_what_the_system_says(port: Port, solo: Solo) -> None:
    turns = [{**TURNS[0], "role": "developer"}, TURNS[1]]
    answer = port.client.chat.completions.create(model="tiny", messages=turns, max_tokens=9, temperature=0)
    assert answer.choices[0].message.content == solo(SAID.encode(), 9)


@pytest.mark.parametrize("path", ["/v1/completions/", "/v1/chat/completions/", "/health/"])
def test_another_path_is_not_there(port: Port, path: str) -> None:
    answer = port.http.post(path, json=COMPLETION)
    assert answer.status_code == 404 and answer.json()["error"]["message"] == f"POST {path}: Not Found"


def test_models_are_counted_under_one_path(port: Port) -> None:
    assert port.http.get("/v1/models/some/other").status_code == port.http.get("/v1/other").status_code == 404
    assert port.http.get("/v1/models/tiny").status_code == 200
    counted = port.http.get("/metrics").text
    for one in ('path="/v1/models/{model}",status="200"', 'path="/v1/models/{model}",status="404"', 'path="other"'):
        assert one in counted
    assert "some" not in counted


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff\xfe\x00", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"])
def test_a_body_that_is_no_request_is_refused(port: Port, body: bytes) -> None:
    answer = port.http.post("/v1/completions", content=body)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_json"


def test_a_body_of_100_mb_is_refused_before_it_is_read(port: Port) -> None:
    host, number = port.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(number)), timeout=5) as one:
        one.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n" + b" " * 1000)
        assert one.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_a_body_of_no_told_length_is_refused_when_it_is_too_long(port: Port) -> None:
    answer = port.http.post("/v1/completions", content=(b" " * 2**20 for _ in range(18)))
    assert answer.status_code == 413 and "16,777,216 bytes" in answer.json()["error"]["message"]


def test_a_body_that_does_not_come_is_not_waited_for(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lg.serve.app._BODY_S", 0.2)
    host, number = port.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(number)), timeout=5) as one:
        one.sendall(b'POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{"model"')
        assert one.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_prompts_are_counted_before_they_are_tokenized(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spoken, "encode", lambda *_: 1 / 0)
    answer = port.http.post("/v1/completions", json={**COMPLETION, "prompt": ["a"] * 5000})
    assert answer.status_code == 400 and "5,000 of them are more than the 68" in answer.json()["error"]["message"]


def test_the_key_is_needed(serving: Serving) -> None:
    with serving(settings=Settings("tiny", api_key="s3cret-é")) as port:
        assert port.http.get("/health").status_code == 200
        for path in ("/v1/models", "/metrics"):
            assert port.http.get(f"{path}").status_code == 401
        with pytest.raises(openai.AuthenticationError, match="a valid API key is needed"):
            port.client.models.list()
        headers = {"authorization": "Bearer s3cret-é".encode()}
        assert port.http.get("/v1/models", headers=headers).status_code == 200


def test_more_requests_than_may_wait_are_told_to_come_again(serving: Serving) -> None:
    with serving(slots=1, queue=1) as port, concurrent.futures.ThreadPoolExecutor(2) as pool:
        long = {"model": "tiny", "prompt": PROMPT, "max_tokens": 60, "temperature": 0}
        running = [pool.submit(port.client.completions.create, **long) for _ in range(2)]
        wait_until(lambda: port.server.engine.num_open == 2)
        answer = port.http.post("/v1/completions", json=long)
        assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
        assert running[0].result().choices == running[1].result().choices


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_away_frees_its_pages(port: Port, streamed: bool) -> None:
    before = port.server.engine.num_new_tokens
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 140, "temperature": 1.0, "seed": 3, "stream": streamed}
    if streamed:
        with port.http.stream("POST", "/v1/completions", json=body) as answer:
            next(answer.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            port.http.post("/v1/completions", json=body, timeout=0.1)
    wait_until(lambda: port.server.engine.num_open == 0 and port.num_pages == 0)
    assert port.server.engine.num_new_tokens - before < 140


def test_many_at_once_each_get_what_they_would_get_alone(serving: Serving, solo: Solo) -> None:
    rng = random.Random(0)
    prompts = [bytes(rng.randrange(1, 128) for _ in range(rng.choice([1, 20, 63, 130, 150]))) for _ in range(16)]

    def ask(number: int) -> None:
        prompt, most = prompts[number], 4 + number
        body = {"model": "tiny", "prompt": prompt.decode(), "max_tokens": most, "temperature": 0}
        if number % 4 == 3:
            broken = port.http.post("/v1/completions", content=json.dumps(body)[: 10 + number])
            assert broken.status_code == 400
        if number % 4 == 2:
            with port.http.stream("POST", "/v1/completions", json={**body, "stream": True, "max_tokens": 9}) as answer:
                next(answer.iter_lines())
        if number % 2:
            chunks = port.client.completions.create(**body, stream=True)
            text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
        else:
            text = port.client.completions.create(**body).choices[0].text
        assert text == solo(prompt, most)

    # Pages for about two of full length.
    with serving(slots=6, capacity=2 * MAX_LENGTH) as port, concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))
        wait_until(lambda: port.server.engine.num_open == 0 and port.num_pages == 0)
        assert port.http.get("/health").status_code == 200


def test_a_server_that_ends_lets_texts_finish(serving: Serving, solo: Solo) -> None:
    with serving() as port, concurrent.futures.ThreadPoolExecutor(1) as pool:
        body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 30, "temperature": 0}
        running = pool.submit(port.client.completions.create, **body)
        wait_until(lambda: port.server.engine.num_open == 1)
        port.server.end()
        assert running.result().choices[0].text == solo(PROMPT.encode(), 30)


def test_signals_end_a_server(decoder: Decoder) -> None:
    def ask(url: str) -> int:
        try:
            with httpx.Client(base_url=url, timeout=60) as client:
                return client.post("/v1/completions", json=COMPLETION).status_code
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(Scheduler(Runner(decoder, MAX_LENGTH)), Spoken(), Settings("tiny"), listener)
    before = signal.getsignal(signal.SIGTERM)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, f"http://127.0.0.1:{listener.getsockname()[1]}")
        server.run()
        assert answer.result() == 200
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_server_that_ends_does_not_wait_for_ever(serving: Serving) -> None:
    with serving(grace_s=0) as port:
        body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 140, "temperature": 1.0, "seed": 3}
        chunks = iter(port.client.completions.create(**body, stream=True))
        next(chunks)
        port.server.end()
        with pytest.raises(openai.APIError, match="the server is ending"):
            list(chunks)


def test_a_model_that_fails_ends_the_server(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as port:
        runner = port.server.engine.scheduler.runner
        monkeypatch.setattr(runner, "read", lambda *_: 1 / 0)
        with pytest.raises(openai.InternalServerError, match="the server is ending"):
            port.client.completions.create(model="tiny", prompt=PROMPT)
        assert isinstance(port.server.engine.failure, ZeroDivisionError)
        port.thread.join(10)
        assert not port.thread.is_alive()
