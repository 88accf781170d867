"""Reads the model alone from a configuration, for commands that count or draw and need neither data nor a trainer."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from lg.cli.commands import PARSER_OPTIONS, ROOTS, Command
from lg.cli.complaint import explain
from lg.cli.configuration import FLAGS, Config, as_argument
from lg.cli.given import overlay
from lg.cli.stages import gather_stage
from lg.cli.trouble import Refused, refusals_told
from lg.models.hybrid import HybridLM


def model_parser(command: str, description: str) -> LightningArgumentParser:
    """A parser of a model's options, to which a command adds its own.

    Args:
        command: the word after ``lg``.
        description: what the command does, for its help.
    """
    parser = LightningArgumentParser(
        prog=f"lg {command}", description=description, env_prefix=f"LG_{command.upper()}_", **PARSER_OPTIONS
    )
    parser.add_argument(*FLAGS, action="config", help="a YAML file; several merge in order")
    parser.add_lightning_class_args(HybridLM, "model", subclass_mode=True)
    return parser


def read_model(parser: LightningArgumentParser, words: list[str], own: list[str]) -> tuple[HybridLM, Namespace, Config]:
    """The model that the words describe, without weights; all that was parsed; and what the YAML files say besides.

    That is left unread: the sections that `lg fit` and `lg validate` know and these commands do not need. A section
    that those do not know either is refused.

    Args:
        parser: that of `model_parser`.
        words: the command's arguments.
        own: the options that the command has added.

    Raises:
        Refused: when the input is at fault.
    """
    return read_part(parser, words, "model", {"model": HybridLM, **dict.fromkeys(own, str)})


def read_part(
    parser: LightningArgumentParser, words: list[str], section: str, roots: Mapping[str, type]
) -> tuple[Any, Namespace, Config]:
    """What one section describes, built; all that was parsed; and what the YAML files say besides, which is unread.

    Args:
        parser: of that section, and of what a command has added.
        words: the command's arguments.
        section: a key of `sections`.
        roots: the class behind each top-level key of the parser.

    Raises:
        Refused: when the input is at fault.
    """
    files, options = gather_stage(words)
    unread = {key: files.pop(key) for key in sections() - {section} if key in files}
    given = overlay(files, options)
    if files:
        options = ["--config", as_argument(files), *options]
    try:
        parsed = parser.parse_args(options)
    except argparse.ArgumentError as error:
        raise Refused(explain(error.message, given, roots)) from error
    with refusals_told(given):
        built = parser.instantiate_classes(parsed)[section]
    return built, parsed, unread


def sections() -> set[str]:
    """The top-level keys that a YAML file of `lg fit` or `lg validate` may have."""
    methods = {
        key
        for command, hidden in Command.subcommands().items()
        for key in inspect.signature(getattr(Trainer, command)).parameters
        if key != "self" and key not in hidden
    }
    return {*ROOTS, "seed_everything", *methods}
