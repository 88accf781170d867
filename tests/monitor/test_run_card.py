"""What a run was made with can be read from its board."""

import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from kept_run import Run
from small_run import model, text

import lg
from lg.monitor import RunCard
from lg.monitor.run_card import configuration, git


def test_the_board_tells_configuration_versions_git_and_command(run: Run) -> None:
    (written,) = text(run.board, "run/configuration")
    assert written.startswith("```yaml\n") and written.endswith("\n```")
    told = yaml.safe_load(written.removeprefix("```yaml").removesuffix("```"))
    assert told["model"]["schedule"] == "local, full"
    (versions,), (told_git,), (command,) = (text(run.board, f"run/{name}") for name in ("versions", "git", "command"))
    assert f"| torch | {torch.__version__} |" in versions and f"| lg | {lg.__version__} |" in versions
    assert "| commit |" in told_git
    assert command.startswith("```sh\n")


def test_it_is_one_text_too(run: Run) -> None:
    card = run.callbacks["RunCard"]
    assert isinstance(card, RunCard)
    assert [line for line in card.markdown.splitlines() if line.startswith("## ")] == [
        "## Configuration", "## Versions", "## Git", "## Command",
    ]  # fmt: skip
    assert text(run.board, "run/git")[0] in card.markdown


def test_the_configuration_that_the_command_saved_comes_first(tmp_path: Path) -> None:
    assert "schedule" in configuration(None, model())
    assert "schedule" in configuration(str(tmp_path), model())
    (tmp_path / "config.yaml").write_text("seed_everything: 7\n", encoding="utf-8")
    assert configuration(str(tmp_path), model()) == "seed_everything: 7\n"


def run_git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.com", "-c", "init.defaultBranch=trunk"]
    done = subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_git_tells_the_commit_and_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git(tmp_path) == {"commit": "not known: no git, no repository here, or no commit in it"}
    run_git(tmp_path, "init")
    assert git(tmp_path)["commit"].startswith("not known")
    (tmp_path / "a|b.txt").write_text("one", encoding="utf-8")
    run_git(tmp_path, "add", ".")
    run_git(tmp_path, "commit", "-m", "first")
    commit = run_git(tmp_path, "rev-parse", "HEAD")
    assert git(tmp_path) == {"commit": commit, "branch": "trunk", "changed files": "none"}
    (tmp_path / "a|b.txt").write_text("two", encoding="utf-8")
    for n in range(30):
        (tmp_path / f"new{n}").touch()
    changed = git(tmp_path)["changed files"]
    assert changed.startswith("`M a|b.txt`, `?? new0`") and changed.endswith(" and 11 more")
    monkeypatch.setenv("PATH", "")
    assert git(tmp_path)["commit"].startswith("not known")
