"""Runs a function on several processes that talk to each other, as a test of something parallel needs.

def count(rank, start):
    total = torch.tensor(start + rank)
    dist.all_reduce(total)
    return int(total)

def test_count():
    assert run_ranks(count, 2, 10) == [21, 21]
"""

from __future__ import annotations

import importlib.util
import inspect
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")

# How long the others may go on once one has failed: most wait for it.
_GRACE_S = 2.0


class RankFailed(AssertionError):
    """A rank raised, died, or did not end in time; the message tells which, and its traceback."""


def run_ranks(function: Callable[..., Result], num_ranks: int, *args: Any, timeout_s: float = 120.0) -> list[Result]:
    """What ``function(rank, *args)`` returns on each of ``num_ranks`` processes, by rank.

    Each has one thread and is in one group of gloo; ``RANK``, ``LOCAL_RANK`` and ``WORLD_SIZE`` are set, so a Trainer
    finds its place too. Starting takes seconds: put many cases into one call.

    Args:
        function: one that its module can be asked for by name, so no lambda and none inside another.
        num_ranks: how many processes.
        args: plain data, tensors on the CPU, or objects of classes that modules can be asked for; so are the results.
        timeout_s: seconds until all must have ended.

    Raises:
        RankFailed: if a rank raises, dies or hangs; the others are ended.
    """
    context = multiprocessing.get_context("forkserver")
    # What takes seconds to import is imported once, not in each process. Too late, and harmless, once it runs.
    context.set_forkserver_preload(["torch.distributed", "lightning.pytorch", "lg.attention"])
    with tempfile.TemporaryDirectory(prefix="ranks_") as folder:
        task = (function.__module__, inspect.getsourcefile(function) or "", function.__qualname__)
        processes: list[BaseProcess] = [
            context.Process(
                target=_run,
                args=(rank, num_ranks, folder, task, pickle.dumps(args), timeout_s, dict(os.environ)),
            )
            for rank in range(num_ranks)
        ]
        try:
            for process in processes:
                process.start()
            late = _wait(processes, timeout_s)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
            for process in processes:
                if process.pid is not None:
                    process.join()
        return [_result(Path(folder), rank, process, late) for rank, process in _failed_first(processes, Path(folder))]


def _wait(processes: list[BaseProcess], timeout_s: float) -> bool:
    """Until all have ended, or one has failed and the others have had their time; whether time ran out."""
    end = time.monotonic() + timeout_s
    running = list(processes)
    failed = False
    while running and time.monotonic() < end:
        wait([process.sentinel for process in running], timeout=end - time.monotonic())
        running = [process for process in running if process.exitcode is None]
        if not failed and any(process.exitcode for process in processes):
            failed = True
            end = min(end, time.monotonic() + _GRACE_S)
    return bool(running) and not failed


def _failed_first(processes: list[BaseProcess], folder: Path) -> list[tuple[int, BaseProcess]]:
    """All ranks in their order, unless one failed: then it alone, the one that did so first."""
    failed = [rank for rank, process in enumerate(processes) if process.exitcode]
    told = sorted((path.stat().st_mtime_ns, int(path.stem)) for path in folder.glob("*.failed"))
    first = [told[0][1]] if told else [rank for rank in failed if processes[rank].exitcode != -9] or failed
    return [(rank, processes[rank]) for rank in (first[:1] or range(len(processes)))]


def _result(folder: Path, rank: int, process: BaseProcess, late: bool) -> Any:
    told = folder / f"{rank}.failed"
    if told.exists():
        raise RankFailed(f"rank {rank}:\n{told.read_text(encoding='utf-8')}")
    if process.exitcode:
        raise RankFailed(f"rank {rank} {'did not end in time' if late else f'died with code {process.exitcode}'}")
    return torch.load(folder / f"{rank}.result", weights_only=False)


def _run(
    rank: int,
    num_ranks: int,
    folder: str,
    task: tuple[str, str, str],
    args: bytes,
    timeout_s: float,
    environment: Mapping[str, str],
) -> None:
    """One process: joins the others, calls the function, leaves what it returned or raised in the folder."""
    # The server that started this process has the environment of its own first day.
    os.environ.update(environment)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_ranks), NODE_RANK="0")
    try:
        torch.set_num_threads(1)
        function = _found(*task)
        # A file, not a port: nobody else can take it meanwhile.
        store = f"file://{Path(folder, 'store').as_posix()}"
        dist.init_process_group(
            "gloo", init_method=store, rank=rank, world_size=num_ranks, timeout=timedelta(seconds=timeout_s)
        )
        result = function(rank, *pickle.loads(args))
        torch.save(result, Path(folder, f"{rank}.result"))
        dist.destroy_process_group()
    except BaseException:
        Path(folder, f"{rank}.failed").write_text(traceback.format_exc(), encoding="utf-8")
        os._exit(1)


def _found(module: str, source: str, name: str) -> Callable[..., object]:
    """The function, from its module; from its file where pytest gave the module a name that nobody can import."""
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError:
        spec = importlib.util.spec_from_file_location(module, source)
        assert spec is not None and spec.loader is not None
        found = sys.modules[module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
    for part in name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]
