"""How long training stands still for want of data."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn

from lg.data import Loader
from lg.monitor.steps import TimedCallback


class DataWait(TimedCallback):
    """Logs ``data/wait_ms``, a step, and ``data/wait_percent`` of the time: what is spent waiting for batches.

    Of several ranks it is the one that waits longest, since the others wait for it. On a GPU a wait need not cost
    anything while the device still has work. Says so and stays away where the data are not loaded by `lg.data.Loader`.

    Args:
        every: optimizer steps in one figure; ``null`` is the trainer's ``log_every_n_steps``.
    """

    def __init__(self, every: int | None = None) -> None:
        super().__init__(every)
        self._loader: Loader | None = None
        self._before_s = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finds the loader."""
        super().on_train_start(trainer, pl_module)
        loader = trainer.train_dataloader
        self._loader = loader if isinstance(loader, Loader) else None
        if self._loader is None:
            rank_zero_warn(f"DataWait stays away: {type(loader).__name__} does not tell how long training waits for it")

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Waiting counts from here."""
        if self._loader is not None:
            self._before_s = self._loader.waited_s

    def measured(self, trainer: pl.Trainer, pl_module: pl.LightningModule, seconds: float, num_steps: int) -> None:
        """Logs both figures."""
        if self._loader is None:
            return
        waited_s = torch.tensor(self._loader.waited_s - self._before_s, device=trainer.strategy.root_device)
        waited_s = trainer.strategy.reduce(waited_s, reduce_op="max")
        pl_module.log("data/wait_ms", 1000 * waited_s / num_steps)
        pl_module.log("data/wait_percent", 100 * waited_s / seconds)
