"""What a result hangs on besides the code: the run's configuration, the versions, the state of git, the command."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import lightning.pytorch as pl
import torch
import yaml

import lg
from lg.models.hybrid import HybridLM
from lg.monitor.board import board, logged_step

_PACKAGES = ("lightning", "numpy", "datasets", "transformers", "tokenizers", "triton", "flash-attn-4")
_GIT_S = 10
_MOST_FILES = 20


class RunCard(pl.Callback):
    """Logs the texts ``run/configuration``, ``run/versions``, ``run/git`` and ``run/command`` when training starts.

    The configuration is the whole one that `lg fit` saves beside the logs; without it, the model's. Git is that of the
    working directory: the commit, and which files differ from it. A resumed run logs them anew, at its own first step.

    Attributes:
        markdown: all of it as one text; empty before training starts.
    """

    def __init__(self) -> None:
        self.markdown = ""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Looks around, and logs what there is."""
        # Asked for on every rank: they agree on it.
        folder = trainer.log_dir
        if not trainer.is_global_zero:
            return
        texts = {
            "configuration": _fenced(configuration(folder, pl_module), "yaml"),
            "versions": _table(versions(pl_module.device)),
            "git": _table(git(Path.cwd())),
            "command": _fenced(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), "sh"),
        }
        self.markdown = "\n\n".join(f"## {name.capitalize()}\n\n{text}" for name, text in texts.items())
        writer = board(trainer)
        if writer is not None:
            for name, text in texts.items():
                writer.add_text(f"run/{name}", text, logged_step(trainer))


def configuration(folder: str | None, module: pl.LightningModule) -> str:
    """The run's configuration as YAML: the file that the command has saved in ``folder``, or the model's own."""
    saved = Path(folder or ".", "config.yaml")
    if folder and saved.is_file():
        return saved.read_text(encoding="utf-8")
    own = {"model": module.config} if isinstance(module, HybridLM) else {}
    return yaml.safe_dump(own, sort_keys=False) if own else "# not known: the run was not started by lg fit"


def versions(device: torch.device) -> dict[str, str]:
    """What the run is made of, by name: packages that are not installed are left out."""
    found = {"lg": lg.__version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["CUDA"] = torch.version.cuda
    if device.type == "cuda":
        found["cuDNN"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]  # torch's stub
        found["device"] = torch.cuda.get_device_name(device)
    else:
        found["device"] = f"{device.type}, {_processor()}"
    found["system"] = f"{platform.system()} {platform.release()}"
    found["threads"] = str(torch.get_num_threads())
    return found


def git(folder: Path) -> dict[str, str]:
    """The commit, the branch and the files that differ from the commit; or why that is not known."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {"commit": "not known: no git, no repository here, or no commit in it"}
    changed = _git(folder, "status", "--porcelain")
    files = (changed or "").splitlines()
    told = ", ".join(f"`{line.strip()}`" for line in files[:_MOST_FILES])
    if len(files) > _MOST_FILES:
        told += f" and {len(files) - _MOST_FILES} more"
    return {
        "commit": commit,
        "branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD") or "not known",
        "changed files": "not known" if changed is None else told or "none",
    }


def _git(folder: Path, *words: str) -> str | None:
    """What git says, without its last line's end; None if it cannot."""
    try:
        done = subprocess.run(
            ["git", *words],
            cwd=folder,
            # Looking must not lock the repository, nor wait for a password.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").rstrip("\n")


def _processor() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _fenced(text: str, language: str) -> str:
    """Text as Markdown leaves it: between fences longer than any in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _table(rows: Mapping[str, str]) -> str:
    lines = [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])
