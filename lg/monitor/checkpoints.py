"""Checkpoints from which training goes on to the bit, whatever ended it: SIGTERM, Ctrl-C, or the power."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lg.data import of_every_rank
from lg.monitor.board import logged_step
from lg.parallel import HybridStrategy
from lg.parallel.watch import is_lost

_KEY = "trainer.callbacks.Checkpoints"
_RANDOM, _LOGGED = "random_states", "logged"


class Checkpoints(pl.callbacks.Checkpoint):
    """Saves the newest states of a run, and the best one.

    A state is saved when an optimizer step is whole, its validation included where one is due, and holds all that the
    next step hangs on: weights, optimizer, loops, the data's place (`TextData`) and the random states of every rank.
    It is written aside and renamed, so a file of that name is whole; an older one goes only after that. With
    `HybridStrategy` training goes on meanwhile; the next save, and the end of training, wait for it. The first
    SIGTERM or Ctrl-C lets the step end, saves, and stops with code 143 or 130; a second one stops at once.

    `lg fit --ckpt_path last` goes on from the newest.

    Args:
        every: steps from one save to the next; the last step is always saved.
        keep: how many of the newest to keep.
        best: the metric whose lowest value is kept too, as in "val/loss_nats"; ``null`` for none.
        folder: where to; ``null`` is ``checkpoints`` in the run's log folder.

    Attributes:
        last_model_path: the newest checkpoint; empty before the first.
        best_model_path: the best one, or the newest where no metric is named.
    """

    def __init__(self, every: int = 100, keep: int = 1, best: str | None = None, folder: str | None = None) -> None:
        for name, value in (("every", every), ("keep", keep)):
            if value < 1:
                raise ValueError(f"{_KEY}.{name}: {value} is not allowed; it must be at least 1")
        self.every = every
        self.keep = keep
        self.best = best
        self.folder = folder
        self.last_model_path = ""
        self.best_model_path = ""
        self.best_model_score: float | None = None
        self._newest: list[str] = []
        # While the next one is being written.
        self._before = ""
        self._saved_at = -1
        self._waits_for_validation = False
        self._signal: int | None = None
        self._random: list[dict[str, Any]] | None = None
        self._logged: dict[str, Any] | None = None

    # When

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listens for signals (Lightning puts the former handlers back when it ends), and logs what was not yet."""
        self._signal = None
        if self._logged is not None:
            for logger in trainer.loggers:
                logger.log_metrics(self._logged["metrics"], step=self._logged["step"])
            self._logged = None
        folder = self._own_folder(trainer)
        self._keep_only_own(folder)
        if trainer.is_global_zero:
            for left in folder.glob(".step=*.ckpt.part"):
                rank_zero_info(f"{left} was not finished when a run ended, and is removed")
                _remove([left])
        rank_zero_info(f"begins training at step {trainer.global_step}; a checkpoint every {self.every} steps")
        # Where training was resumed, or begins: there is nothing new to save.
        self._saved_at = trainer.global_step
        self._waits_for_validation = False
        if isinstance(trainer.strategy, HybridStrategy):
            trainer.strategy.explain = partial(self.advice, trainer)
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                signal.signal(number, self._asked_to_stop)
            except ValueError:  # not the main thread, which alone may
                return

    def _asked_to_stop(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise SystemExit(128 + number)
        self._signal = number
        # Whatever rank it has reached. Not by print: a signal may come in the middle of another one.
        told = f"{signal.Signals(number).name}: stops when the step is done and saved; once more stops at once\n"
        with suppress(OSError, ValueError):
            os.write(sys.stderr.fileno(), told.encode())

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stops here if asked to, everything of the step before being done; or goes on with its random states."""
        if self._saved_at == trainer.global_step and self._stops(trainer):
            self._wait(trainer)
            raise SystemExit(128 + (self._signal or signal.SIGTERM))
        if self._random is not None:
            try:
                _set_random_state(self._random[trainer.global_rank % len(self._random)])
            except (AttributeError, KeyError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
                raise ValueError(
                    f"ckpt_path: the checkpoint does not hold the states of random numbers ({type(error).__name__}: "
                    f"{error}); one that {type(self).__name__} has written is needed"
                ) from error
            self._random = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves after a step, when it is time to or training is to stop."""
        if trainer.global_step == self._saved_at or trainer.fit_loop._should_accumulate():
            return
        if trainer.global_step % self.every and trainer.global_step != trainer.max_steps and not self._stops(trainer):
            return
        # What validation adds to metrics and to callbacks belongs to the step; it would not be run again.
        loop = trainer.fit_loop
        assert loop._data_fetcher is not None
        if loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
            self._waits_for_validation = True
        else:
            self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves what waited for validation, and what validation found to be the best."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        score = trainer.callback_metrics.get(self.best) if self.best else None
        if self.best and score is None:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise ValueError(f"{_KEY}.best: {self.best!r} is not a metric; after validation there are {known}")
        better = score is not None and (self.best_model_score is None or float(score) < self.best_model_score)
        if better and trainer.fit_loop._should_accumulate():
            raise ValueError(
                f"trainer.val_check_interval: {trainer.val_check_interval} is not allowed with {_KEY}.best; validation "
                f"must come at the end of a step, so a multiple of {trainer.accumulate_grad_batches} "
                "(trainer.accumulate_grad_batches) is needed"
            )
        if self._waits_for_validation or better:
            self._waits_for_validation = False
            if better:
                self.best_model_score = float(score) if score is not None else None
            self._save(trainer, is_best=better)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the last step."""
        if trainer.global_step != self._saved_at:
            self._save(trainer)
        self._wait(trainer)

    def _stops(self, trainer: pl.Trainer) -> bool:
        """Whether any rank was asked to: all stop at the same step."""
        return trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)

    # What and where

    def _save(self, trainer: pl.Trainer, is_best: bool = False) -> None:
        """Writes aside, renames, and then removes what is no longer kept; on all ranks."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # its connectors set it
            return
        folder = self._own_folder(trainer)
        path = folder / f"step={trainer.global_step:08d}.ckpt"
        aside = _aside(path)
        self._wait(trainer)
        old_best = self.best_model_path
        self._before = self.last_whole
        # Known to the state itself, so that a resumed run removes it in its time.
        self._newest.append(str(path))
        self.last_model_path = str(path)
        if is_best or not self.best:
            self.best_model_path = str(path)
        self._saved_at = trainer.global_step
        gone = [old for old in {*self._newest[: -self.keep], old_best} if old and old != self.best_model_path]
        kept = self._newest[-self.keep :]
        settle = partial(_settle, aside, path, [Path(old) for old in gone if old not in kept])
        with self._told(path):
            folder.mkdir(parents=True, exist_ok=True)
            for logger in trainer.loggers:
                logger.save()  # what was logged before the checkpoint must not be lost after it
            if isinstance(trainer.strategy, HybridStrategy):
                with trainer.strategy.in_background(settle):
                    trainer.save_checkpoint(aside)
            else:
                trainer.save_checkpoint(aside)
                if trainer.is_global_zero:
                    settle()
        self._newest = kept
        trainer.strategy.barrier("Checkpoints")

    def _wait(self, trainer: pl.Trainer) -> None:
        """Until the newest checkpoint has its name, which the strategy may give it while training goes on."""
        if isinstance(trainer.strategy, HybridStrategy):
            with self._told(Path(self.last_model_path)):
                trainer.strategy.wait_for_save()

    @contextmanager
    def _told(self, path: Path) -> Iterator[None]:
        """Around what writes a checkpoint: if it fails nothing half-written is left."""
        try:
            yield
        # torch says RuntimeError where its archive cannot be written.
        except (OSError, RuntimeError) as error:
            if is_lost(error):
                raise
            _remove([_aside(path)])
            raise ValueError(f"{_KEY}.folder: {str(path)!r} cannot be written: {error}") from error

    @property
    def last_whole(self) -> str:
        """The newest checkpoint that has its name, so all of it; empty if there is none."""
        return next((path for path in (*reversed(self._newest), self._before) if os.path.exists(path)), "")

    def advice(self, trainer: pl.Trainer) -> str:
        """What stands behind the cause where a run has failed: from where it can go on. On every rank, alone."""
        path = self.last_whole or str(trainer.ckpt_path or "")
        if not path:
            return "no checkpoint was saved before"
        return f"the last good checkpoint is {path}, and --ckpt_path={path} goes on from it"

    def _own_folder(self, trainer: pl.Trainer) -> Path:
        """Where the run's checkpoints are; asked for on every rank."""
        folder = str(self.folder or Path(trainer.log_dir or trainer.default_root_dir, "checkpoints"))
        return Path(trainer.strategy.broadcast(folder))

    def _keep_only_own(self, folder: Path) -> None:
        """Forgets what is not in the run's own folder: a run that began from another's checkpoint leaves it alone."""
        own = [folder / Path(path).name for path in self._newest]
        self._newest = [str(path) for path in own if path.exists()]
        self.last_model_path = self._newest[-1] if self._newest else ""
        best = folder / Path(self.best_model_path).name
        there = bool(self.best_model_path) and best.exists()
        self.best_model_path = str(best) if there else ""
        self.best_model_score = self.best_model_score if there else None

    def state_dict(self) -> dict[str, Any]:
        """Which files there are."""
        return {
            "newest": [Path(path).name for path in self._newest],
            "best_model_path": Path(self.best_model_path).name,
            "best_model_score": self.best_model_score,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the files of the run that is resumed."""
        self._newest = list(state_dict["newest"])
        self.best_model_path = str(state_dict["best_model_path"])
        self.best_model_score = state_dict["best_model_score"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the random states of every rank, and the metrics of the step that are only logged behind it."""
        checkpoint[_RANDOM] = of_every_rank(trainer, _random_state())
        step = logged_step(trainer)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # its connectors set it
        if trainer.training and (step + 1) % every == 0:
            # Of this step: what trainer.logged_metrics holds of the last validation too was logged then.
            logged = trainer.fit_loop.epoch_loop._results.metrics(on_step=True)["log"]
            metrics = {name: float(value) for name, value in logged.items()}
            checkpoint[_LOGGED] = {"step": step, "metrics": metrics}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keeps them until the first step: what is drawn before it is no part of training."""
        self._random = checkpoint.get(_RANDOM)
        self._logged = checkpoint.get(_LOGGED)
        if trainer.state.fn == "fit" and self._random is not None and len(self._random) != trainer.world_size:
            rank_zero_warn(
                f"the checkpoint holds the random states of {len(self._random)} ranks, and there are "
                f"{trainer.world_size}: what is drawn at random will not be what it would have been"
            )


def _random_state() -> dict[str, Any]:
    """The states of all generators that are there anyway, as plain data."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, internal, next_gauss = random.getstate()
    return {
        "python": [version, list(internal), next_gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    version, internal, next_gauss = state["python"]
    random.setstate((version, tuple(internal), next_gauss))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _aside(path: Path) -> Path:
    """Where a checkpoint is written before it gets its name."""
    return path.with_name(f".{path.name}.part")


def _settle(aside: Path, path: Path, gone: Iterable[Path]) -> None:
    """Gives a written checkpoint, a file or a folder, its name, once its bytes are on the disk; then others may go."""
    for file in [aside] if aside.is_file() else [inner for inner in aside.rglob("*") if inner.is_file()]:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    _remove([path])
    aside.rename(path)
    _remove(gone)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
