"""Which checkpoint a run goes on from: whether a file is one, and which ``--ckpt_path last`` means.

The last is the newest whole checkpoint of earlier runs of the same name; training goes on in its log folder, too.

Lightning looks in the new run's own, still empty folder, so that a new process would find nothing and begin anew.
"""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from lg.parallel.consolidate import missing_part

_log = logging.getLogger(__name__)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint below a folder, passing over those that are not whole; None without any.

    Of several runs it is one of that which saved last; of one run's, that of the latest step its name tells: copying
    a folder mixes up the times inside it.
    """
    found = [path for path in folder.rglob("*.ckpt") if not path.is_symlink() and not path.name.startswith(".")]
    written = {path: path.stat().st_mtime_ns for path in found}
    of_run = {path.parent: max(written[other] for other in found if other.parent == path.parent) for path in found}

    def age(path: Path) -> tuple[int, str, int, int]:
        step = re.search(r"step=(\d+)", path.name)
        return of_run[path.parent], str(path.parent), int(step[1]) if step else -1, written[path]

    for path in sorted(found, key=age, reverse=True):
        if (damage := damage_of(path)) is None:
            return path
        _log.warning("%s is passed over: it %s", path, damage)
    return None


def checkpoint_folder(trainer: Any) -> Path:
    """Where runs that are configured like this one keep their checkpoints, whatever their version.

    Args:
        trainer: the ``trainer`` section of the parsed configuration.
    """
    for callback in _listed(trainer.get("callbacks")):
        options = callback.get("init_args") or {}
        if _class(callback) not in ("Checkpoints", "ModelCheckpoint"):
            continue
        folder = options.get("folder") or options.get("dirpath")
        if folder:
            return Path(folder).expanduser()
    for logger in _listed(trainer.get("logger")):
        options = logger.get("init_args") or {}
        if options.get("save_dir") is not None:
            root = Path(options["save_dir"]).expanduser()
            # These two keep runs in a folder of their name; others keep them anywhere below.
            return root / (options.get("name") or "") if _class(logger) in ("TensorBoardLogger", "CSVLogger") else root
    root = Path(trainer.get("default_root_dir") or ".").expanduser()
    return root / ("checkpoints" if trainer.get("logger") is False else "lightning_logs")


def go_on_in(trainer: Any, checkpoint: Path) -> None:
    """Has the run log where the checkpoint's did, so that a curve is one curve: sets the logger's version."""
    for logger in _listed(trainer.get("logger")):
        options = logger.get("init_args") or {}
        if options.get("save_dir") is None or options.get("version") is not None:
            continue
        runs = Path(options["save_dir"]).expanduser() / (options.get("name") or "")
        if checkpoint.is_relative_to(runs) and len(checkpoint.relative_to(runs).parts) > 2:
            options["version"] = checkpoint.relative_to(runs).parts[0]


def _class(entry: Any) -> str:
    return str(entry.get("class_path")).rpartition(".")[2]


def _listed(value: Any) -> Iterable[Any]:
    """What a key of the trainer that takes one or a list was given; nothing for true, false and null."""
    values = value if isinstance(value, list) else [value]
    return [value for value in values if hasattr(value, "get")]


def damage_of(path: Path) -> str | None:
    """What is wrong with a checkpoint, to stand after "it"; None if a run can go on from it.

    All of a file is read and held against the checksums in it. Of a folder, as FSDP writes it, only the index is read,
    and whether the files are there, and as long, as it says.
    """
    index = index_of(path)
    try:
        if path.is_dir() and not (path / ".metadata").is_file():
            return "has no .metadata, as a sharded checkpoint has"
        if not zipfile.is_zipfile(index):
            return "is not whole, or no checkpoint"
        with zipfile.ZipFile(index) as archive:
            if (name := archive.testzip()) is not None:
                return f"is damaged in {name}"
        content = torch.load(index, map_location="cpu", weights_only=True, mmap=True)
        if path.is_dir() and (part := missing_part(path)) is not None:
            return f"is not whole: {part} is missing or too short"
    except Exception as error:  # whatever damage makes of pickled and packed bytes
        return f"cannot be read: {(str(error).splitlines() or [type(error).__name__])[0][:200]}"
    if not isinstance(content, dict) or not isinstance(content.get("global_step"), int):
        return "does not say at which step it was saved, as a checkpoint of `lg fit` does"
    return None


def index_of(checkpoint: Path) -> Path:
    """The file that says at which step a checkpoint was saved: itself, or the one of a sharded one."""
    return checkpoint / "meta.pt" if checkpoint.is_dir() else checkpoint
