"""Runs the stages of a configuration one after another, each in a process of its own, and one stage in this process.

A process that ends gives back all memory, and what it has compiled: a stage with other lengths compiles once, as any
run does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

from lg.cli.last import newest_checkpoint
from lg.cli.stage_begin import FromStage
from lg.cli.stage_folder import (
    check_same_data,
    end_of,
    finish,
    is_begun,
    log_in,
    new_run,
    newest_run,
    runs_of,
    told_run,
)
from lg.cli.stages import Stage
from lg.cli.trouble import Refused


@dataclass(frozen=True)
class StageRun:
    """A stage that this process is to train.

    Attributes:
        stage: which.
        folder: where it logs.
        is_last: whether none comes behind it.
        begin: what reads the weights of the stage before; None if there is none, or the stage was begun already.
    """

    stage: Stage
    folder: Path
    is_last: bool
    begin: FromStage | None

    def end(self, trainer: Trainer) -> bool:
        """Marks it as finished, unless its time was up, and says so; whether it is the last. On every rank.

        Raises:
            Refused: if it has left no checkpoint.
        """
        # Clocks differ: one rank tells for all.
        if trainer.strategy.broadcast(_out_of_time(trainer)):
            if trainer.is_global_zero:
                how = "--ckpt_path last goes on with it, where that is longer"
                print(f"\nstage {self.stage.name!r} is not finished: trainer.max_time was up; {how}", flush=True)
            return False
        checkpoint = Path(getattr(trainer.checkpoint_callback, "last_model_path", ""))
        if not checkpoint.is_relative_to(self.folder) or not checkpoint.exists():
            raise Refused(f"stages.{self.stage.number}: the stage {self.stage.name!r} has ended without a checkpoint")
        if trainer.is_global_zero:
            finish(self.folder, checkpoint, trainer.global_step)
            print(f"\nstage {self.stage.name!r} is finished: {checkpoint}", flush=True)
        # Before any rank goes on to the next stage.
        trainer.strategy.barrier("stage")
        return self.is_last


def _out_of_time(trainer: Trainer) -> bool:
    """Whether it was ``max_time`` that ended training, before its steps or epochs did."""
    steps, epochs = trainer.max_steps, trainer.max_epochs
    done = 0 <= steps <= trainer.global_step or (epochs is not None and 0 <= epochs <= trainer.current_epoch)
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    return not done and any((left := timer.time_remaining()) is not None and left <= 0 for timer in timers)


def enter(
    stages: Sequence[Stage], stage: Stage, run: str | None, command: str, config: Namespace, data: Mapping[str, Any]
) -> StageRun | None:
    """Prepares one stage: where it logs, and what it begins from or goes on from.

    Reads folders and writes nothing, so that all ranks of a run come to the same.

    Args:
        stages: all of them.
        stage: one of them.
        run: the name of its run, if it is told.
        command: "fit", or another that only looks for the stage's checkpoint.
        config: what was parsed, in which loggers and checkpoint are set.
        data: its ``data`` section as it is saved.

    Returns:
        None if nothing is to be trained.

    Raises:
        Refused: if the stage cannot begin, or not be gone on with.
        SystemExit: with code 0, if it is finished and ``--ckpt_path last`` is asked for.
    """
    if command != "fit":
        if config.get("ckpt_path") == "last":
            runs = runs_of(config["trainer"])
            found = run or newest_run(runs, [stage.name])
            newest = newest_checkpoint(runs / found / stage.name) if found else None
            if newest is None:
                raise Refused(
                    f"ckpt_path: last is not there; the stage {stage.name!r} has no checkpoint in {str(runs)!r}"
                )
            config["ckpt_path"] = str(newest)
        return None
    trainer, checkpoint = config["trainer"], config.get("ckpt_path")
    key = f"stages.{stage.number}"
    runs = runs_of(trainer)
    goes_on = checkpoint == "last"
    run = run or told_run(trainer) or _run_of(stages, stage, runs, checkpoint)
    folder = runs / run / stage.name
    log_in(trainer, run, stage.name)
    if goes_on:
        if end := end_of(folder):
            print(f"stage {stage.name!r} is finished already: {end}")
            raise SystemExit(0)
        newest = newest_checkpoint(folder)
        config["ckpt_path"] = checkpoint = None if newest is None else str(newest)
        if newest is not None:
            check_same_data(folder, data, key)
    elif checkpoint is None and is_begun(folder):
        raise Refused(f"{key}: the stage {stage.name!r} was begun in {str(folder)!r}; --ckpt_path last goes on with it")
    begin = None
    if checkpoint is None and stage.number > 0:
        before = stages[stage.number - 1]
        end = end_of(runs / run / before.name)
        if end is None:
            raise Refused(
                f"{key}: {stage.name!r} begins from the end of the stage {before.name!r}, which is not finished in "
                f"{str(runs / run)!r}; train it first"
            )
        begin = FromStage(end, stage.optimizer == "kept", key)
    return StageRun(stage, folder, stage is stages[-1], begin)


def _run_of(stages: Sequence[Stage], stage: Stage, runs: Path, checkpoint: str | None) -> str:
    """The run that a stage belongs to, where it is not told."""
    if checkpoint not in (None, "last"):
        path = Path(str(checkpoint))
        inside = path.relative_to(runs).parts if path.is_relative_to(runs) else ()
        return inside[0] if len(inside) > 2 else new_run(runs)
    is_new = checkpoint is None and stage.number == 0
    found = None if is_new else newest_run(runs, [stage.name for stage in stages])
    return found or new_run(runs)


def run_all(stages: Sequence[tuple[Stage, Namespace]], run: str | None, words: list[str]) -> int:
    """Trains every stage that is not finished, in order.

    Args:
        stages: each with what was parsed of it.
        run: the name of the run, if it is told.
        words: those of the command, which every stage is given.

    Returns:
        The exit code: 0, or that of the stage which ended otherwise.

    Raises:
        Refused: if they cannot be run one after another.
    """
    names = [stage.name for stage, _ in stages]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or SLURMEnvironment.detect():
        raise Refused(
            "stages: processes that torchrun or SLURM has started train one stage each time; --stage NAME is needed, "
            f"in this order: {', '.join(names)}"
        )
    first = stages[0][1]
    checkpoint = first.get("ckpt_path")
    if checkpoint not in (None, "last"):
        raise Refused(f"ckpt_path: {checkpoint!r} is not allowed with stages, unless --stage says of which; last is")
    runs, told = runs_of(first["trainer"]), told_run(first["trainer"])
    for stage, config in stages:
        if (runs_of(config["trainer"]), told_run(config["trainer"])) != (runs, told):
            raise Refused(
                f"stages.{stage.number}.trainer.logger: stages of one run lie in one folder, so save_dir, name and "
                "version must be the first stage's"
            )
    run = run or told or (newest_run(runs, names) if checkpoint else None) or new_run(runs)
    print(f"stages {', '.join(names)}, each in a folder of its name in {runs / run}", flush=True)
    for stage, _ in stages:
        if checkpoint and (end := end_of(runs / run / stage.name)):
            print(f"stage {stage.name!r} is finished already: {end}", flush=True)
            continue
        print(f"\nstage {stage.name!r}, {stage.number + 1} of {len(stages)}", flush=True)
        code = _ended([sys.executable, "-m", "lg", "fit", *words, "--stage", stage.name, "--run", run])
        if code or not end_of(runs / run / stage.name):  # time was up
            return code
    return 0


def _ended(command: list[str]) -> int:
    """Runs a command and waits for it; its exit code, as shells tell it. Signals that ask to stop are handed on."""
    process: subprocess.Popen[bytes] | None = None

    def hand_on(number: int, frame: FrameType | None) -> None:
        if process is None:
            raise SystemExit(128 + number)
        process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, hand_on) for number in numbers}
    try:
        # In a session of its own Ctrl-C reaches it once, by way of this process.
        process = subprocess.Popen(command, start_new_session=True)
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
