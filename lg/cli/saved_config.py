"""Keeps the whole configuration of a run beside its logs, for `--config` of the next: complete, or not there."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.cli import SaveConfigCallback

from lg.cli.written import write


class SavedConfig(SaveConfigCallback):
    """As Lightning's, which on a full disk leaves half a file."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Writes the file, once.

        Raises:
            ValueError: it cannot be written.
        """
        folder = trainer.log_dir  # on every rank: they agree on it
        if self.already_saved:
            return
        self.already_saved = True
        if trainer.is_global_zero:
            assert folder is not None
            Path(folder).mkdir(parents=True, exist_ok=True)
            content = self.parser.dump(self.config, skip_none=False)
            write(Path(folder, self.config_filename), content.encode(), "trainer.logger.init_args.save_dir")
