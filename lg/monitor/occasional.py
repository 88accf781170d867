"""What callbacks share that let the model read something of their own, at each validation or every so many steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch

from lg.attention import Pattern
from lg.models.hybrid import HybridLM
from lg.monitor.board import logged_step


class Occasional(pl.Callback, ABC):
    """Looks at the model now and then; a subclass says how.

    Looks at validation are no part of training's time; those in between are.

    Args:
        every: optimizer steps from one look to the next; ``null`` to look at each validation instead.

    Raises:
        ValueError: ``every`` is below 1.
    """

    def __init__(self, every: int | None) -> None:
        if every is not None and every < 1:
            raise ValueError(
                f"trainer.callbacks.{type(self).__name__}.every: {every} is not allowed; it must be at least 1"
            )
        self.every = every
        self._looked_at = 0

    @abstractmethod
    def look(self, trainer: pl.Trainer, module: HybridLM) -> None:
        """Looks: on every rank, without gradients, with the model in eval mode and in the trainer's precision."""

    def tell(self, trainer: pl.Trainer, module: HybridLM, scalars: Mapping[str, float]) -> None:
        """Logs what was found: as validation's figures are, or at once, whatever ``log_every_n_steps``."""
        if self.every is None:
            module.log_dict(dict(scalars), sync_dist=True)
            return
        for logger in trainer.loggers:
            logger.log_metrics(dict(scalars), logged_step(trainer))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Steps count from where training goes on."""
        self._looked_at = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks when its steps are done."""
        step = trainer.global_step
        if self.every is None or step % self.every or step == self._looked_at:
            return
        self._looked_at = step
        self._look(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks at each validation, unless told to do so by steps."""
        if self.every is None and not trainer.sanity_checking:
            self._look(trainer, pl_module)

    def _look(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not isinstance(pl_module, HybridLM):
            return
        with torch.no_grad(), _evaluating(pl_module), trainer.precision_plugin.forward_context():
            self.look(trainer, pl_module)


def asked_of_documents(module: HybridLM) -> set[str]:
    """What patterns in evaluation ask of documents besides their length, as ``doc.prefix``."""
    patterns = [module.patterns[name] for name in module.evaluated_schedule]
    return {name for p in patterns if isinstance(p, Pattern) for name in p.attributes} - {"length"}


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Every part in eval mode, and afterwards each in the mode that it was in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
