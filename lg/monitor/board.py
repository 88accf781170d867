"""Finds the TensorBoard that a trainer writes to, if any."""

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
