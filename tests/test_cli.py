"""The `lg` command: quick answers, runs that say what comes next, one sentence for a mistake."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lg import __version__
from lg.cli import COMMANDS, main, raised_in_lg

HEAVY = ("torch", "lightning", "jsonargparse", "yaml")


@pytest.fixture
def hybrid(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The flagship on a page of text, two steps, in a folder of its own."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(8):
        (texts / f"{number}.txt").write_text(f"{number}: the quick brown fox. " * 30)
    monkeypatch.chdir(tmp_path)
    return [
        f"--config={root / 'configs' / 'hybrid.yaml'}",
        '--data.source={"class_path": "Folder", "init_args": {"path": "texts"}}',
        "--data.row_length=128",
        "--trainer.accelerator=cpu",
        "--trainer.max_steps=2",
        "--trainer.val_check_interval=2",
        "--trainer.limit_val_batches=1",
        "--trainer.log_every_n_steps=1",
    ]


@pytest.mark.parametrize("args", [[], ["--help"], ["--version"], ["train"]])
def test_answers_before_any_heavy_import(root: Path, args: list[str]) -> None:
    code = f"import sys; from lg.cli import main; main({args!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert not {name.split(".")[0] for name in done.stdout.split()} & set(HEAVY)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lg {__version__}\n"


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    told = capsys.readouterr().out
    assert all(f"\n  {name} " in told for name in COMMANDS)


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"]) == 2
    assert "'train' is not a command; allowed: fit, validate" in capsys.readouterr().err


def test_print_config_stands_alone(hybrid: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *hybrid, "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert "base:" not in printed
    assert "row_length: 128" in printed
    assert "window: 128" in printed


# Lightning remarks that a run that goes on has another folder, and begins its epoch anew.
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.filterwarnings("ignore:The dirpath has changed from:UserWarning")
def test_fit_says_what_comes_next_and_it_works(hybrid: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *hybrid]) == 0
    told = capsys.readouterr().out
    commands = [line.split() for line in told.splitlines() if line.startswith("  lg ")]
    assert "  tensorboard --logdir logs\n" in told
    # Where the shell does not find `lg`, the way to find it is told first.
    hidden = shutil.which("lg") is None and Path(sys.executable).with_name("activate").is_file()
    assert ("/bin/activate\n" in told) == hidden
    assert [command[1] for command in commands] == ["validate", "fit"]
    for command in commands:
        assert main(command[1:]) == 0
    assert "step=00000004.ckpt" in capsys.readouterr().out


def test_environment_gives_defaults(
    hybrid: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LG_FIT__TRAINER__LIMIT_TRAIN_BATCHES", "7")
    assert main(["fit", *hybrid, "--print_config"]) == 0
    assert "limit_train_batches: 7" in capsys.readouterr().out


PATTERN = """
from dataclasses import dataclass
from lg.attention import Pattern

@dataclass(frozen=True)
class Near(Pattern):
    width: int

    def sees(self, q, k, h):
        return (k <= q) & (q - k < self.width)
"""


def test_a_pattern_in_the_working_directory_trains(
    root: Path, hybrid: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(PATTERN)
    # Like the console script, a file in another folder: Python does not look here for mine.py.
    script = tmp_path / "bin" / "lg"
    script.parent.mkdir()
    script.write_text("from lg.cli import entry\nentry()\n")
    monkeypatch.setenv("PYTHONPATH", str(root))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    local = '{"class_path": "mine.Near", "init_args": {"width": 16}}'
    command = [sys.executable, script, "fit", *hybrid, f"--model.patterns.local={local}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "what to type next:" in done.stdout


MISTAKES = {
    "unknown pattern": (
        "--model.patterns.local=Windw",
        "model.init_args.patterns.local: 'Windw' is not a known Pattern; did you mean Window?",
    ),
    "unknown key": (
        "--model.schedul=6*full",
        "model.init_args.schedul: not a known key; did you mean schedule? allowed: patterns, ",
    ),
    "unknown trainer key": (
        "--trainer.max_step=2",
        "trainer.max_step: not a known key; did you mean max_steps? (--help lists all)",
    ),
    "window below 1": (
        "--model.patterns.local.window=0",
        "SinkWindow.window=0 is not allowed; it must be an integer of at least 1 "
        "(YAML: model.init_args.patterns.local.init_args.window)",
    ),
    "schedule of another depth": ("--model.schedule=3*full", "model.init_args.schedule"),
    "row length below 1": (
        "--data.row_length=0",
        "data.init_args.row_length: 0 is not allowed; it must be at least 1",
    ),
    "missing folder": (
        '--data.source={"class_path": "Folder", "init_args": {"path": "nowhere"}}',
        "data.init_args.source.init_args.path: 'nowhere' is not a folder",
    ),
    "missing config": (
        "--config=hybird.yaml",
        "--config: 'hybird.yaml' is not a file; . has no YAML file",
    ),
    "missing checkpoint": ("--ckpt_path=gone.ckpt", "ckpt_path: 'gone.ckpt' does not exist"),
    "wrong type": ("--model.learning_rate=fast", "model.init_args.learning_rate: 'fast' is not"),
    "unknown accelerator": ("--trainer.accelerator=banana", "invalid accelerator name"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_sentence(mistake: str, hybrid: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    option, sentence = MISTAKES[mistake]
    assert main(["fit", *hybrid, option]) == 2
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lg fit:")]
    assert sentence in told


def test_nothing_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit"]) == 2
    assert "data, model: missing; name a configuration" in capsys.readouterr().err


def test_the_traceback_is_there_for_the_asking(
    hybrid: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *hybrid, "--data.row_length=0"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("LG_TRACEBACK", "1")
    assert main(["fit", *hybrid, "--data.row_length=0"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("statement", "ours"),
    [
        ("raise ValueError('window: 0 is not allowed')", True),
        ("import torch; torch.optim.SGD([], lr=0.1)", False),
    ],
)
def test_only_what_lg_raises_is_the_users_fault(statement: str, ours: bool) -> None:
    with pytest.raises((ValueError, RuntimeError)) as caught:
        exec(statement, {"__name__": "lg.models.hybrid"})
    assert raised_in_lg(caught.value.__traceback__) is ours
    with pytest.raises((ValueError, RuntimeError)) as caught:
        exec(statement, {"__name__": "elsewhere"})
    assert not raised_in_lg(caught.value.__traceback__)
