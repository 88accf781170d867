"""What a plan says of the run, beside what is measured: seconds of a step, and the peak of memory."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from lg.models.hybrid import HybridLM
from lg.models.planned import Choice, plannable
from lg.models.running import own_device, planned_run
from lg.monitor.steps import StepCallback


class Predicted(StepCallback):
    """Logs ``speed/predicted_step_s`` and ``memory/predicted_peak_GiB``, of the GPU that it runs on, as `lg plan` does.

    Every row counts as one document. Nothing is logged on a CPU, and on a GPU whose rates are not known.

    Args:
        every: optimizer steps from one figure to the next; ``null`` is the trainer's ``log_every_n_steps``.
    """

    def __init__(self, every: int | None = None) -> None:
        super().__init__(every)
        self._choice: Choice | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Makes the plan, on every rank."""
        super().on_train_start(trainer, pl_module)
        self._choice = None
        on = own_device(trainer, unknown=None)
        if on is None or not isinstance(pl_module, HybridLM):
            return
        try:
            layers = plannable(pl_module.schedule, pl_module.patterns)
            planned = planned_run(
                trainer, pl_module.decoder_config, layers, pl_module.compile_blocks, on, pl_module.adapter
            )
        except ValueError as reason:
            rank_zero_info(f"Predicted stays away: {reason}")
            return
        self._choice = planned.choice(pl_module.memory)

    def step_done(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the figures when they are due."""
        if self._choice is not None and self.is_due(trainer, self._step):
            pl_module.log("speed/predicted_step_s", self._choice.time.total)
            pl_module.log("memory/predicted_peak_GiB", self._choice.footprint.peak / 2**30)
