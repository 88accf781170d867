"""Tokenises in several processes, for the documents of a large source to come as fast as the machine allows.

Each process is a fresh interpreter behind two pipes, and a thread of this one hands it batches. A fork could stand
still on a lock that another thread held; what ``multiprocessing`` starts afresh runs the user's script again.
"""

import json
import logging
import os
import pickle
import queue
import signal
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from lg.data.corpus import Corpus
from lg.data.source import Document
from lg.data.tokenizer import Tokenizer

_BATCH = 1 << 20  # bytes of text that travel together, if no document alone has more
_PER_DOCUMENT = 200  # bytes that a document costs besides its text: bounds a batch of empty ones
_TRIAL = 1 << 22  # bytes of text tokenised here first: a source of less is done when other processes have started
_FAST = 1.6e8  # bytes a second: above it, a process costs more to feed than it saves

# Starts where this process would find the same modules. What the package `lg.data` imports, lightning among it, takes
# seconds and 400 MB a process: it is not imported before something asks for a name of it; its modules are found.
_PRELUDE = """
import importlib.util, json, sys
sys.path[:] = json.loads(sys.argv[1])
spec = importlib.util.find_spec("lg.data")
package = sys.modules["lg.data"] = importlib.util.module_from_spec(spec)
def imported(name):
    del package.__getattr__
    spec.loader.exec_module(package)
    return getattr(package, name)
package.__getattr__ = imported
"""
_PROGRAM = _PRELUDE + "from lg.data.encoders import serve; serve()"

_log = logging.getLogger(__name__)


def tokenised(
    documents: Iterable[Document], tokenizer: Tokenizer, processes: int | None = None
) -> Generator[Corpus, None, None]:
    """Pieces of the corpus of some documents, in their order; the same documents however many processes there are.

    To end before the last piece, close this generator: its processes end too.

    Args:
        documents: read as they are needed, a few batches ahead.
        tokenizer: sent to the processes by pickle; one that cannot be sent is used in this process, and the log says
            so.
        processes: at 1 all is done in this process; by default there are as many as cores, if the tokenizer is slow
            enough and the text long enough for them to pay.

    Raises:
        ValueError: the tokenizer raises it, or ends its process, as when memory runs out.
    """
    batches = _batches(documents)
    if processes is None:
        spent, seen = 0.0, 0
        while seen < _TRIAL:
            if (batch := next(batches, None)) is None:
                return
            began = time.monotonic()
            piece = Corpus.of(batch, tokenizer)
            spent += time.monotonic() - began
            seen += int(piece.num_bytes.sum())
            yield piece
        processes = 1 if seen > _FAST * spent else _num_cores()
    if processes > 1:
        with _Crew(processes) as crew:
            if (reason := crew.refusal(tokenizer)) is None:
                yield from crew.pieces(batches)
                return
        _log.info("%s cannot be sent to other processes (%s): one tokenises", type(tokenizer).__name__, reason)
    for batch in batches:
        yield Corpus.of(batch, tokenizer)


def serve() -> None:
    """What each process does: read a tokenizer, then batches, and answer each, until there are no more."""
    # What a tokenizer prints must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    requests = sys.stdin.buffer
    tokenizer: Tokenizer | None = None
    while True:
        answer: Any = None
        try:
            request = pickle.load(requests)
            if tokenizer is None:
                tokenizer = pickle.loads(request)
            else:
                answer = Corpus.of(request, tokenizer)
        except EOFError:
            return
        except Exception as error:
            answer = _Failure(str(error), isinstance(error, ValueError), traceback.format_exc())
        try:
            pickle.dump(answer, answers, protocol=5)
            answers.flush()
        except BrokenPipeError:
            os._exit(1)  # whoever asked was killed


@dataclass(frozen=True)
class _Failure:
    """What was raised in another process; an exception itself need not survive the way."""

    message: str
    is_value_error: bool
    trace: str

    def raised(self) -> Exception:
        if self.is_value_error:
            return ValueError(self.message)
        return RuntimeError(f"tokenising failed in another process:\n{self.trace}")


class _Process:
    """An interpreter that answers requests, one at a time."""

    def __init__(self) -> None:
        # Not in the terminal's group: Ctrl-C is for this process, which ends the others.
        self._popen = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, json.dumps([str(path) for path in sys.path])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"TOKENIZERS_PARALLELISM": "false", **os.environ},
            start_new_session=True,
        )

    def ask(self, request: Any) -> Any:
        """Send a request and wait for its answer.

        Raises:
            EOFError: the process has died.
        """
        assert self._popen.stdin and self._popen.stdout
        try:
            pickle.dump(request, self._popen.stdin, protocol=5)
            self._popen.stdin.flush()
            return pickle.load(self._popen.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            code = self._popen.wait()
            raise EOFError(signal.Signals(-code).name if code < 0 else f"exit code {code}") from error

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()

    def close(self) -> None:
        for pipe in (self._popen.stdin, self._popen.stdout):
            with suppress(OSError):
                if pipe:
                    pipe.close()


class _Crew:
    """Some processes that tokenise, each served by a thread; used in a ``with``, which ends them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._processes: list[_Process] = []
        self._free: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(size)

    def refusal(self, tokenizer: Tokenizer) -> str | None:
        """Send the tokenizer to all processes; why that cannot be done, if it cannot."""
        try:
            request = pickle.dumps(tokenizer, protocol=5)
        except Exception as error:  # pickle raises whatever a class raises
            return str(error)
        for answer in self._threads.map(lambda process: process.ask(request), self._processes):
            if isinstance(answer, _Failure):
                return answer.message
        return None

    def pieces(self, batches: Iterable[list[Document]]) -> Iterator[Corpus]:
        """The corpus of each batch, in order; read two batches a process ahead."""
        for process in self._processes:
            self._free.put(process)
        pending: deque[Future[Corpus]] = deque()
        for batch in batches:
            pending.append(self._threads.submit(self._encode, batch))
            if len(pending) >= 2 * self._size:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _encode(self, batch: list[Document]) -> Corpus:
        process = self._free.get()
        try:
            answer = process.ask(batch)
        except EOFError as error:
            names = " to ".join(dict.fromkeys(repr(document.name) for document in (batch[0], batch[-1])))
            raise ValueError(
                f"data.init_args.tokenizer: a process died ({error}) as it tokenised document {names}; memory must "
                "hold, for each process, a whole document and its ids"
            ) from error
        finally:
            self._free.put(process)
        if isinstance(answer, _Failure):
            raise answer.raised()
        assert isinstance(answer, Corpus)
        return answer

    def __enter__(self) -> "_Crew":
        try:
            for _ in range(self._size):
                self._processes.append(_Process())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        for process in self._processes:
            process.kill()  # a thread that waits for an answer meets its end
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.close()


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text) + _PER_DOCUMENT
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
