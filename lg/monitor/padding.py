"""How much of the rows is no text: what packing wastes, and what aligning documents costs."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from lg.monitor.steps import StepCallback
from lg.monitor.tally import Tally, num_tokens


class Padding(StepCallback):
    """Logs ``data/padding_percent`` and ``data/align_percent``: shares of all tokens of the batches that are padding.

    The second, which is part of the first, is what stands before a document so that it begins on the schedule's grid
    (``data.init_args.align``). Every step counts, on every rank.

    Args:
        every: optimizer steps in one figure; ``null`` is the trainer's ``log_every_n_steps``.
    """

    def __init__(self, every: int | None = None) -> None:
        super().__init__(every)
        # Padding, padding that aligns, and all tokens.
        self._counts = Tally(3)

    def count(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> None:
        """Counts the batch; one that tells nothing of padding has none."""
        self._counts.add(batch.get("num_padding", 0), batch.get("num_align", 0), num_tokens(batch))

    def step_done(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs both shares when they are due, and counts anew."""
        # At every step: what a checkpoint saves is then that of all ranks.
        self._counts.settle(trainer)
        if not self.is_due(trainer, self._step):
            return
        num_padding, num_align, num_tokens = self._counts.totals
        self._counts = Tally(3)
        pl_module.log("data/padding_percent", 100 * num_padding / num_tokens)
        pl_module.log("data/align_percent", 100 * num_align / num_tokens)

    def state_dict(self) -> dict[str, Any]:
        """What was counted since the last figure."""
        return {"counts": list(self._counts.totals)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self._counts.totals = [int(count) for count in state_dict["counts"]]
