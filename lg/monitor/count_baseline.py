"""A yard-stick printed beside the held-out loss: what counting the last bytes would give."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lg.data import CountModel, TextData
from lg.monitor.board import board


class CountBaseline(pl.Callback):
    """Fits a byte-count model on the training rows and scores it on the rows that validation reads.

    Logs ``val/count_model_bits_per_byte`` when training starts, and prints both figures when it ends. A model that has
    learnt more than which bytes follow which must do better. For rows of bytes only; says so and stays away otherwise.

    Args:
        order: bytes of context that the count model knows, 0 to 2.
    """

    def __init__(self, order: int = 2) -> None:
        self._model = CountModel(order)
        self._bits: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fits and scores: a few seconds for 15 MB."""
        data = getattr(trainer, "datamodule", None)
        if not trainer.is_global_zero or not isinstance(data, TextData) or not trainer.num_val_batches:
            return
        rows = int(min(trainer.num_val_batches[0] * data.batch_size, len(data.val_rows)))
        try:
            self._bits = self._model.fit(data.train_rows).bits_per_byte(data.val_rows, rows)
        except ValueError as reason:
            rank_zero_warn(f"CountBaseline stays away: {reason}")
            return
        writer = board(trainer)
        if writer is not None:
            writer.add_scalar("val/count_model_bits_per_byte", self._bits, trainer.global_step)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the two figures, one under the other."""
        own = trainer.callback_metrics.get("val/bits_per_byte")
        if self._bits is None or own is None:
            return
        rank_zero_info(
            f"held-out bits per byte: {float(own):.3f} this model\n"
            f"                        {self._bits:.3f} counting the last {self._model.order} bytes, on the same rows"
        )
