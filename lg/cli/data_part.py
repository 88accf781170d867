"""Reads the data alone from a configuration, for commands that need neither a model nor a trainer of it."""

from __future__ import annotations

from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

import lg.data  # noqa: F401  # for its classes: YAML may write them by their bare names
from lg.cli.commands import PARSER_OPTIONS
from lg.cli.configuration import FLAGS
from lg.cli.model_part import read_part


def read_data(command: str, words: list[str]) -> LightningDataModule:
    """The data that the words describe; what the YAML files say besides is left unread.

    Args:
        command: the words after ``lg``.
        words: the command's arguments, its own options taken out.

    Raises:
        Refused: when the input is at fault.
    """
    parser = LightningArgumentParser(
        prog=f"lg {command}", description="Reads the data of a configuration.", env_prefix="LG_DATA_", **PARSER_OPTIONS
    )
    parser.add_argument(*FLAGS, action="config", help="a YAML file; several merge in order")
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    data: LightningDataModule = read_part(parser, words, "data", {"data": LightningDataModule})[0]
    return data
