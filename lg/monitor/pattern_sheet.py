"""A picture of what each layer sees."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np

from lg.attention.picture import sheet
from lg.models.hybrid import HybridLM
from lg.monitor.board import board


class PatternSheet(pl.Callback):
    """Draws every layer's pattern once, as the image ``model/patterns``.

    Args:
        length: tokens of context to draw; by default the rows' own length.
    """

    def __init__(self, length: int | None = None) -> None:
        if length is not None and length < 1:
            raise ValueError(f"trainer.callbacks.PatternSheet.length: {length} is not allowed; it must be at least 1")
        self.length = length

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws the sheet."""
        writer = board(trainer)
        if writer is None or not isinstance(pl_module, HybridLM):
            return
        length = self.length or int(getattr(getattr(trainer, "datamodule", None), "row_length", 4096))
        image = sheet(pl_module.schedule, pl_module.patterns, length, pl_module.decoder_config.num_kv_heads)
        writer.add_image("model/patterns", np.asarray(image), trainer.global_step, dataformats="HWC")
