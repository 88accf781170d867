"""Ends a process of a run when another one has ended: it would wait for it, by NCCL for as long as half an hour."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator

import torch.distributed as dist

# How long a process may take to tell by itself what it has lost, and to end a save; after a signal, to end in order.
GRACE_S = 5.0
ORDERLY_S = 60.0
# How often one looks.
EVERY_S = 0.5
# How gloo, which has no type of error of its own, and the store tell it, and by which words they say that time ran out.
_LOST = re.compile(
    r"gloo/|pair closure|Connection (closed|reset) by peer|recvValue failed|sendBytes failed|Broken pipe"
)
_LATE = re.compile(r"[Tt]imed out|[Tt]imeout")


def is_lost(error: BaseException) -> bool:
    """Whether another rank has not answered, rather than that this one has failed."""
    return any(
        isinstance(told, dist.DistError)
        or (isinstance(told, (RuntimeError, OSError)) and bool(_LOST.search(str(told))))
        for told in _chain(error)
    )


def is_late(error: BaseException) -> bool:
    """Of an error that `is_lost`: whether the other rank is silent, and not gone."""
    return any(_LATE.search(str(told)) for told in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised for."""
    while error is not None:
        yield error
        error = error.__cause__


class Watch(threading.Thread):
    """Looks now and then whether something ends the run; where this process does not end by itself then, ends it.

    Args:
        gone: what has happened, as a clause, and how many seconds it leaves to this process; None as long as nothing.
        end: is told the clause, and does not return.
    """

    def __init__(self, gone: Callable[[], tuple[str, float] | None], end: Callable[[str], None]) -> None:
        super().__init__(daemon=True, name="watch")
        self._gone = gone
        self._end = end
        self._over = threading.Event()

    def run(self) -> None:
        """Until it is over, or the process is."""
        while not self._over.wait(EVERY_S):
            told = self._gone()
            if told is not None:
                clause, seconds = told
                if not self._over.wait(seconds):
                    self._end(clause)
                return

    def stop(self) -> None:
        """The run has ended as it should."""
        self._over.set()


def end_process(said: str) -> None:
    """Says why, and ends this process, whatever its other threads wait for."""
    if said:
        print(said, file=sys.stderr, flush=True)
    os._exit(2)
