"""Reads the data alone from a configuration, for commands that need neither a model nor a trainer of it."""

from __future__ import annotations

import argparse

from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

import lg.data  # noqa: F401  # for its classes: YAML may write them by their bare names
from lg.cli.commands import PARSER_OPTIONS
from lg.cli.complaint import explain
from lg.cli.configuration import FLAGS, as_argument
from lg.cli.given import overlay
from lg.cli.model_part import sections
from lg.cli.stages import gather_stage
from lg.cli.trouble import Refused, refusals_told


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
    files, options = gather_stage(words)
    for key in sections() - {"data"}:
        files.pop(key, None)
    given = overlay(files, options)
    if files:
        options = ["--config", as_argument(files), *options]
    try:
        parsed = parser.parse_args(options)
    except argparse.ArgumentError as error:
        raise Refused(explain(error.message, given, {"data": LightningDataModule})) from error
    with refusals_told(given):
        data: LightningDataModule = parser.instantiate_classes(parsed).data
    return data
