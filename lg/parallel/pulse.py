"""Tells which rank the others wait for: each shows all that its process lives, and how far its program has come.

A rank that shows nothing is stopped, or its host is gone; one that stays where it is while others have come further
hangs. What a rank shows lies in a store of the first rank's. Where that one is stopped, so is the store.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from lg.parallel.watch import EVERY_S

log = logging.getLogger(__name__)

# Of the time that a collective may take, how long a rank may be silent: what ends the others then, would name nobody.
_PART = 0.9
# How many looks that time has; fewer where they would be more often than `EVERY_S`.
_LOOKS = 200
# What a rank shows before it has begun, and once it has ended well.
_NOT_YET, _OVER = 0, -1
# How long one waits for the store where the first rank's process answers or never does.
_MEET_S, _ANSWER_S = 60.0, 2.0


class Beat(NamedTuple):
    """What a rank shows.

    Attributes:
        beat: grows as long as the process runs.
        host: where it runs.
        step: how far its program has come: grows by the same steps on all ranks.
        line: which line of the program is being run.
    """

    beat: int
    host: str
    step: int = 0
    line: str = ""


class Missing(NamedTuple):
    """Ranks that the others wait for.

    Attributes:
        ranks: these, in order.
        clause: which, where, and since when.
    """

    ranks: list[int]
    clause: str


class Clock:
    """Seconds between two calls; few where a process has been stopped, which must not think so of all others.

    Args:
        every_s: how far calls are apart.
    """

    def __init__(self, every_s: float) -> None:
        self._most = 3 * every_s
        self._last = time.monotonic()

    def passed(self) -> float:
        """Since the last call."""
        last, self._last = self._last, time.monotonic()
        return min(self._last - last, self._most)


class Pulse(threading.Thread):
    """Shows this rank to the others of a run until `stop`, and looks at them.

    Args:
        store: for this thread alone; has what every rank shows before it has begun.
        asked: another client of it.
        rank: this one.
        num_ranks: how many there are.
        timeout_s: how long a collective may take.
        step: how far this rank has come.

    Attributes:
        apart_s: seconds by which one rank may notice later than another what both can see.
    """

    def __init__(
        self, store: Store, asked: Store, rank: int, num_ranks: int, timeout_s: float, step: Callable[[], int]
    ) -> None:
        super().__init__(daemon=True, name="pulse")
        self._store = store
        self._asked = asked
        self._rank = rank
        self._step = step
        self._patience_s = _PART * timeout_s
        self._every_s = max(EVERY_S, self._patience_s / _LOOKS)
        self.apart_s = 2 * self._every_s + EVERY_S
        self._keys = [_key(number) for number in range(num_ranks)]
        self._beats = [Beat(_NOT_YET, "")] * num_ranks
        # Seconds for which a rank has shown nothing new, and has stayed where it is behind others; and in which the
        # store has not answered.
        self._silent, self._behind = [0.0] * num_ranks, [0.0] * num_ranks
        self._unanswered = 0.0
        self._looked, self._was_asked = Clock(self._every_s), Clock(EVERY_S)
        self._over = threading.Event()
        self._has_lost_store = False

    def run(self) -> None:
        """Until it is over, or the store has gone with the first rank's process, which is noticed otherwise."""
        count, host = _NOT_YET, socket.gethostname()
        try:
            while not self._over.is_set():
                count += 1
                self._show(Beat(count, host, self._step(), _line()))
                self._look()
                self._unanswered = 0.0
                self._over.wait(self._every_s)
            self._show(Beat(_OVER, host))
            # The store stays until all have said so.
            end = time.monotonic() + _ANSWER_S
            while self._rank == 0 and time.monotonic() < end and any(beat.beat > _NOT_YET for beat in self._beats):
                time.sleep(0.01)
                self._look()
        except (RuntimeError, OSError):
            self._has_lost_store = True

    def stop(self) -> None:
        """The run has ended as it should."""
        self._over.set()
        self.join(2 * _ANSWER_S)

    def missing(self) -> Missing | None:
        """Ranks that have been silent, or behind, for nearly as long as a collective may take; None if none.

        To be asked every `EVERY_S`.
        """
        if self._has_lost_store or self._over.is_set():
            return None
        self._unanswered += self._was_asked.passed()
        late = self._patience_s
        if self._unanswered > late:
            return self._told([0], self._not_heard_of) if self._rank else None
        for seconds, why in ((self._silent, self._not_heard_of), (self._behind, self._hangs)):
            if ranks := [rank for rank, waited in enumerate(seconds) if waited > late]:
                return self._told(ranks, why)
        return None

    def speaker(self, missing: Missing) -> int:
        """The rank that tells of them where this one is.

        Where the first rank is missing, and with it the store, nobody knows who else of its host is: each host tells.
        """
        others = [rank for rank in range(len(self._beats)) if rank not in missing.ranks]
        if 0 in missing.ranks:
            host = self._beats[self._rank].host
            return next((rank for rank in others if self._beats[rank].host == host), others[0])
        return others[0]

    def is_first_to_tell(self) -> bool:
        """Whether no other rank has asked this before; also if nobody answers that any more."""
        answers: list[bool] = []
        asking = threading.Thread(target=lambda: answers.append(self._asks()), daemon=True)
        asking.start()
        asking.join(_ANSWER_S)
        return answers[0] if answers else True

    def _asks(self) -> bool:
        try:
            return int(self._asked.add("told", 1)) == 1
        except (RuntimeError, OSError):
            return True

    def _show(self, beat: Beat) -> None:
        self._store.set(self._keys[self._rank], _packed(beat))

    def _look(self) -> None:
        passed = self._looked.passed()
        beats = [_unpacked(packed) for packed in self._store.multi_get(self._keys)]
        steps = [beat.step for beat in beats if beat.beat > _NOT_YET]
        for rank, (beat, before) in enumerate(zip(beats, self._beats, strict=True)):
            lives = beat.beat <= _NOT_YET or beat.beat != before.beat
            # Of those behind, one that is not the last may itself wait for that one.
            stays = beat.beat > _NOT_YET and beat.step == before.step == min(steps) < max(steps)
            self._silent[rank] = 0.0 if lives else self._silent[rank] + passed
            self._behind[rank] = self._behind[rank] + passed if stays else 0.0
        self._beats = beats

    def _told(self, ranks: list[int], why: Callable[[int], str]) -> Missing:
        told = " and ".join(
            f"rank {rank}" + (f" on {self._beats[rank].host}" if self._beats[rank].host else "") + f" {why(rank)}"
            for rank in ranks
        )
        return Missing(ranks, f"{told} ({_PART} of trainer.strategy.init_args.timeout_s)")

    def _not_heard_of(self, rank: int) -> str:
        return f"is not heard of for {self._patience_s:.0f} seconds, so it is stopped, or its host is gone"

    def _hangs(self, rank: int) -> str:
        line = self._beats[rank].line
        where = f" at {line}" if line else ""
        return f"hangs{where}: the others have gone on, and waited for it for {self._patience_s:.0f} seconds"


