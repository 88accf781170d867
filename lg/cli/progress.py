"""The line of a terminal that says what is being done."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def progress(command: str, kept: str = "nothing was written") -> Iterator[ProgressLine]:
    """A line for what is done inside, empty at its end. Ctrl-C ends the command there, with exit code 130.

    Args:
        command: as the user typed it.
        kept: what is said of that which was done until then.
    """
    line = ProgressLine()
    try:
        yield line
    except KeyboardInterrupt:
        line.clear()
        print(f"{command}: interrupted; {kept}", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        line.clear()


class ProgressLine:
    """One line of stderr, written over and over; where stderr is a file, each thing once.

    What stands before the first colon tells one thing from another.
    """

    def __init__(self) -> None:
        self._shown = ""
        self._began = time.monotonic()

    def show(self, what: str) -> None:
        """Says what is being done now."""
        if sys.stderr.isatty():
            self.clear()
            self._shown = f"{time.monotonic() - self._began:4.0f} s  {what}"[:79]
            print(self._shown, end="", file=sys.stderr, flush=True)
        elif what.partition(":")[0] != self._shown:
            self._shown = what.partition(":")[0]
            print(self._shown, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Leaves the line empty, for other output."""
        if self._shown and sys.stderr.isatty():
            print(f"\r{' ' * len(self._shown)}\r", end="", file=sys.stderr, flush=True)
            self._shown = ""
