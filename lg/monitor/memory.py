"""How much memory training takes, of the device and of the machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from lg.monitor.steps import StepCallback

_GIB = 2**30
_STATM = Path("/proc/self/statm")


class Memory(StepCallback):
    """Logs ``memory/peak_GiB`` and ``memory/reserved_GiB`` of a GPU, and ``memory/resident_GiB`` of the process.

    Peak is the most that tensors have taken since training began, reserved the most that torch has taken of the GPU to
    hold them; both include validation. Resident is what the process has of the machine's memory when the figure is
    told, on Linux: worker processes are left out, and what it has read of the cache of tokens, which the system takes
    back when it needs it, is not. Of several ranks it is the one that takes most.

    Args:
        every: optimizer steps from one figure to the next; ``null`` is the trainer's ``log_every_n_steps``.
    """

    def __init__(self, every: int | None = None) -> None:
        super().__init__(every)
        self._has_begun = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Training has not begun: other callbacks may still use memory."""
        super().on_train_start(trainer, pl_module)
        self._has_begun = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Peaks are counted from the first batch."""
        if not self._has_begun and pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._has_begun = True

    def step_done(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the figures when they are due."""
        if not self.is_due(trainer, self._step):
            return
        taken = {}
        if pl_module.device.type == "cuda":
            taken["peak"] = torch.cuda.max_memory_allocated(pl_module.device)
            taken["reserved"] = torch.cuda.max_memory_reserved(pl_module.device)
        resident = resident_bytes()
        if resident is not None:
            taken["resident"] = resident
        if not taken:
            return
        most = torch.tensor(list(taken.values()), device=trainer.strategy.root_device)
        most = trainer.strategy.reduce(most, reduce_op="max")
        for name, number in zip(taken, most.tolist(), strict=True):
            pl_module.log(f"memory/{name}_GiB", number / _GIB)


def resident_bytes() -> int | None:
    """Memory of the machine that this process has; None where the system does not tell."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
