"""Tries one malformed input on the real command, in a process of its own, and judges how it ended."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
import traceback
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

from lg.cli import main

PATIENCE = 60  # seconds, after which a case counts as hung
LONGEST = 900  # characters of one clear message
# Every message names where the user has to look.
_PLACE = re.compile(
    r"\b(model|data|trainer|ckpt_path|seed_everything|weights_only|return_predictions|logger|verbose|dataloaders"
    r"|LG_CACHE|base|TextData|[Cc]onfig|keys?|arguments)\b|--\w+"
)
# What is written aside, and must be gone again.
_ASIDE = re.compile(r"\.part|\.tmp|^tmp|\.incomplete|^\..*\.ckpt")
_UNPREPARED = 97  # exit code of a case that could not even be set up


@dataclass(frozen=True)
class Case:
    """One input that is wrong, or perhaps not.

    Attributes:
        kind: what was tampered with.
        name: what tells the case from the others of its kind.
        prepare: writes it into the empty working directory, and returns the words after ``lg``; what else it does, such
            as limits of the process, lasts for the command.
        keys: words of which a refusal must hold one; none if any key of the configuration will do.
        must_fail: whether a run to the end would be wrong.
    """

    kind: str
    name: str
    prepare: Callable[[], list[str]]
    keys: tuple[str, ...] = ()
    must_fail: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        verdict: "ran", "refused", or what is wrong.
        seconds: that it took.
        said: the end of stderr.
    """

    verdict: str
    seconds: float
    said: str

    @property
    def is_right(self) -> bool:
        """Whether it ended as every case must."""
        return self.verdict in ("ran", "refused")


def attempt(case: Case, folder: Path) -> Outcome:
    """Runs a case in a folder that is made for it, in a fork of this process.

    The fork has every module already, and whatever it does to itself ends with it.
    """
    folder.mkdir()
    began = time.monotonic()
    # Pipes: where files may not grow, what is said still comes through.
    before, into_before = os.pipe()
    stderr, into_stderr = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(case, folder, into_before, into_stderr)
    os.close(into_before)
    os.close(into_stderr)
    status, known, said = _wait(pid, (before, stderr), began + PATIENCE)
    verdict = "hang" if status is None else _verdict(case, os.waitstatus_to_exitcode(status), said)
    if verdict in ("ran", "refused"):
        verdict = _left_behind(folder, dict(line.split("\0") for line in known.split("\0\0") if line)) or verdict
    return Outcome(verdict, time.monotonic() - began, said[-3000:])


def _child(case: Case, folder: Path, before: int, stderr: int) -> None:
    code = 98
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(stderr, 2)
        os.chdir(folder)
        os.environ["LG_CACHE"] = str(folder / "cache")
        os.environ["HF_HOME"] = str(folder / "hf")
        # Without its line, a step's limit or another, a run that is right would be one of hours.
        os.environ["LG_FIT__TRAINER__MAX_TIME"] = "00:00:00:08"
        try:
            words = case.prepare()
            marks = "".join(f"{path}\0{mark}\0\0" for path, mark in _marks(folder).items())
            os.write(before, marks.encode(errors="replace"))
        except BaseException:
            traceback.print_exc()
            code = _UNPREPARED
        else:
            sys.argv = ["lg", *words]
            code = main(words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        # As an interpreter that ends: other threads may still have something to say.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(pid: int, pipes: tuple[int, int], until: float) -> tuple[int | None, str, str]:
    """The process's status, None if it had to be killed; and what came through the pipes, which are closed."""
    heard = [bytearray() for _ in pipes]
    ended, status = 0, None
    while not ended:
        if time.monotonic() > until:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            break
        ended, status = os.waitpid(pid, os.WNOHANG)
        for pipe, text in zip(pipes, heard, strict=True):
            os.set_blocking(pipe, False)
            with contextlib.suppress(BlockingIOError):
                while piece := os.read(pipe, 1 << 16):
                    text += piece
        time.sleep(0.01)
    for pipe in pipes:
        os.close(pipe)
    known, said = (bytes(text).decode(errors="replace") for text in heard)
    return status if ended else None, known, said


def _verdict(case: Case, code: int, said: str) -> str:
    if code == _UNPREPARED:
        return "not prepared"
    if "Traceback" in said or "Exception ignored" in said:
        return "traceback"
    if code == 0:
        return "ran, though it cannot be right" if case.must_fail else "ran"
    if code != 2:
        return f"exit code {code}"
    lines = [line for line in re.split(r"[\n\r]", said) if line.strip()]
    told = [line for line in lines if re.search(r"lg \w+: ", line)]
    if len(told) != 1 or lines[-1] != told[0]:
        return "not one message"
    message = told[0].partition(": ")[2]
    if len(message) > LONGEST:
        return "long message"
    if not _PLACE.search(message) or not any(key in message for key in case.keys or ("",)):
        return f"names no key {' or '.join(case.keys)}"
    return "refused"


def _marks(work: Path) -> dict[str, str]:
    """Every file with what changes when it is written to."""
    marks = {}
    for parent, _, names in os.walk(work):
        for name in names:
            path = Path(parent, name)
            stat = path.lstat()
            marks[os.fsencode(path).decode(errors="replace")] = f"{stat.st_ino} {stat.st_size} {stat.st_mtime_ns}"
    return marks


def _left_behind(work: Path, known: dict[str, str]) -> str:
    """What was written by halves, besides what was known before; "" if nothing was."""
    for path, mark in _marks(work).items():
        file = Path(path)
        # With a character replaced it is a text of the case's.
        if known.get(path) == mark or not file.exists() or not file.is_file():
            continue
        if any(_ASIDE.search(part) for part in file.relative_to(work).parts):
            return f"left {file.relative_to(work)}"
        if not _is_whole(file):
            return f"half-written {file.relative_to(work)}"
    return ""


def _is_whole(file: Path) -> bool:
    if file.suffix == ".ckpt":
        try:
            torch.load(file, map_location="cpu", weights_only=True)
        except Exception:
            return False
        return zipfile.ZipFile(file).testzip() is None
    if file.name == "config.yaml":
        try:
            return isinstance(yaml.safe_load(file.read_text()), dict)
        except yaml.YAMLError:
            return False
    if file.suffix == ".bin":
        return (file.parent / "meta.json").is_file()
    return True
