"""Tells the user of what goes wrong as a run is built and as it goes: which key, what is wrong, what is allowed.

Constructors, torch, Lightning and the operating system raise as they see fit. What none of this is about is a fault of
lg's or of the user's own code, and stays a traceback.
"""

from __future__ import annotations

import os
import re
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors import checkpoint_connector

from lg.cli import raised_in_lg
from lg.cli.configuration import Config
from lg.cli.given import class_path, fill_names, locate
from lg.monitor import Checkpoints
from lg.monitor.finite import NotFinite
from lg.parallel import HybridStrategy
from lg.parallel.watch import GRACE_S, is_late, is_lost

# How torch, numpy and Python say that memory, or a number of 64 bits, cannot hold something.
_NO_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|out of memory|Unable to allocate|Storage size calculation overflowed"
    r"|array is too big|Maximum allowed dimension exceeded|Overflow when unpacking long|int too (big|large) to convert"
)
# What names a key already.
_KEY = re.compile(
    r"\b(model|data|trainer)\.\w|^ckpt_path|^stages|^LG_CACHE"
    # Options of `lg predict`.
    r"|^(out|prompt_tokens|num_documents|prefix|stop): "
)


class Refused(ValueError):
    """What the user gave cannot be run; the message names key, value, and what is allowed."""


@contextmanager
def refusals_told(given: Config) -> Iterator[None]:
    """Around what builds objects: what a constructor refuses is the user's to change.

    Args:
        given: what the user wrote, as one tree.

    Raises:
        Refused: in place of the constructor's error.
    """
    try:
        yield
    except Exception as error:  # a constructor may stumble over a value instead of refusing it
        # The parser wraps what a constructor raises in its report on the union it stands in.
        told: BaseException = error
        while told.__cause__ and str(told).lstrip().startswith(("Does not validate", "Parser key", "Problem with")):
            told = told.__cause__
        raise Refused(fill_names(_with_key(told, given), given)) from error


@contextmanager
def troubles_told(given: Config, trainer: Trainer | None = None) -> Iterator[None]:
    """Around a run: a disk or memory that is full, a checkpoint that does not fit, and what is refused only now.

    Of several ranks the first that has failed tells so. What all notice, as a rank that is gone, one of them tells.

    Args:
        given: what the user wrote, as one tree.
        trainer: whose run it is, which then ends on all ranks, whatever they wait for.

    Raises:
        Refused: in place of such an error.
        SystemExit: with code 2, where another rank tells it.
    """
    hook, threading.excepthook = threading.excepthook, _report_thread
    strategy = trainer.strategy if trainer is not None else None
    parallel = strategy if isinstance(strategy, HybridStrategy) and strategy.world_size > 1 else None
    try:
        yield
    except Exception as error:
        told = _told(error, given, trainer, parallel)
        if parallel is not None:
            if isinstance(told, Refused) and not parallel.is_speaker and _is_everywhere(error):
                told = SystemExit(2)
            elif isinstance(told, Refused) and not parallel.is_first_to_tell():
                told = SystemExit(2)
                # Until the one that was first has spoken, before it is ended.
                time.sleep(GRACE_S / 2)
            parallel.told()
        if told is error:
            raise
        raise told from error
    finally:
        threading.excepthook = hook


def _told(
    error: Exception, given: Config, trainer: Trainer | None, parallel: HybridStrategy | None
) -> Exception | SystemExit:
    """What is raised in place of an error; itself, if it is none of the user's."""
    said = " ".join(str(error).split()) or type(error).__name__
    no_memory = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or bool(_NO_MEMORY.search(said))
    if parallel is not None and is_lost(error) and not no_memory:
        return Refused(f"trainer.strategy: {_loss_of_rank(error, said, parallel)}{_advice(trainer)}")
    if isinstance(error, NotFinite):
        return Refused(f"{said}{_advice(trainer)}")
    if _is_restoring(error) and not _KEY.search(said):
        return Refused(f"ckpt_path: the checkpoint does not fit this run: {said}")
    if isinstance(error, ValueError) and raised_in_lg(error.__traceback__):
        return Refused(_with_key(error, given))
    if no_memory:
        return Refused(
            "data.init_args.row_length, data.init_args.batch_size, model.init_args.decoder: memory cannot hold "
            f"what they ask for ({said[:200]}){_where(trainer, parallel)}; smaller numbers are needed, or "
            "model.init_args.memory, of which `lg plan` tells what it saves, or more devices that share a sequence "
            "(context_parallel_size of trainer.strategy: HybridStrategy), or, where weights and optimizer fill it, "
            f"its offload_weights{_advice(trainer)}"
        )
    if isinstance(error, OSError) or "embedded null" in said:  # a path that no file can have
        file = getattr(error, "filename", None)
        what = f"{os.fsdecode(file)!r}: " if isinstance(file, (str, bytes)) else ""
        why = getattr(error, "strerror", None) or said
        return Refused(
            f"trainer: a file of the run cannot be read or written: {what}{why}; "
            "a folder on a disk with room is needed (trainer.logger.init_args.save_dir, trainer.default_root_dir)"
        )
    if isinstance(error, MisconfigurationException):
        return Refused(_with_key(error, given))
    return error


