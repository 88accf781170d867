"""Where stages of a run lie, which of them are finished, and from which checkpoint one begins.

A run is a folder of the logger's, as ``logs/hybrid/version_0``; each stage logs into a folder in it, of its name. A
stage that is finished has a file there that says so, and names its last checkpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lg.cli.configuration import load
from lg.cli.trouble import Refused
from lg.cli.written import write
from lg.models.checkpoint import differences

_MARK = "stage.json"
# With these, each run has a folder of its own, in a folder of the logger's name.
_LOGGERS = ("TensorBoardLogger", "CSVLogger")
# What rows do not hang on, or what goes on from where they were.
_FREE = ("num_workers", "batch_size")


def runs_of(trainer: Any) -> Path:
    """The folder of all runs that are configured like this one.

    Args:
        trainer: the ``trainer`` section of the parsed configuration.

    Raises:
        Refused: if stages could not be told apart there, or leave no checkpoint to begin from.
    """
    loggers = _listed(trainer.get("logger"))
    options = loggers[0].get("init_args") or {} if loggers else {}
    if not loggers or _class(loggers[0]) not in _LOGGERS or options.get("save_dir") is None:
        raise Refused(
            f"trainer.logger: stages need a folder each, so it must be {' or '.join(_LOGGERS)} with a save_dir; of "
            "several loggers, the first one"
        )
    savers = [callback for callback in _listed(trainer.get("callbacks")) if _class(callback) == "Checkpoints"]
    if not savers:
        raise Refused("trainer.callbacks: stages need Checkpoints, since each begins from the last one of the other")
    if folder := next((f for s in savers if (f := (s.get("init_args") or {}).get("folder"))), None):
        raise Refused(
            f"trainer.callbacks.Checkpoints.folder: {folder!r} is not allowed with stages, whose checkpoints lie in "
            "the folder of each; it must be null"
        )
    return Path(options["save_dir"]).expanduser() / (options.get("name") or "")


def told_run(trainer: Any) -> str | None:
    """The run that the logger's ``version`` names; None if it names none."""
    version = (_listed(trainer.get("logger"))[0].get("init_args") or {}).get("version")
    return None if version is None else f"version_{version}" if isinstance(version, int) else str(version)


def log_in(trainer: Any, run: str, stage: str) -> None:
    """Has loggers log in the stage's folder."""
    for logger in _listed(trainer.get("logger")):
        if _class(logger) in _LOGGERS:
            logger["init_args"]["version"] = f"{run}/{stage}"


def newest_run(runs: Path, stages: Iterable[str]) -> str | None:
    """The run of such stages in which something was saved last; None if there is none."""
    names = list(stages)
    found = [run for run in runs.glob("*") if any((run / name).is_dir() for name in names)]

    def age(run: Path) -> tuple[int, int]:
        saved = [*run.glob("*/**/*.ckpt"), *run.glob(f"*/{_MARK}")]
        return max((path.stat().st_mtime_ns for path in saved), default=0), _number(run)

    return max(found, key=age).name if found else None


def new_run(runs: Path) -> str:
    """The name of a run that is not there yet, as loggers would name it."""
    return f"version_{1 + max(map(_number, runs.glob('version_*')), default=-1)}"


def is_begun(folder: Path) -> bool:
    """Whether a stage has a checkpoint, so that there is something to lose."""
    return next(folder.rglob("*.ckpt"), None) is not None


def end_of(folder: Path) -> Path | None:
    """The last checkpoint of a stage that is finished; None if it is not.

    Raises:
        Refused: if the checkpoint is gone.
    """
    mark = folder / _MARK
    if not mark.is_file():
        return None
    try:
        checkpoint = folder / str(json.loads(mark.read_text(encoding="utf-8"))["checkpoint"])
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(
            f"stages: {str(mark)!r} is damaged ({error}); without it the stage can be gone on with"
        ) from error
    if not checkpoint.exists():
        raise Refused(f"stages: {str(checkpoint)!r} is gone, with which the stage {folder.name!r} had ended")
    return checkpoint


def finish(folder: Path, checkpoint: Path, step: int) -> None:
    """Marks a stage as finished.

    Raises:
        ValueError: if that cannot be written.
    """
    said = {"stage": folder.name, "step": step, "checkpoint": str(checkpoint.relative_to(folder))}
    write(folder / _MARK, f"{json.dumps(said, indent=1)}\n".encode(), "trainer.logger.init_args.save_dir")


def check_same_data(folder: Path, now: Mapping[str, Any], key: str) -> None:
    """Holds data to those with which a stage was begun.

    Args:
        folder: the stage's.
        now: the ``data`` section of the configuration, resolved.
        key: names the stage in a complaint.

    Raises:
        Refused: naming all that differs: the stage would go on at a place in other rows.
    """
    file = next(iter(sorted(folder.rglob("config.yaml"))), None)
    if file is None:
        return
    changed = [
        f"data.{name} was {before!r}, is {after!r}"
        for name, before, after in differences(load(file).get("data") or {}, now)
        if name.rpartition(".")[2] not in _FREE
    ]
    if changed:
        raise Refused(f"{key}: the stage {folder.name!r} cannot be gone on with: {'; '.join(changed)}")


def _number(run: Path) -> int:
    number = re.fullmatch(r"version_(\d+)", run.name)
    return int(number[1]) if number else -1


def _class(entry: Any) -> str:
    return str(entry.get("class_path")).rpartition(".")[2]


def _listed(value: Any) -> Sequence[Any]:
    values = value if isinstance(value, list) else [value]
    return [value for value in values if hasattr(value, "get")]