def start_pulse(
    rank: int,
    num_ranks: int,
    address: str,
    timeout_s: float,
    agree: Callable[[int], int],
    step: Callable[[], int] = lambda: 0,
) -> Pulse | None:
    """Makes the store, and shows this rank; to be called by all ranks.

    Args:
        rank: this one.
        num_ranks: how many there are.
        address: of the first rank's host.
        timeout_s: how long a collective may take.
        agree: gives all ranks what the first one has.
        step: how far a rank has come: grows by the same steps on all of them. Called on another thread.

    Returns:
        None, with a warning, where the store cannot be reached; the others know nothing of this rank then.
    """
    limit = timedelta(seconds=min(timeout_s, _MEET_S))
    try:
        own = TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=limit) if rank == 0 else None
        for number in range(num_ranks if own is not None else 0):
            assert own is not None
            own.set(_key(number), _packed(Beat(_NOT_YET, "")))
    except (RuntimeError, OSError):
        own = None
    port = agree(0 if own is None else own.port)
    try:
        if not port:
            raise OSError("the first rank has none")
        store = own or TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=limit)
        asked = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=limit)
    except (RuntimeError, OSError) as error:
        log.warning(
            "trainer.strategy: rank %d reaches no store at %s (%s), so a rank that hangs will not be named",
            rank,
            address,
            " ".join(str(error).split())[:100],
        )
        return None
    for client in (store, asked):
        client.set_timeout(timedelta(seconds=timeout_s))
    pulse = Pulse(store, asked, rank, num_ranks, timeout_s, step)
    pulse.start()
    return pulse


def _key(rank: int) -> str:
    return f"beat/{rank}"


def _packed(beat: Beat) -> str:
    return "\n".join(map(str, beat))


def _unpacked(packed: bytes) -> Beat:
    beat, host, step, line = packed.decode().split("\n")
    return Beat(int(beat), host, int(step), line)


def _line() -> str:
    """Where the program is."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    if frame is None:
        return ""
    last = traceback.extract_stack(frame, limit=1)[0]
    return f"line {last.lineno} of {last.filename}, in {last.name}"
