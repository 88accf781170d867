"""How many graphs torch has compiled: a line that must be flat after the first steps."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch._dynamo.utils import counters


class Compilation(pl.Callback):
    """Logs ``compile/graphs``, the graphs that torch has compiled since training started.

    A line that keeps rising means that something, such as a new length, compiles again and again.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts from here."""
        self._before = counters["stats"]["unique_graphs"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the count."""
        pl_module.log("compile/graphs", float(counters["stats"]["unique_graphs"] - self._before))
