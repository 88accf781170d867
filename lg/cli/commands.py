"""What a command does once the heavy imports are paid: lg's own LightningCLI."""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace, get_loader
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_warn

# The modules, for their classes: YAML may write a class by its bare name once it is imported.
import lg.attention.schedule
import lg.data
import lg.monitor  # noqa: F401
from lg.cli import COMMANDS
from lg.cli.complaint import explain
from lg.cli.configuration import Config, as_argument, gather
from lg.cli.given import overlay
from lg.cli.last import checkpoint_folder, damage_of, go_on_in, index_of, newest_checkpoint
from lg.cli.nulls import misplaced_null
from lg.cli.predict import Predict
from lg.cli.saved_config import SavedConfig
from lg.cli.stage_run import StageRun, enter, run_all
from lg.cli.stages import Stage, chosen, option, take_stages
from lg.cli.trouble import Refused, refusals_told, troubles_told
from lg.models.hybrid import HybridLM

# Lightning advertises other packages of its makers among a run's messages.
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
    lambda record: "Tip: For seamless cloud" not in record.getMessage()
)

# What lg decides on its own, it says: which implementation computes attention, what packing dropped.
_told = logging.StreamHandler()
_told.setFormatter(logging.Formatter("%(message)s"))
logging.getLogger("lg").addHandler(_told)
logging.getLogger("lg").setLevel(logging.INFO)

ROOTS: Mapping[str, type] = {"model": HybridLM, "data": LightningDataModule, "trainer": Trainer}
"""The class behind each section of the YAML."""


# The same for every command: errors are raised, not printed; half-written options are not
# guessed at; LG_FIT__TRAINER__MAX_STEPS=20 and its like are defaults from the environment.
PARSER_OPTIONS: Mapping[str, bool] = {"exit_on_error": False, "allow_abbrev": False, "default_env": True}


def run(args: list[str]) -> None:
    """Parses ``args``, builds what they describe, and runs the command they begin with.

    Raises:
        Refused: when the input is at fault.
    """
    options = {**PARSER_OPTIONS, "env_prefix": "LG"}
    try:
        Command(
            HybridLM,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            # What predicts trains nothing that a configuration would be kept beside.
            save_config_callback=None if args[0] == "predict" else SavedConfig,
            seed_everything_default=0,
            parser_kwargs={
                "prog": "lg",
                **options,
                **{name: {**options, "description": COMMANDS[name]} for name in Command.subcommands()},
            },
            args=args,
        )
    except argparse.ArgumentError as error:
        raise Refused(explain(error.message, {}, ROOTS)) from error


