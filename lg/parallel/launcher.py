"""Starts a process for each device of this host, and knows how they have ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from lg.parallel.watch import GRACE_S, ORDERLY_S

# Tells a process the one that has started it; torchrun and SLURM do not.
_STARTED_BY = "_LG_STARTED_BY"
# As shells say of a process that a signal asked to stop, and that stopped.
_ASKED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


class Launcher(_SubprocessScriptLauncher):
    """Starts a process a device. Lightning's own would end them all without a word once one has ended."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: pl.Trainer | None = None, **kwargs: Any) -> Any:
        """Starts the processes, and calls the function."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            os.environ[_STARTED_BY] = str(os.getpid())
            self._call_children_scripts()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def ended(self) -> list[tuple[int, int]]:
        """Rank on this host, and code, of those started here that did not end well; signals first, which say most."""
        codes = [(rank, process.poll()) for rank, process in enumerate(self.procs, 1)]
        return sorted(((rank, code) for rank, code in codes if code), key=lambda ended: (ended[1] > 0, ended[0]))

    def end_all(self) -> None:
        """Ends those that were started here, also such as are stopped."""
        for process in self.procs:
            if process.poll() is None:
                process.kill()


def is_started_by_launcher() -> bool:
    """Whether a `Launcher` has started this process, and is there still."""
    return os.environ.get(_STARTED_BY) == str(os.getppid())


def was_started_by_launcher() -> bool:
    """Whether a `Launcher` has started this process, be it there or not."""
    return os.environ.get(_STARTED_BY) not in (None, str(os.getpid()))


def how_ended(rank: int, code: int) -> str:
    """A clause on a process's code: "rank 1 was ended by SIGKILL"."""
    try:
        return f"rank {rank} was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"rank {rank} ended with code {code}"


def seconds_left(codes: Sequence[int]) -> float:
    """How long a process may go on after others of these codes have ended: a signal stops all of them, in order."""
    return ORDERLY_S if codes and all(code in _ASKED for code in codes) else GRACE_S
