"""Batches for one rank, and how far training has got in them: the state from which it goes on to the bit.

What counts is what training has consumed, not what was read ahead: a loader hands out a batch together with the place
behind it, and `Loader.consume` moves on when the batch is trained on.
"""

import signal
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence, Sized
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader

from lg.data.packed import PackedRows, Recipe, RowReader
from lg.data.rows import Batch, collate

State = dict[str, Any]
"""Plain data: a place in the order of training."""


class Feed(ABC):
    """An endless order of batches, every place of which can be returned to."""

    @abstractmethod
    def beginning(self) -> State:
        """The place before the first batch."""

    @abstractmethod
    def batches(self, state: State) -> Iterator[tuple[Batch, State]]:
        """The batches from a place to the end of its epoch, each with the place behind it."""

    @abstractmethod
    def num_batches(self) -> int | None:
        """How many batches the first epoch has; None where there is no end."""

    @abstractmethod
    def accepted(self, state: State) -> State:
        """The place that a saved state means here; the beginning, with a warning, if it is of other data.

        Raises:
            ValueError: one cannot go on from there.
        """


class Loader:
    """One rank's training batches: what Lightning iterates over, once an epoch.

    Args:
        feed: where the batches come from.

    Attributes:
        waited_s: seconds that training has waited for batches, in all.
    """

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.waited_s = 0.0
        self._state = feed.beginning()
        self._ahead: deque[State] = deque()
        # Batches of the running epoch that were trained on before the run was resumed: Lightning counts them too.
        self._before = 0
        self._length = feed.num_batches()

    def __iter__(self) -> Iterator[Batch]:
        """The batches from where training is to the end of the epoch."""
        # A generator, so that nothing is read before the first batch is asked for: a state may be loaded until then.
        return self._from_here()

    def _from_here(self) -> Iterator[Batch]:
        self._ahead.clear()
        number, self._before = self._before, 0
        state = self._state
        while self._length is None or number < self._length:
            since = time.perf_counter()
            for batch, state in self.feed.batches(state):  # noqa: B020  # from there on, if that was not enough
                self.waited_s += time.perf_counter() - since
                number += 1
                self._ahead.append({**state, "batches": number})
                yield batch
                if number == self._length:
                    return
                since = time.perf_counter()

    def __len__(self) -> int:
        """Batches that Lightning counts as an epoch, always as many as the first has; TypeError where there is no end.

        Where shares are mixed, epochs of the data differ by a few: Lightning's then begin inside them.
        """
        if self._length is None:
            raise TypeError("a stream has no length")
        return self._length

    def consume(self) -> None:
        """Tells that the oldest batch handed out is being trained on."""
        self._state = self._ahead.popleft()

    def place(self) -> State:
        """The place behind the last batch consumed."""
        return dict(self._state)

    def go_to(self, state: State) -> None:
        """Goes on from a place, if it is not there already.

        Raises:
            ValueError: it is none, or one cannot go on from there.
        """
        assert not self._ahead, "a place can be gone to only before the first batch is asked for"
        try:
            accepted = self.feed.accepted(state)
            for key, value in self.feed.beginning().items():
                if isinstance(value, int) and not (isinstance(accepted[key], int) and accepted[key] >= 0):
                    raise TypeError(f"{key} is {accepted[key]!r}")
            self._state = accepted
            # At the end of an epoch the next one has not begun.
            self._before = int(state.get("batches", 0)) % (self._length or sys.maxsize)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"ckpt_path: the checkpoint does not say where the data were ({type(error).__name__}: {error}); one "
                "that lg has written is needed"
            ) from error

    def state_dict(self) -> State:
        """Nothing: tells Lightning that the loader can go on. Where it is `TextData` saves, of every rank."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Nothing: see `go_to`."""


class RowBatches(Sized):
    """A fixed list of batches of rows, read by worker processes or here; can be iterated over any number of times.

    Args:
        reader: makes the rows.
        recipes: those of each batch.
        num_workers: processes that make them; at 0 it is done here.
    """

    def __init__(self, reader: RowReader, recipes: "Sequence[list[Recipe]]", num_workers: int) -> None:
        self._batches = DataLoader(
            reader,
            batch_sampler=recipes,
            collate_fn=collate,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            # Its own, so that making an iterator draws nothing from the run's random numbers.
            generator=torch.Generator(),
            worker_init_fn=outlive_signals,
        )
        self._num = len(recipes)

    def __iter__(self) -> Iterator[Batch]:
        """All batches, in order."""
        return iter(self._batches)

    def __len__(self) -> int:
        """The number of batches."""
        return self._num


def outlive_signals(worker: int) -> None:
    """Lets a worker process live on when its whole group is asked to stop, so that the running step can still end.

    Ctrl-C in a terminal, and many schedulers, signal every process at once; a worker that died of it would take the
    step, and so the last checkpoint, with it. It goes when the loader does, or ten minutes later.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _go_later)


def _go_later(number: int, frame: FrameType | None) -> None:
    if hasattr(signal, "alarm"):
        signal.alarm(600)


class Recipes(Sequence[list[Recipe]]):
    """The recipes of batches of rows, looked up when they are needed: an epoch may have millions.

    Args:
        rows: where the recipes are.
        numbers: the rows of each batch.
    """

    def __init__(self, rows: PackedRows, numbers: "Sequence[Sequence[int]] | npt.NDArray[np.int64]") -> None:
        self._rows = rows
        self._numbers = numbers

    def __getitem__(self, index: Any) -> Any:
        """The recipes of one batch; of a row of padding, if it has no rows."""
        return [self._rows.recipe(int(row)) for row in self._numbers[index]] or [np.zeros((0, 5), np.int64)]

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._numbers)