class Command(LightningCLI):
    """One run of ``lg fit``, ``lg validate`` or ``lg predict``."""

    stage_run: StageRun | None = None
    predicts: Predict | None = None

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The Trainer's methods that are commands, each with the parameters that are no options."""
        more = {"predict": {"return_predictions"}}
        return {
            name: skip | more.get(name, set()) for name, skip in LightningCLI.subcommands().items() if name in COMMANDS
        }

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            parser.add_class_arguments(Predict, None, instantiate=False)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Merges the YAML files, then lets the parser read them and the options."""
        assert isinstance(args, list)
        command, *words = args
        name, words = option(words, "stage")
        run, words = option(words, "run")
        files, options = gather(words)
        stages = take_stages(files)
        asks = {"-h", "--help"} & set(words) or any(word.startswith("--print_config") for word in words)
        if stages and name is None and command == "fit" and not asks:
            each = [(stage, self._parse(parser, command, files, stage, options)) for stage in stages]
            raise SystemExit(run_all(each, run, words))
        stage = chosen(stages, name)
        config = self._parse(parser, command, files, stage, options)
        if stage is not None and not asks:
            data = get_loader("yaml")(self._parser(command).dump(config, skip_none=False)).get("data")
            self.stage_run = enter(stages, stage, run, command, config, data)
        elif run is not None:
            raise Refused(f"--run: {run!r} is not allowed; the configuration has no stages")
        checkpoint = config.get("ckpt_path")
        if checkpoint == "last":
            config["ckpt_path"] = self._last(command, config["trainer"])
        elif checkpoint is not None and checkpoint not in ("best", "hpc"):
            self._check(str(checkpoint))
        if command == "predict":
            self.predicts = Predict.of(config)
            # Nothing is logged: no folder is made for it.
            config["trainer"]["logger"] = False

    def _parse(
        self, parser: LightningArgumentParser, command: str, files: Config, stage: Stage | None, options: list[str]
    ) -> Namespace:
        """Has the parser read the files, or a stage of theirs, and the options: the command's own part."""
        if stage is None:
            return self._parse_merged(parser, command, files, options)
        try:
            return self._parse_merged(parser, command, stage.over(files), options)
        except Refused as error:
            raise Refused(stage.placed(str(error))) from error

    def _parse_merged(
        self, parser: LightningArgumentParser, command: str, files: Config, options: list[str]
    ) -> Namespace:
        self.given = overlay(files, options)
        if files:
            options = ["--config", as_argument(files), *options]
        for section in ROOTS:
            if section != "model" and isinstance(self.given.get(section), (int, float, list)):
                raise Refused(f"{section}: {self.given[section]!r} is not allowed; it must map keys to values")
        try:
            self.config = parser.parse_args([command, *options])
        except argparse.ArgumentError as error:
            raise Refused(explain(error.message, self.given, ROOTS)) from error
        config: Namespace = self.config[command]
        if place := misplaced_null(config, ROOTS):
            raise Refused(f"{'.'.join(place)}: null is not allowed; it needs a value, or must be left out")
        return config

    def _check(self, checkpoint: str) -> None:
        """Refuses what no run can go on from."""
        if not checkpoint or not os.path.exists(checkpoint):
            raise Refused(f"ckpt_path: {checkpoint!r} does not exist; a checkpoint, last or best is needed")
        if damage := damage_of(Path(checkpoint)):
            raise Refused(f"ckpt_path: {checkpoint!r} {damage}; a whole checkpoint, last or best is needed")

    def _last(self, command: str, trainer: Namespace) -> str | None:
        """The newest checkpoint of runs of this name, in whose log folder training goes on; None if there is none."""
        folder = checkpoint_folder(trainer)
        path = newest_checkpoint(folder)
        if path is None and command != "fit":
            raise Refused(f"ckpt_path: last is not there; there is no checkpoint below {str(folder)!r}")
        if path is None:
            rank_zero_warn(f"ckpt_path: there is no checkpoint below {str(folder)!r} yet, so training begins anew")
            return None
        if command == "fit":
            go_on_in(trainer, path)
        return str(path)

    def instantiate_classes(self) -> None:
        """Builds data, model and trainer; what a constructor refuses is the user's to change."""
        with refusals_told(self.given):
            super().instantiate_classes()
        if self.stage_run is not None and self.stage_run.begin is not None:
            self.trainer.callbacks.insert(0, self.stage_run.begin)  # type: ignore[attr-defined]  # its connectors set it

    def _run_subcommand(self, subcommand: str) -> None:
        with troubles_told(self.given, self.trainer):
            self._check_one_device(subcommand)
            if self.predicts is None:
                super()._run_subcommand(subcommand)
                return
            checkpoint = self.config[subcommand].get("ckpt_path")
            with self.predicts.running(self.trainer, self.model, self.datamodule, checkpoint):
                super()._run_subcommand(subcommand)

    def _check_one_device(self, subcommand: str) -> None:
        """Refuses a sharded checkpoint where the strategy would read a file."""
        checkpoint = self.config[subcommand].get("ckpt_path")
        reads_files = type(self.trainer.strategy).load_checkpoint is Strategy.load_checkpoint
        if checkpoint and Path(checkpoint).is_dir() and reads_files:
            raise Refused(
                f"ckpt_path: {checkpoint!r} is a sharded checkpoint, a folder, which needs trainer.strategy "
                f"lg.parallel.HybridStrategy; without it one file is needed: lg consolidate {_word(Path(checkpoint))}"
            )

    def before_fit(self) -> None:
        """Drops from the board what an interrupted run logged after the checkpoint: it is logged again."""
        checkpoint = self.config["fit"].get("ckpt_path")
        if not checkpoint or not Path(checkpoint).exists():
            return
        step = torch.load(index_of(Path(checkpoint)), map_location="cpu", weights_only=True, mmap=True)["global_step"]
        for logger in self.trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and Path(checkpoint).is_relative_to(logger.log_dir):
                # What SummaryWriter is made with, at the first line that is logged.
                logger._kwargs["purge_step"] = step

    def after_fit(self) -> None:
        """Says where the results are, and what to type next; of a stage with another behind it, only that it ended."""
        if self.stage_run is not None and not self.stage_run.end(self.trainer):
            return
        words = closing_words(self.trainer)  # on every rank: where a run logs is agreed upon
        if self.trainer.is_global_zero:
            print(words)


def closing_words(trainer: Trainer) -> str:
    """Where a finished run left its checkpoint and logs, and the commands that use them."""
    saver = trainer.checkpoint_callback
    checkpoint = str(getattr(saver, "best_model_path", "") or getattr(saver, "last_model_path", ""))
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    config = folder / "config.yaml"
    lines = []
    if checkpoint:
        lines.append(f"checkpoint  {_short(Path(checkpoint))}")
    if trainer.logger and trainer.logger.save_dir:
        lines += [f"logs        {_short(folder)}", "", "what to type next:"]
        activate = Path(sys.executable).parent / "activate"
        # `make fit` runs what is in .venv without activating it; the commands below need it.
        if not shutil.which("lg") and activate.is_file():
            lines.append(f"  source {_word(activate)}")
        lines.append(f"  tensorboard --logdir {_word(Path(trainer.logger.save_dir))}")
    if checkpoint and config.is_file():
        again = f"--config {_word(config)} --ckpt_path {_word(Path(checkpoint))}"
        lines.append(f"  lg validate {again}")
        lines.append(f"  lg fit {again} --trainer.max_steps={2 * trainer.global_step}")
    return "\n".join(["", *lines])


def _short(path: Path) -> str:
    """The path as seen from the working directory, where it lies below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _word(path: Path) -> str:
    return shlex.quote(_short(path))
