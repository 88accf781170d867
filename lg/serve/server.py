"""A server on a port: it runs until it is told to end, and then lets what is being written finish, for a while."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from lg.inference.scheduler import Scheduler
from lg.serve.app import Settings, application
from lg.serve.engine import Engine
from lg.serve.tokenizer import Speaker

# What is left after the grace has been told so, and only has to be sent.
_LAST_WORDS_S = 5


class Server:
    """A model behind a port.

    Args:
        scheduler: writes; nobody else may use it.
        tokenizer: of the model.
        settings: see there.
        listener: a socket that is bound and listens.
        queue: requests that may be open beyond those that there are slots for.
        grace_s: seconds that requests get to finish when the server ends.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        tokenizer: Speaker,
        settings: Settings,
        listener: socket.socket,
        queue: int = 64,
        grace_s: float = 30,
    ) -> None:
        most = scheduler.runner.cache.num_slots + queue
        self.engine = Engine(scheduler, most, failed=self.end)
        self._listener = listener
        config = uvicorn.Config(
            application(self.engine, tokenizer, settings),
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=int(grace_s) + _LAST_WORDS_S,
        )
        self._server = _Uvicorn(config, self.engine.cancel_all, grace_s)

    def run(self) -> None:
        """Serves until `end`, SIGTERM or Ctrl-C.

        Raises:
            Exception: what ended the model's thread, if something did.
        """
        self.engine.start()
        try:
            with _signals_heard():
                self._server.run(sockets=[self._listener])
        finally:
            self.engine.stop()
        if self.engine.failure is not None:
            raise self.engine.failure

    def end(self) -> None:
        """Lets the server end, from any thread."""
        self._server.should_exit = True


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, cancel_all: Callable[[], None], grace_s: float) -> None:
        super().__init__(config)
        self._cancel_all = cancel_all
        self._grace_s = grace_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(self._grace_s, self._cancel_all)
        await super().shutdown(sockets)


@contextmanager
def _signals_heard() -> Iterator[None]:
    """After its end uvicorn sends itself the signal that it has heard, which would kill the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.signal(one, lambda *_: None) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
