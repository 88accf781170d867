"""Several devices for one probe: a process for each, with the whole model, and units shared out between them."""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from threading import Lock, Thread
from types import TracebackType
from typing import Any

import torch

from lg.attention import Pattern
from lg.evaluation.probe.notebook import Notebook
from lg.models.decoder import Decoder

Build = Callable[[str], Decoder]
"""Gives the decoder, in eval mode, on the device of this name; a module can be asked for it by name."""


class Unit(ABC):
    """Something to measure that hangs on no other unit; it can be pickled."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What tells it from all other units of the same settings."""

    @abstractmethod
    def measure(self, decoder: Decoder, local: Pattern) -> Any:
        """Plain data; the decoder is afterwards what it was."""


class Crew:
    """This process and others, which measure units, each on its own device; used in a ``with``, which ends them.

    Results do not depend on how many there are, as long as the devices are alike.

    Args:
        devices: of the other processes, by name. CUDA devices differ from one another and from this process's.
        build: gives them the decoder.
        local: what a restricted layer sees.
    """

    def __init__(self, devices: Sequence[str] = (), build: Build | None = None, local: Pattern | None = None) -> None:
        self._workers: list[_Worker] = []
        try:
            for device in devices:
                self._workers.append(_Worker(device, pickle.dumps((device, build, local, torch.get_num_threads()))))
        except BaseException:
            self._end()
            raise

    def measure(self, units: Sequence[Unit], decoder: Decoder, local: Pattern, notebook: Notebook) -> None:
        """Writes all units down, each as soon as it is measured; this process measures with ``decoder``.

        Raises:
            ValueError: a process died, or memory ran out; names the device. What others had begun is written down.
            RuntimeError: a process failed otherwise; has its traceback.
        """
        waiting, lock, failed = deque(units), Lock(), list[BaseException]()

        def work(ask: Callable[[Unit], Any]) -> None:
            while True:
                with lock:
                    if not waiting:
                        return
                    unit = waiting.popleft()
                    notebook.tell(unit.name)
                value = ask(unit)
                with lock:
                    notebook.put(unit.name, value)

        def beside(worker: _Worker) -> None:
            try:
                work(worker.ask)
            except BaseException as error:
                failed.append(error)
                with lock:
                    waiting.clear()

        def own(unit: Unit) -> Any:
            try:
                return unit.measure(decoder, local)
            except torch.OutOfMemoryError as error:
                raise ValueError(_no_memory(str(decoder.embedding.weight.device), unit.name)) from error

        threads = [Thread(target=beside, args=(worker,), daemon=True) for worker in self._workers]
        try:
            for thread in threads:
                thread.start()
            try:
                work(own)
            except ValueError as error:
                failed.append(error)
                with lock:
                    waiting.clear()
            for thread in threads:
                thread.join()
        except BaseException:
            # Threads that wait for an answer meet its end.
            self._end()
            raise
        if failed:
            raise failed[0]

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        for worker in self._workers:
            worker.kill()


class _Worker:
    """A process that measures one unit at a time."""

    def __init__(self, device: str, told: bytes) -> None:
        # A process that has started threads, as torch has, must not be forked.
        context = multiprocessing.get_context("spawn")
        self.device = device
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, told), daemon=True)
        self._process.start()
        # Once the process has ended, nobody holds that end.
        theirs.close()

    def ask(self, unit: Unit) -> Any:
        """Has the unit measured.

        Raises:
            ValueError, RuntimeError: as `Crew.measure`.
        """
        try:
            # By plain pickle: what multiprocessing makes of tensors needs shared memory.
            self._pipe.send_bytes(pickle.dumps(unit))
            answer = pickle.loads(self._pipe.recv_bytes())
        except (OSError, EOFError) as error:
            self._process.join()
            code = self._process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise ValueError(
                f"--devices: the process on {self.device} died ({how}) as it measured {unit.name!r}; the same command "
                "goes on from what was measured"
            ) from error
        if isinstance(answer, _Failure):
            raise answer.raised(self.device, unit.name)
        return answer

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


@dataclass(frozen=True)
class _Failure:
    """Why a process gives no answer.

    Attributes:
        kind: the error's class, of the three that are told apart.
        said: its message, or its traceback.
    """

    kind: type[Exception]
    said: str

    def raised(self, device: str, unit: str) -> Exception:
        if self.kind is torch.OutOfMemoryError:
            return ValueError(_no_memory(device, unit))
        if self.kind is ValueError:
            return ValueError(self.said)
        return RuntimeError(f"{unit!r} failed on {device}, in another process:\n{self.said}")


def _no_memory(device: str, unit: str) -> str:
    return (
        f"--length: too much for the memory of {device}, which ran out as {unit!r} was measured; what was measured "
        "before is kept"
    )


def _serve(pipe: Connection, told: bytes) -> None:
    """The process: builds its decoder, and answers until nobody asks any more."""
    # Ctrl-C is for the process that asks, which ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    failure = None
    try:
        device, build, local, num_threads = pickle.loads(told)
        torch.set_num_threads(num_threads)
        if torch.device(device).type == "cuda":
            # Kernels are launched on the current device.
            torch.cuda.set_device(device)
        decoder = build(device)
    except Exception as error:
        failure = _failure(error)
    while True:
        try:
            asked = pipe.recv_bytes()
        except EOFError:
            return
        answer: Any = failure
        if failure is None:
            try:
                answer = pickle.loads(asked).measure(decoder, local)
            except Exception as error:
                answer = _failure(error)
        pipe.send_bytes(pickle.dumps(answer))


def _failure(error: Exception) -> _Failure:
    if isinstance(error, torch.OutOfMemoryError):
        return _Failure(torch.OutOfMemoryError, "")
    if isinstance(error, ValueError):
        return _Failure(ValueError, str(error))
    return _Failure(RuntimeError, traceback.format_exc())
