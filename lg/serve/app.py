"""What is answered at each path: completions, chat, models, health and metrics."""

from __future__ import annotations

import asyncio
import codecs
import hmac
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Message, Receive, Scope, Send

from lg.inference.scheduler import Request as Written
from lg.inference.text import Text
from lg.serve.answers import Answer, Chat, Completions, Piece, Told, Usage
from lg.serve.asked import Asked
from lg.serve.engine import EndedError, Engine, FullError, Stream
from lg.serve.metrics import metrics
from lg.serve.reader import Reader
from lg.serve.refusal import Refusal
from lg.serve.seats import Seats
from lg.serve.tokenizer import Speaker

_JSON = "application/json"
_EVENTS = b"text/event-stream; charset=utf-8"
_RETRY_S = "1"
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
        self._seats = Seats()
        self._reader = Reader(tokenizer, engine.scheduler.runner.cache.max_length, self._seats)
        self._since = int(time.time())
        self._answered: Counter[tuple[str, int]] = Counter()
        self._routes = [
            Route("/v1/completions", partial(self._write, Completions), methods=["POST"]),
            Route("/v1/chat/completions", partial(self._write, Chat), methods=["POST"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{model:path}", self._model, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
        ]
        self._starlette = Starlette(
            routes=self._routes,
            exception_handlers={
                Refusal: _refused,
                FullError: self._full,
                EndedError: _ending,
                HTTPException: _not_there,
                ClientDisconnect: _nobody,
            },
        )
        self._starlette.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, and counts the answer."""
        # By route: clients choose names of models, and any number of them.
        found = (route.path.replace(":path", "") for route in self._routes if route.matches(scope)[0] is not Match.NONE)
        path = next(found, "other")

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._answered[path, message["status"]] += 1
            await send(message)

        await self._starlette(scope, receive, counted)

    async def _health(self, request: Request) -> Response:
        failed = self.engine.failure is not None
        return _json({"status": "failed" if failed else "ok"}, 503 if failed else 200)

    async def _metrics(self, request: Request) -> Response:
        self._check_key(request)
        return Response(metrics(self.engine, self._answered), media_type="text/plain; version=0.0.4")

    async def _full(self, request: Request, error: Exception) -> Response:
        said = f"{self.engine.most} requests are open, which is as many as are taken; try again later"
        return _json(Refusal(429, said, None, "queue_full").body, 429, {"retry-after": _RETRY_S})

    async def _models(self, request: Request) -> Response:
        self._check_key(request)
        return _json({"object": "list", "data": [self._card]})

    async def _model(self, request: Request) -> Response:
        self._check_key(request)
        self._check_model(request.path_params["model"])
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
        return _Watched(partial(self._answer, kind, body))

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

    def _check_number(self, prompts: int, param: str) -> None:
        if prompts > self.engine.most:
            said = f"{prompts:,} of them are more than the {self.engine.most} that are taken at once"
            raise Refusal(400, f"{param}: {said}", param, "invalid_value")

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

    async def _answer(self, kind: type[Answer], body: bytes, send: Send) -> None:
        """Understands a request, writes, and sends what is written.

        Raises:
            FullError: too many requests are open; nothing is sent.
            EndedError: the server ends; nothing is sent.
            Refusal: the request cannot be served; nothing is sent.
        """
        stream = Stream()
        try:
            # What takes time or memory has a place first.
            self.engine.hold(stream, 1)
            asked = await self._seats.run(len(body), partial(kind.read, body))
            self._check_model(asked.model)
            self._check_number(len(asked.prompts), kind.param)
            self.engine.hold(stream, len(asked.prompts))
            written = await self._reader.written(asked, kind.param)
            try:
                await self.engine.open(stream, written)
            except ValueError as error:
                raise Refusal(400, f"{kind.param}: {error}", kind.param, "invalid_value") from error
            usage = Usage(sum(len(one.tokens) for one in written))
            pieces = self._pieces(asked, written, stream, usage)
            await (_streamed if asked.streamed else _sent)(send, kind(asked), pieces, usage)
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
    async for piece in pieces:
        parts.setdefault(piece.index, []).append(piece)
    whole = [
        Piece(
            index,
            "".join(piece.text for piece in of_choice),
            tuple(token for piece in of_choice for token in piece.tokens),
            of_choice[-1].finish,
        )
        for index, of_choice in sorted(parts.items())
    ]
    response = _json(answer.whole(whole, usage))
    await send({"type": "http.response.start", "status": 200, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body})


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


def _json(said: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # Pure ASCII: what clients sent may be told back, also what UTF-8 cannot write.
    return Response(json.dumps(said).encode(), status, headers, _JSON)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _json(error.body, error.status)


async def _ending(request: Request, error: Exception) -> Response:
    return await _refused(request, _ended())


async def _not_there(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = f"{request.method} {request.url.path[:100]}: {error.detail}"
    return _json(Refusal(error.status_code, said).body, error.status_code)


async def _nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # as nginx says of a client that went away


def _ended() -> Refusal:
    return Refusal(503, "the server is ending", None, "server_ending")
