"""The thread that the model runs in: requests come from the event loop, and what becomes of them goes back there."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial

from lg.inference.scheduler import Event, Request, Scheduler


class FullError(Exception):
    """So many requests are open that no other is taken."""


class EndedError(Exception):
    """The engine takes no requests any more."""


class Stream:
    """What becomes of the requests of one client, in the order it happens. To be used on the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._accepted: asyncio.Future[None] = self._loop.create_future()
        self._arrived: asyncio.Queue[tuple[int, Event] | Exception] = asyncio.Queue()

    async def next(self) -> tuple[int, Event]:
        """Which of the requests, and what became of it.

        Raises:
            EndedError: the engine has failed.
        """
        arrived = await self._arrived.get()
        if isinstance(arrived, Exception):
            raise arrived
        return arrived

    async def accepted(self) -> None:
        """Waits until the scheduler has taken the requests.

        Raises:
            ValueError: one of them can never be served.
            EndedError: the engine has failed.
        """
        await self._accepted

    def tell(self, happened: Sequence[tuple[int, Event] | Exception] | None) -> None:
        """Hands over what happened, from any thread; None is that the requests were taken."""
        try:
            self._loop.call_soon_threadsafe(self._put, happened)
        except RuntimeError:  # the loop is closed, so nobody listens
            return

    def _put(self, happened: Sequence[tuple[int, Event] | Exception] | None) -> None:
        waited_for = not self._accepted.done()
        if waited_for and happened is None:
            self._accepted.set_result(None)
        elif waited_for and happened is not None and isinstance(happened[0], Exception):
            self._accepted.set_exception(happened[0])
        else:
            for one in happened or ():
                self._arrived.put_nowait(one)


class Engine:
    """A scheduler in a thread of its own.

    Args:
        scheduler: nobody else may use it.
        most: requests that may be open at once; another one is refused.
        failed: called in the thread when it ends by an exception.

    Attributes:
        failure: what has ended the thread, if something has.
        num_prompt_tokens, num_new_tokens: read and written so far.
    """

    def __init__(self, scheduler: Scheduler, most: int, failed: Callable[[], None] = lambda: None) -> None:
        self.scheduler = scheduler
        self.most = most
        self.failed = failed
        self.failure: BaseException | None = None
        self.num_prompt_tokens = self.num_new_tokens = 0
        self._changed = threading.Condition()
        self._orders: list[Callable[[], None]] = []
        self._held: dict[Stream, int] = {}  # places of those whose requests are still to come
        self._streams: dict[Stream, int] = {}  # with how many requests of each are open
        self._closing = self._stopping = False
        # Of the thread alone.
        self._routes: dict[int, tuple[Stream, int]] = {}
        self._read: dict[int, int] = {}
        self._thread = threading.Thread(target=self._run, name="lg-model", daemon=True)

    @property
    def num_open(self) -> int:
        """Requests that are prepared, wait, are read or are written."""
        with self._changed:
            return sum(self._held.values()) + sum(self._streams.values())

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Cancels what is open, and ends the thread."""
        self.cancel_all()
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def hold(self, stream: Stream, count: int) -> None:
        """Keeps places for as many requests of a client, in all, before they are ready; to be closed.

        Raises:
            FullError: too many are open; then what was held still is.
            EndedError: the engine has failed, or is about to end.
        """
        with self._changed:
            self._check_runs()
            if self.num_open - self._held.get(stream, 0) + count > self.most:
                raise FullError
            self._held[stream] = count

    async def open(self, stream: Stream, requests: Sequence[Request]) -> None:
        """Takes the requests that a client has places for.

        Raises:
            ValueError: one of them can never be served; then none is.
            EndedError: the engine has failed, or is about to end.
        """
        with self._changed:
            self._check_runs()
            self._streams[stream] = self._held.pop(stream)
            assert self._streams[stream] == len(requests)
            self._orders.append(partial(self._submit, stream, requests))
            self._changed.notify()
        await stream.accepted()

    def _check_runs(self) -> None:
        if self._closing or self.failure is not None:
            raise EndedError

    def close(self, stream: Stream, index: int | None = None) -> None:
        """Cancels what is left of a client's requests, or one of them, and gives back the places that it holds."""
        with self._changed:
            self._held.pop(stream, None)
            if stream in self._streams:
                self._orders.append(partial(self._cancel, stream, index))
                self._changed.notify()

    def cancel_all(self) -> None:
        """Takes no more requests, and cancels those that are open."""
        with self._changed:
            self._closing = True
            self._orders += [partial(self._cancel, stream, None) for stream in self._streams]
            self._changed.notify()

    def _run(self) -> None:
        try:
            while self._orders_done():
                self._tell(self.scheduler.step())
        except BaseException as error:
            with self._changed:
                self.failure = error
                streams, self._streams = list(self._streams), {}
            for stream in streams:
                # Those that wait to be taken, and those that wait for tokens.
                stream.tell([EndedError()])
            self.failed()

    def _orders_done(self) -> bool:
        """Waits until there is something to do, and does what was ordered; whether the thread goes on."""
        with self._changed:
            while self.scheduler.idle and not self._orders and not self._stopping:
                self._changed.wait()
            orders, self._orders = self._orders, []
            ends = self._stopping and not orders and self.scheduler.idle
        for order in orders:
            order()
        return not ends

    def _submit(self, stream: Stream, requests: Sequence[Request]) -> None:
        tickets: list[int] = []
        try:
            for request in requests:
                tickets.append(self.scheduler.submit(request))
        except ValueError as error:
            for ticket in tickets:
                self.scheduler.cancel(ticket)
            with self._changed:
                del self._streams[stream]
            stream.tell([error])
            return
        self._routes |= {ticket: (stream, index) for index, ticket in enumerate(tickets)}
        stream.tell(None)

    def _cancel(self, stream: Stream, index: int | None) -> None:
        for ticket, (owner, number) in self._routes.items():
            if owner is stream and index in (None, number):
                self.scheduler.cancel(ticket)

    def _tell(self, events: Sequence[Event]) -> None:
        """Sends each client what became of its requests."""
        happened: dict[Stream, list[tuple[int, Event] | Exception]] = {}
        for event in events:
            if event.ticket not in self._routes:  # taken back before it began
                continue
            stream, index = self._routes[event.ticket]
            happened.setdefault(stream, []).append((index, event))
            self.num_prompt_tokens += event.read - self._read.get(event.ticket, 0)
            self._read[event.ticket] = event.read
            self.num_new_tokens += event.token is not None
            if event.finish is not None:
                del self._routes[event.ticket], self._read[event.ticket]
                with self._changed:
                    self._streams[stream] -= 1
                    if not self._streams[stream]:
                        del self._streams[stream]
        for stream, what in happened.items():
            stream.tell(what)
