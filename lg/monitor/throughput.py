"""Tokens: how many a second, and how many in all."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch

from lg.monitor.steps import TimedCallback
from lg.monitor.tally import Tally, text_tokens


class Throughput(TimedCallback):
    """Logs ``speed/tokens_per_s``, ``speed/step_s``, and ``data/tokens``, those of the whole training so far.

    A token is one of text, padding is none; those of all ranks count, and each once, where ranks share a row too.
    Time is from the end of one optimizer step to the end of a later one, data loading included, validation left out.
    A resumed training goes on with the count of its checkpoint.

    Args:
        every: optimizer steps in one measurement; ``null`` is the trainer's ``log_every_n_steps``.
    """

    def __init__(self, every: int | None = None) -> None:
        super().__init__(every)
        self._tokens = Tally(1)
        self._before = 0

    @property
    def num_tokens(self) -> int:
        """Tokens trained on so far, on all ranks."""
        return self._tokens.totals[0]

    def count(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> None:
        """Counts the batch's text."""
        self._tokens.add(text_tokens(batch))

    def step_done(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs the count at every step, so that it is right whenever the trainer writes."""
        self._tokens.settle(trainer)
        # On the host: a number would be sent to the GPU, and waited for. float32 would round above 16 million.
        pl_module.log("data/tokens", torch.tensor(self.num_tokens, dtype=torch.float64))
        super().step_done(trainer, pl_module)

    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Speed counts from here."""
        self._before = self.num_tokens

    def measured(self, trainer: pl.Trainer, pl_module: pl.LightningModule, seconds: float, num_steps: int) -> None:
        """Logs the speed."""
        pl_module.log("speed/tokens_per_s", (self.num_tokens - self._before) / seconds, prog_bar=True)
        pl_module.log("speed/step_s", seconds / num_steps)
        pl_module.log("speed/device_tokens_per_s", (self.num_tokens - self._before) / seconds / trainer.world_size)

    def state_dict(self) -> dict[str, Any]:
        """The count so far."""
        return {"num_tokens": self.num_tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self._tokens.totals = [int(state_dict["num_tokens"])]
