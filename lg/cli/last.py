"""What ``--ckpt_path last`` means: the newest whole checkpoint of earlier runs of the same name, and its log folder.

Lightning looks in the new run's own, still empty folder, so that a new process would find nothing and begin anew.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint below a folder that was written last, passing over those that are not whole; None without any.

    A file is whole if its archive has an end; a folder, as FSDP writes it, if it has its index.
    """
    found = [path for path in folder.rglob("*.ckpt") if not path.is_symlink() and not path.name.startswith(".")]
    for path in sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True):
        if _is_whole(path):
            return path
        _log.warning("%s is not whole and is passed over", path)
    return None


def checkpoint_folder(trainer: Any) -> Path:
    """Where runs that are configured like this one keep their checkpoints, whatever their version.

    Args:
        trainer: the ``trainer`` section of the parsed configuration.
    """
    for callback in _listed(trainer.get("callbacks")):
        options = callback.get("init_args") or {}
        folder = options.get("folder") or options.get("dirpath")
        if folder:
            return Path(folder).expanduser()
    for logger in _listed(trainer.get("logger")):
        options = logger.get("init_args") or {}
        if options.get("save_dir") is not None:
            return Path(options["save_dir"]).expanduser() / (options.get("name") or "")
    return Path(trainer.get("default_root_dir") or ".").expanduser() / "checkpoints"


def go_on_in(trainer: Any, checkpoint: Path) -> None:
    """Has the run log where the checkpoint's did, so that a curve is one curve: sets the logger's version."""
    for logger in _listed(trainer.get("logger")):
        options = logger.get("init_args") or {}
        if options.get("save_dir") is None or options.get("version") is not None:
            continue
        runs = Path(options["save_dir"]).expanduser() / (options.get("name") or "")
        if checkpoint.is_relative_to(runs) and len(checkpoint.relative_to(runs).parts) > 2:
            options["version"] = checkpoint.relative_to(runs).parts[0]


def _listed(value: Any) -> Iterable[Any]:
    """What a key of the trainer that takes one or a list was given; nothing for true, false and null."""
    values = value if isinstance(value, list) else [value]
    return [value for value in values if hasattr(value, "get")]


def _is_whole(path: Path) -> bool:
    if path.is_dir():
        return (path / ".metadata").is_file() and (path / "meta.pt").is_file()
    return zipfile.is_zipfile(path)
