"""Looks at the data of every stage before the first is trained: what a later one refuses is told at once.

Texts are tokenised into the cache on the way, where the stages find them.
"""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from lg.cli import raised_in_lg
from lg.cli.stages import Stage
from lg.cli.trouble import Refused
from lg.data import TextData


def check_data(stages: Sequence[tuple[Stage, Namespace]]) -> None:
    """Reads and packs the texts of each stage, as `TextData` does; other data are not looked at.

    Args:
        stages: each with what was parsed of it.

    Raises:
        Refused: if a stage could not be trained with its texts; with its name.
    """
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    for stage, config in stages:
        try:
            data = parser.instantiate_classes(Namespace(data=config["data"]))["data"]  # type: ignore[no-untyped-call]
            if isinstance(data, TextData):
                data.setup("fit")
        except ValueError as error:
            if not raised_in_lg(error.__traceback__):
                raise
            said = stage.placed(str(error))
            raise Refused(said if said.startswith("stages.") else f"stage {stage.name!r}: {said}") from error
