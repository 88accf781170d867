"""Tokens a second, and the memory that a step takes."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
import torch

_GIB = 2**30


class Throughput(pl.Callback):
    """Logs ``speed/tokens_per_s`` and ``speed/step_s``, and on a GPU ``memory/peak_GiB`` of this rank.

    Measured from the end of one optimizer step to the end of a later one, data loading included, validation left out;
    tokens of all ranks are counted, each once.

    Args:
        every: optimizer steps in one measurement.
    """

    def __init__(self, every: int = 10) -> None:
        if every < 1:
            raise ValueError(f"trainer.callbacks.Throughput.every: {every} is not allowed; it must be at least 1")
        self.every = every
        self._restart()

    def _restart(self) -> None:
        self._since: float | None = None
        self._tokens = 0
        self._steps = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Peak memory is counted from here."""
        self._restart()
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A measurement that validation interrupts is dropped."""
        self._restart()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Closes a measurement when its steps are done."""
        self._tokens += batch["tokens"].numel() * trainer.world_size
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._steps += 1
        if self._since is not None and self._steps < self.every:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
            peak = torch.cuda.max_memory_allocated(pl_module.device) / _GIB
            pl_module.log("memory/peak_GiB", peak)
        now = time.perf_counter()
        if self._since is not None:
            elapsed = now - self._since
            pl_module.log("speed/tokens_per_s", self._tokens / elapsed, prog_bar=True)
            pl_module.log("speed/step_s", elapsed / self._steps)
        self._since, self._tokens, self._steps = now, 0, 0
