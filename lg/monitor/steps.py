"""Optimizer steps as callbacks measure them: so many at a time, however many micro-batches each has."""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import Any

import lightning.pytorch as pl
import torch


class StepCallback(pl.Callback):
    """A callback that counts micro-batches and tells something after so many optimizer steps.

    Args:
        every: optimizer steps from one figure to the next; figures come after the steps whose number it divides.
            ``null`` is the trainer's ``log_every_n_steps``, so that each line of the log tells of the steps since the
            one before. Lightning logs at its own steps only: of figures that come between them it takes the last, and
            repeats the last where none has come.

    Raises:
        ValueError: ``every`` is below 1.
    """

    def __init__(self, every: int | None = None) -> None:
        if every is not None and every < 1:
            raise ValueError(
                f"trainer.callbacks.{type(self).__name__}.every: {every} is not allowed; it must be at least 1"
            )
        self.every = every
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Steps are counted from where training goes on."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the micro-batch, and the step if it was the step's last."""
        self.count(trainer, pl_module, batch)
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self.step_done(trainer, pl_module)

    def count(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> None:
        """Takes note of a micro-batch that this rank has trained on."""

    @abstractmethod
    def step_done(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Is called after each optimizer step, on every rank."""

    def is_due(self, trainer: pl.Trainer, step: int) -> bool:
        """Whether a figure is to be told after a step."""
        logged: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it from elsewhere
        return step % (self.every or logged or 1) == 0


class TimedCallback(StepCallback):
    """Measures time from the end of one optimizer step to the end of a later one, whatever is done in between.

    Validation is never inside: the steps before it that no figure has told of are dropped, and the next measurement
    begins at the end of the first step after it. It also begins at the end of the first step of all, which compiles.
    """

    def __init__(self, every: int | None = None) -> None:
        super().__init__(every)
        self._since: float | None = None
        self._num_steps = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures nothing yet."""
        super().on_train_start(trainer, pl_module)
        self._since = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drops the measurement that validation interrupts."""
        self._since = None

    @property
    def is_measuring(self) -> bool:
        """Whether the running step is one of those that are measured."""
        return self._since is not None

    def step_done(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends a measurement when its steps are done, and begins the next."""
        self._num_steps += 1
        if self.is_measuring and not self.is_due(trainer, self._step):
            return
        if pl_module.device.type != "cpu":
            torch.accelerator.synchronize(pl_module.device)
        now = time.perf_counter()
        if self._since is not None:
            self.measured(trainer, pl_module, now - self._since, self._num_steps)
        self.begin(trainer, pl_module)
        self._since, self._num_steps = now, 0

    @abstractmethod
    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Is called when a measurement begins, on every rank."""

    @abstractmethod
    def measured(self, trainer: pl.Trainer, pl_module: pl.LightningModule, seconds: float, num_steps: int) -> None:
        """Is called when a measurement ends, on every rank, with what it took."""
