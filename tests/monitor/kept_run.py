"""A run of seconds whose batches are kept, for tests that count by hand what callbacks have counted."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from small_run import data, logged, model, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lg.monitor import DataWait, GradientNorms, Memory, Padding, RunCard, Throughput, Work


class Keep(pl.Callback):
    """Keeps every micro-batch, by the number of its step."""

    def __init__(self) -> None:
        self.batches: dict[int, list[Any]] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.setdefault(trainer.global_step + 1, []).append(copy.deepcopy(batch))


class TimedWork(Work):
    """Tells the seconds that it has measured, by the step that they end with."""

    def __init__(self, every: int | None = None) -> None:
        super().__init__(every)
        self.seconds: dict[int, float] = {}

    def measured(self, trainer: pl.Trainer, pl_module: pl.LightningModule, seconds: float, num_steps: int) -> None:
        self.seconds[trainer.global_step] = seconds
        super().measured(trainer, pl_module, seconds, num_steps)


class TimedWait(DataWait):
    """Tells the seconds of a step that it has measured, likewise."""

    def __init__(self, every: int | None = None) -> None:
        super().__init__(every)
        self.seconds: dict[int, float] = {}

    def measured(self, trainer: pl.Trainer, pl_module: pl.LightningModule, seconds: float, num_steps: int) -> None:
        self.seconds[trainer.global_step] = seconds / num_steps
        super().measured(trainer, pl_module, seconds, num_steps)


@dataclass(frozen=True)
class Run:
    """A finished run: its board, its batches by step, and its callbacks by class."""

    board: EventAccumulator
    batches: dict[int, list[Any]]
    callbacks: dict[str, pl.Callback]

    def values(self, tag: str) -> dict[int, float]:
        """A scalar by the number of the step that it tells of; Lightning counts from 0."""
        return {event.step + 1: event.value for event in self.board.Scalars(tag)}

    def tags(self, prefix: str) -> set[str]:
        return {tag for tag in self.board.Tags()["scalars"] if tag.startswith(prefix)}

    def num_text(self, steps: Sequence[int]) -> int:
        """Tokens of text in some steps."""
        return sum(batch["tokens"].numel() - batch["num_padding"] for step in steps for batch in self.batches[step])


def fitted(folder: Path, the_model: pl.LightningModule, callbacks: Sequence[pl.Callback], **changes: Any) -> Run:
    """A run of two micro-batches a step, of rows with padding, some of it before documents.

    ``data`` and ``ckpt_path`` among the changes are the fit's, the others the trainer's.
    """
    keep = Keep()
    the_data = changes.pop("data", None) or data(batch_size=2, align=8)
    path = changes.pop("ckpt_path", None)
    options = {"accumulate_grad_batches": 2, "limit_val_batches": 0, "gradient_clip_val": 1e-3}
    the_trainer = trainer(folder, [keep, *callbacks], **{**options, **changes})
    the_trainer.fit(the_model, the_data, ckpt_path=path, weights_only=True if path else None)
    return Run(logged(the_trainer), keep.batches, {type(callback).__name__: callback for callback in callbacks})


def measured_run(folder: Path) -> Run:
    """Ten steps, with a validation after the fifth, under all that counts and measures."""
    callbacks = [
        Throughput(every=2), TimedWork(every=2), TimedWait(every=2), Padding(every=2), Memory(),
        GradientNorms(every=2), RunCard(),
    ]  # fmt: skip
    return fitted(folder, model(), callbacks, max_steps=10, val_check_interval=10, limit_val_batches=1)


def document_of_token(batch: Any) -> torch.Tensor:
    """The number of each token's document, along all tokens of a batch."""
    starts = torch.zeros(batch["tokens"].numel(), dtype=torch.int64)
    starts[batch["document_starts"]] = 1
    return starts.cumsum(0) - 1
