"""Stops a run whose loss, or gradient, is no number any more, before weights that are ruined are saved."""

from __future__ import annotations

from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor

from lg.models.hybrid import HybridLM

_LOSS, _NORM = "train/loss_nats", "train/grad_norm"


class NotFinite(ValueError):
    """The loss or the gradient of a step is infinite or no number; raised on all ranks."""


class _Figures(NamedTuple):
    """Of one optimizer step: [loss, norm of the gradient, this rank's own loss], on their way to the host."""

    step: int
    values: Tensor
    copied: torch.cuda.Event | None


class Finite(pl.Callback):
    """Stops training with an error where the loss, or the gradient's norm, is infinite or no number.

    The figures of a step are looked at when the next one is done, so that the host never waits for the device, and
    before a checkpoint is written: none is ever saved whose weights such a step has changed. On a CPU they are looked
    at at once.

    Raises:
        NotFinite: naming the step, and the ranks whose own part of the loss was the cause.
    """

    def __init__(self) -> None:
        self._step = 0
        self._own: Tensor | None = None
        self._figures: _Figures | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Steps are counted from where training goes on."""
        self._step, self._own, self._figures = trainer.global_step, None, None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds up this rank's loss; after a step sends its figures, and looks at those of the step before."""
        if not isinstance(pl_module, HybridLM):
            return
        own = outputs["loss"].detach()
        self._own = own if self._own is None else self._own + own
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self._look(trainer)
        logged = trainer.callback_metrics
        self._figures = _sent(self._step, torch.stack([logged[_LOSS].to(own), logged[_NORM].to(own), self._own]))
        self._own = None
        if self._figures.copied is None:
            self._look(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Looks at the step that is to be saved."""
        self._look(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks at the last step."""
        self._look(trainer)

    def _look(self, trainer: pl.Trainer) -> None:
        """Raises if the figures that were sent are not finite; on all ranks, since they are the same on all."""
        figures, self._figures = self._figures, None
        if figures is None:
            return
        if figures.copied is not None:
            figures.copied.synchronize()
        loss, norm, _ = figures.values.tolist()
        finite = figures.values.isfinite()
        if bool(finite[:2].all()):
            return
        everyone = trainer.strategy.all_gather((~finite[2:]).int().to(trainer.strategy.root_device)).flatten()
        ranks = everyone.nonzero().flatten().tolist()
        what, value = ("gradient's norm", norm) if bool(finite[0]) else ("loss", loss)
        raise NotFinite(
            f"trainer.callbacks.Finite: the {what} of step {figures.step} is {value}, so training stops before it is "
            f"saved{_whose(ranks, len(everyone))}; a lower model.init_args.learning_rate or trainer.gradient_clip_val "
            "may help"
        )


def _sent(step: int, values: Tensor) -> _Figures:
    """Begins to copy values to the host."""
    if not values.is_cuda:
        return _Figures(step, values.cpu(), None)
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()
    return _Figures(step, host, copied)


def _whose(ranks: list[int], num_ranks: int) -> str:
    if num_ranks == 1:
        return ""
    if not ranks:
        return "; each rank's own loss is finite"
    if len(ranks) == num_ranks:
        return "; it comes from all ranks"
    return f"; it comes from rank {', '.join(map(str, ranks))}"