def _loss_of_rank(error: Exception, said: str, parallel: HybridStrategy) -> str:
    """Which rank is gone, where this one has started it; else what this one has waited for."""
    speaker = f"rank {parallel.global_rank}"
    # Without the place in gloo's source, and its advice.
    said = re.sub(r"^\[\S+\] | This is typically .*", "", said)[:150]
    if is_late(error):
        return (
            f"{speaker} has waited in vain for another rank, which may hang, for longer than "
            f"trainer.strategy.init_args.timeout_s ({said})"
        )
    # That a process has ended is known a little later than that its connection has.
    patience = time.monotonic() + GRACE_S / 2
    while parallel.is_watching and time.monotonic() < patience:
        if lost := parallel.lost():
            return "; ".join(lost)
        time.sleep(0.05)
    return f"{speaker} has lost another rank, which is gone ({said})"


def _is_everywhere(error: Exception) -> bool:
    """Whether all ranks notice it."""
    return isinstance(error, NotFinite) or (is_lost(error) and not is_late(error))


def _where(trainer: Trainer | None, parallel: HybridStrategy | None) -> str:
    """After how many steps a run has failed, and on which rank of several."""
    if trainer is None or not trainer.global_step:
        return "" if parallel is None else f" on rank {parallel.global_rank}"
    rank = "" if parallel is None else f" on rank {parallel.global_rank}"
    return f"{rank} after step {trainer.global_step}"


def _advice(trainer: Trainer | None) -> str:
    """From where a run that has failed as it trained can go on."""
    saver = trainer.checkpoint_callback if trainer is not None and trainer.global_step else None
    return f"; {saver.advice(trainer)}" if trainer is not None and isinstance(saver, Checkpoints) else ""


def _with_key(error: BaseException, given: Config) -> str:
    """What an error says, after the key of the class whose constructor raised it, unless it names a key itself."""
    said = " ".join(str(error).split()) or type(error).__name__
    if _KEY.search(said):
        return said
    if not isinstance(error, (ValueError, ImportError, OSError, MisconfigurationException)):
        said = f"{type(error).__name__}: {said}"
    built = [
        type(frame.f_locals["self"]).__name__
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name == "__init__" and "self" in frame.f_locals
    ]
    # As in "Window.__init__() got ...", "Summary() takes ..." or "Window(window=0): ...".
    named = re.findall(r"(\w+)(?:\.__init__)?\(\)|^(\w+)\(", said)
    for name in [*("".join(names) for names in named), *reversed(built)]:
        place, found = locate(given, (), partial(_is_of, name))
        if found is not None:
            return f"{'.'.join(place)}: {said}"
    return f"trainer: {said}"


def _is_of(name: str, value: object) -> bool:
    return class_path(value).rpartition(".")[2] == name


def _is_restoring(error: Exception) -> bool:
    """Whether Lightning was reading a checkpoint, or handing its parts out."""
    names = {
        frame.f_code.co_name
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == checkpoint_connector.__file__
    }
    return any(
        name.lstrip("_").startswith(("restore", "resume", "parse_ckpt_path", "select_ckpt_path")) for name in names
    )


def _report_thread(args: threading.ExceptHookArgs) -> None:
    # TensorBoard's thread hands what stopped it to whoever logs next: it would be told twice.
    if not type(args.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(args)
