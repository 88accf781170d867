"""What context parallelism costs: what each kind of layer fetches from other ranks, and how evenly work is dealt."""

from __future__ import annotations

from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from lg.attention import Documents
from lg.models.hybrid import HybridLM
from lg.monitor.steps import StepCallback
from lg.monitor.tally import num_tokens
from lg.parallel.balance import imbalance
from lg.parallel.exchange import ContextAttend
from lg.parallel.shard import patterns

_GIB = 2**30


class Exchange(StepCallback):
    """Logs, where ranks share a sequence, ``exchange/NAME_GiB``, ``exchange/imbalance`` and ``exchange/num_ranks``.

    The first, for each name of the schedule, is what a rank receives in an optimizer step for all layers of that name,
    forward and backward, in the mean over ranks; the second the attention of the busiest rank over the mean, 1 where
    all compute alike; the third how many share it.

    Args:
        every: optimizer steps in one figure; ``null`` is the trainer's ``log_every_n_steps``.
    """

    def __init__(self, every: int | None = None) -> None:
        super().__init__(every)
        self._num_ranks = 1
        self._begin()

    def _begin(self) -> None:
        self._num_steps = 0
        self._imbalances: list[float] = []

    def count(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any) -> None:
        """Notes how evenly the batch was dealt."""
        held = batch.get("held")
        if held is not None:
            module = cast(HybridLM, pl_module)
            on = Documents(num_tokens(batch), batch["document_starts"], batch.get("document_attributes", {}))
            heads = module.decoder_config.num_kv_heads
            self._num_ranks = held.split.num_ranks
            self._imbalances.append(imbalance(held.split, on, patterns(module.model), heads))

    def step_done(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs what was fetched and how evenly work was dealt, when that is due, and counts anew."""
        self._num_steps += 1
        if not self._imbalances or not self.is_due(trainer, self._step):
            return
        module = cast(HybridLM, pl_module)
        received = dict.fromkeys(module.schedule, 0)
        for name, block in zip(module.schedule, module.model.blocks, strict=True):
            attend = getattr(block.mixer, "attend", None)
            if isinstance(attend, ContextAttend):
                received[name] += attend.received_bytes
                attend.received_bytes = 0
        own = torch.tensor(
            [
                *(size / _GIB / self._num_steps for size in received.values()),
                sum(self._imbalances) / len(self._imbalances),
            ],
            dtype=torch.float64,
        )
        means = trainer.strategy.reduce(own.to(pl_module.device), reduce_op="mean")
        assert isinstance(means, Tensor)
        pl_module.log("exchange/num_ranks", float(self._num_ranks))
        for name, mean in zip((*(f"{name}_GiB" for name in received), "imbalance"), means.tolist(), strict=True):
            pl_module.log(f"exchange/{name}", mean)
        self._begin()
