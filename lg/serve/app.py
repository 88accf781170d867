"""What is answered at each path: completions, chat, models, health and metrics."""

from __future__ import annotations

import asyncio
import codecs
import hmac
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from lg.inference.scheduler import Request as Written
from lg.inference.text import Text
from lg.serve.answers import Answer, Chat, Completions, Piece, Told, Usage
from lg.serve.asked import Asked
from lg.serve.engine import EndedError, Engine, FullError, Stream
from lg.serve.metrics import metrics
from lg.serve.refusal import Refusal, wrong
from lg.serve.tokenizer import Speaker

_JSON = b"application/json"
_EVENTS = b"text/event-stream; charset=utf-8"
_RETRY_S = 1
# For a whole body to come.
_BODY_S = 120


@dataclass(frozen=True)
class Settings:
    """What a server is asked to be.

    Attributes:
        name: what clients call the model.
        api_key: what they must have; None is nothing.
        max_body: bytes of a request.
    """

    name: str
    api_key: str | None = None
    max_body: int = 16 * 2**20


def application(
    engine: Engine, tokenizer: Speaker, settings: Settings
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """The ASGI application.

    Args:
        engine: writes; it is started and stopped by the caller.
        tokenizer: the model's.
        settings: see there.
    """
    return _App(engine, tokenizer, settings)


class _App:
    def __init__(self, engine: Engine, tokenizer: Speaker, settings: Settings) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.settings = settings
        self._since = int(time.time())
        self._answered: Counter[tuple[str, int]] = Counter()
        routes = [
            Route("/v1/completions", partial(self._write, Completions), methods=["POST"]),
            Route("/v1/chat/completions", partial(self._write, Chat), methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{name:path}", self._model, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
        ]
        self._paths = {route.path for route in routes}
        self._starlette = Starlette(
            routes=routes, exception_handlers={Refusal: _refused, HTTPException: _not_there, ClientDisconnect: _nobody}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, and counts the answer."""

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self._paths else "other"
                self._answered[path, message["status"]] += 1
            await send(message)

        await self._starlette(scope, receive, counted)

    async def _health(self, request: Request) -> Response:
        failed = self.engine.failure is not None
        return _json({"status": "failed" if failed else "ok"}, 503 if failed else 200)

    async def _metrics(self, request: Request) -> Response:
        self._check_key(request)
        return Response(metrics(self.engine, self._answered), media_type="text/plain; version=0.0.4")

    async def _models(self, request: Request) -> Response:
        self._check_key(request)
        return _json({"object": "list", "data": [self._card]})

    async def _model(self, request: Request) -> Response:
        self._check_key(request)
        self._check_model(request.path_params["name"])
        return _json(self._card)

    @property
    def _card(self) -> dict[str, Any]:
        longest = self.engine.scheduler.runner.cache.max_length
        return {
            "id": self.settings.name,
            "object": "model",
            "created": self._since,
            "owned_by": "lg",
            "max_model_len": longest,
        }

    async def _write(self, kind: type[Answer], request: Request) -> Response:
        self._check_key(request)
        try:
            body = await asyncio.wait_for(self._body(request), _BODY_S)
        except asyncio.TimeoutError as error:
            raise Refusal(408, f"the body has not come within {_BODY_S} seconds", None, "request_timeout") from error
        # Long texts take a while; others are answered meanwhile.
        asked = await asyncio.to_thread(kind.read, body)
        self._check_model(asked.model)
        if len(asked.prompts) > self.engine.most:
            said = f"{len(asked.prompts):,} of them are more than the {self.engine.most} that are taken at once"
            raise Refusal(400, f"{kind.param}: {said}", kind.param, "invalid_value")
        written = await asyncio.to_thread(lambda: list(self._written(asked, kind.param)))
        return _Watched(partial(self._answer, kind(asked), written))

    def _check_key(self, request: Request) -> None:
        if self.settings.api_key is None:
            return
        word, _, key = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(key.strip().encode("latin-1"), self.settings.api_key.encode())
        if word.lower() != "bearer" or not right:
            raise Refusal(401, "a valid API key is needed, as `Authorization: Bearer KEY`", None, "invalid_api_key")

    def _check_model(self, name: str) -> None:
        if name != self.settings.name:
            said = f"model: {name[:100]!r} is not here; allowed is {self.settings.name!r}"
            raise Refusal(404, said, "model", "model_not_found")

    async def _body(self, request: Request) -> bytes:
        """The body of a request, if it is not too large; one that is is not read on."""
        most = self.settings.max_body
        refusal = Refusal(413, f"the body is larger than {most:,} bytes", None, "request_too_large")
        told = request.headers.get("content-length", "")
        if told.isascii() and told.isdigit() and int(told) > most:
            raise refusal
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > most:
                raise refusal
        return bytes(body)

    def _written(self, asked: Asked, param: str) -> Iterator[Written]:
        """What the scheduler is asked for; one for each choice.

        Raises:
            Refusal: a prompt is none, or too long.
        """
        longest = self.engine.scheduler.runner.cache.max_length
        for prompt in asked.prompts:
            ids = self._ids(prompt, param)
            room = longest - len(ids)
            new = asked.max_new_tokens if asked.max_new_tokens is not None else max(room, 1)
            if not ids:
                raise wrong(param, "", "at least one token")
            if new > room:
                raise Refusal(
                    400,
                    f"{param}: {len(ids):,} tokens, with {new:,} new ones, are more than the {longest:,} that there is "
                    f"room for; the longest that fits with so many new ones has {max(longest - new, 0):,}",
                    param,
                    "context_length_exceeded",
                )
            # Of layers that see the whole of what is given, that is the prompt.
            doc = {"prefix": len(ids)}
            yield Written(torch.tensor(ids, dtype=torch.int64), new, asked.sampling, self.tokenizer.ends, doc)

    def _ids(self, prompt: object, param: str) -> list[int]:
        if isinstance(prompt, str):
            return list(map(int, self.tokenizer.encode(prompt.encode())))
        assert isinstance(prompt, tuple)
        if param == "prompt":
            return list(prompt)
        try:
            return list(self.tokenizer.apply(prompt))
        except ValueError as error:
            raise Refusal(400, f"{param}: {error}", param, "invalid_value") from error

    async def _answer(self, answer: Answer, written: list[Written], send: Send) -> None:
        """Writes, and sends what is written."""
        try:
            stream = await self.engine.open(written)
        except FullError:
            said = f"{self.engine.most} requests are open, which is as many as are taken; try again later"
            busy = Refusal(429, said, None, "queue_full")
            return await _send(send, busy.body, 429, [(b"retry-after", str(_RETRY_S).encode())])
        except EndedError:
            return await _send(send, _ended().body, 503)
        except ValueError as error:
            return await _send(send, Refusal(400, f"{answer.param}: {error}", answer.param, "invalid_value").body, 400)
        usage = Usage(sum(len(one.tokens) for one in written))
        try:
            pieces = self._pieces(answer.asked, written, stream, usage)
            await (_streamed if answer.asked.streamed else _sent)(send, answer, pieces, usage)
        finally:
            self.engine.close(stream)

    async def _pieces(self, asked: Asked, written: list[Written], stream: Stream, usage: Usage) -> AsyncIterator[Piece]:
        """What is written, as it comes.

        Raises:
            Refusal: the server ends before that is finished.
        """
        texts = {index: Text(self.tokenizer, asked.stop) for index, _ in enumerate(written)}
        held: dict[int, list[Told]] = {index: [] for index in texts}
        offsets = dict.fromkeys(texts, 0)
        # A character that tokens part is one.
        whole = {index: codecs.getincrementaldecoder("utf-8")(errors="replace") for index in texts}
        while texts:
            try:
                index, event = await stream.next()
            except EndedError as error:
                raise _ended() from error
            if index not in texts:  # a stop string has ended it
                continue
            if event.finish == "cancelled":
                raise _ended()
            if event.finish == "failed":
                raise Refusal(500, "the model's logits are no numbers for this request", None, "model_error")
            if event.token is None or event.logprob is None:
                continue
            usage.new += 1
            text, finish, shown = texts[index], event.finish, ""
            if finish != "stop":  # the id that ends a text is no part of it
                if asked.logprobs is not None:
                    told = Told(self.tokenizer.decode([event.token]), event.logprob, offsets[index])
                    held[index].append(told)
                    offsets[index] += len(whole[index].decode(told.text))
                shown = text.add(event.token)
            if finish is not None:
                shown += text.end()
            elif text.stopped:
                self.engine.close(stream, index)
            finish = "stop" if text.stopped else finish
            if shown or finish:
                tokens, held[index] = tuple(held[index]), []
                yield Piece(index, shown, tokens, finish)
            if finish:
                del texts[index]


class _Watched(Response):
    """An answer that is given up when the client goes away."""

    def __init__(self, work: Callable[[Send], Awaitable[None]]) -> None:
        super().__init__()
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.ensure_future(self._work(send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _sent(send: Send, answer: Answer, pieces: AsyncIterator[Piece], usage: Usage) -> None:
    """Sends an answer when it is whole."""
    parts: dict[int, list[Piece]] = {}
    try:
        async for piece in pieces:
            parts.setdefault(piece.index, []).append(piece)
    except Refusal as refusal:
        return await _send(send, refusal.body, refusal.status)
    whole = [
        Piece(
            index,
            "".join(piece.text for piece in of_choice),
            tuple(token for piece in of_choice for token in piece.tokens),
            of_choice[-1].finish,
        )
        for index, of_choice in sorted(parts.items())
    ]
    await _send(send, answer.whole(whole, usage))


async def _streamed(send: Send, answer: Answer, pieces: AsyncIterator[Piece], usage: Usage) -> None:
    """Sends an answer piece by piece, as server-sent events."""
    headers = [(b"content-type", _EVENTS), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def event(said: str, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": f"data: {said}\n\n".encode(), "more_body": more})

    for chunk in answer.opening():
        await event(json.dumps(chunk))
    try:
        async for piece in pieces:
            await event(json.dumps(answer.chunk(piece)))
    except Refusal as refusal:
        await event(json.dumps(refusal.body), more=False)
        return
    for chunk in answer.closing(usage):
        await event(json.dumps(chunk))
    await event("[DONE]", more=False)


async def _send(send: Send, said: dict[str, Any], status: int = 200, headers: list[tuple[bytes, bytes]] = []) -> None:  # noqa: B006
    response = _json(said, status)
    start = {"type": "http.response.start", "status": status, "headers": [*response.raw_headers, *headers]}
    await send(start)
    await send({"type": "http.response.body", "body": response.body})


def _json(said: dict[str, Any], status: int = 200) -> Response:
    # Pure ASCII: what clients sent may be told back, also what UTF-8 cannot write.
    return Response(json.dumps(said).encode(), status, media_type=_JSON.decode())


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _json(error.body, error.status)


async def _not_there(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = f"{request.method} {request.url.path[:100]}: {error.detail}"
    return _json(Refusal(error.status_code, said).body, error.status_code)


async def _nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # as nginx says of a client that went away


def _ended() -> Refusal:
    return Refusal(503, "the server is ending", None, "server_ending")
