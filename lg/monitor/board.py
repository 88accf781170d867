"""Finds the TensorBoard that a trainer writes to, if any, and the step that it is at there."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter


def board(trainer: pl.Trainer) -> SummaryWriter | None:
    """The writer of the first TensorBoard logger, on the rank that logs; otherwise None."""
    if not trainer.is_global_zero:
        return None
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            writer: SummaryWriter = logger.experiment
            return writer
    return None


def logged_step(trainer: pl.Trainer) -> int:
    """The step that Lightning logs under, where training is: steps done before the running one.

    What callbacks write themselves must stand there too: a resumed run drops what was logged at later steps.
    """
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)
