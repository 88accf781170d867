"""``lg patterns`` shows what there is, what a configuration has, and what a user wrote."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lg.attention import Causal, Chunked, PerHead, PrefixLM, SinkWindow, Window
from lg.attention.gallery import EXAMPLES
from lg.attention.pattern import NAMES
from lg.cli import main
from lg.cli.pattern_card import fitting_length

MINE = """
from dataclasses import dataclass
from lg.attention import Pattern

@dataclass(frozen=True)
class CloseBy(Pattern):
    \"\"\"The last few.

    Attributes:
        width: how many.
    \"\"\"
    width: int

    def __post_init__(self):
        if self.width < 1:
            raise ValueError("CloseBy needs a width")

    def sees(self, q, k, h):
        return (k <= q) & (q - k < self.width)

@dataclass(frozen=True)
class Hasty(Pattern):
    def sees(self, q, k, h):
        return k <= q and q - k < 3

@dataclass(frozen=True)
class Long(Pattern):
    length: int

    def sees(self, q, k, h):
        return (k <= q) & (q - k < self.length)

class NoPattern:
    pass
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's in the working directory; its patterns are forgotten afterwards."""
    (tmp_path / "mine_drawn.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("lg.attention.pattern.NAMES", dict(NAMES))
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, "mine_drawn", raising=False)


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["patterns", *words]) == 0
    return capsys.readouterr().out


def test_help_is_there_before_any_heavy_import(root: Path) -> None:
    code = "import sys; from lg.cli import main; main(['patterns', '--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: lg patterns")
    assert not {name.split(".")[0] for name in done.stdout.split()} & {"torch", "lightning"}


def test_all_are_listed_with_text_grid_heads_and_causality(capsys: pytest.CaptureFixture[str]) -> None:
    listed = told(capsys)
    blocks = listed.rstrip("\n").split("\n\n")
    assert len(blocks) == len(EXAMPLES)
    for example, block in zip(EXAMPLES.values(), blocks, strict=True):
        words = " ".join(block.split())
        assert f" {example.name} " in words
        assert any(0x2800 < ord(character) < 0x2900 for character in block)
        assert ("heads differ" in words) == example.small.heads_differ
        assert ("causal no" in words) == (example.name in ("PrefixLM", "GlobalTokens", "longformer"))
        assert f"grid {example.small.grid} token" in words
    assert "(k <= q) & ((q - k < 12) | (k < 4))" in listed


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_the_list_keeps_within_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert shutil.get_terminal_size().columns == columns
    assert max(map(len, told(capsys).splitlines())) <= columns


def test_one_is_shown_larger_with_its_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    shown = told(capsys, "Strided")
    assert "    head_step: blocks by which each next KV head's stripes lie earlier." in shown
    assert "Strided(block=4, local_blocks=2, stride=4, head_step=1, offset=0), 48 tokens" in " ".join(shown.split())
    assert len(shown.split("\n\n")[-1].splitlines()) == 48 // 4


def test_a_size_of_ones_own_is_drawn_at_a_length_that_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert "SinkWindow(window=64, sinks=4), 512 tokens" in told(capsys, "SinkWindow", "--window=64")
    assert "SinkWindow(window=64, sinks=9), 32,768 tokens" in told(
        capsys, "SinkWindow", "--window", "64", "--sinks", "9", "--length", "32K"
    )


def test_the_name_may_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    first = told(capsys, "SinkWindow", "--window=64", "--sinks=2")
    assert told(capsys, "--window=64", "SinkWindow", "--sinks=2") == first
    assert told(capsys, "--window", "64", "--sinks", "2", "SinkWindow") == first


@pytest.mark.usefixtures("mine")
def test_a_field_that_is_called_as_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    shown = told(capsys, "mine_drawn.Long", "--init_args.length=9", "--length=96")
    assert "Long(length=9), 96 tokens" in shown


def test_a_composition_by_its_name_and_by_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Window(window=12) | GlobalTokens(count=4), 48 tokens" in told(capsys, "longformer")
    assert "Causal() & Chunked(chunk=32), 128 tokens" in told(
        capsys, "And", "--left=Causal", "--right=Chunked", "--right.chunk=32"
    )


@pytest.mark.usefixtures("mine")
def test_a_class_of_the_users(capsys: pytest.CaptureFixture[str]) -> None:
    shown = told(capsys, "mine_drawn.CloseBy", "--width=32")
    assert shown.startswith("mine_drawn.CloseBy\n\nThe last few.\n\nAttributes:\n    width: how many.\n")
    assert "CloseBy(width=32), 128 tokens" in shown


def test_a_field_that_is_called_heads(capsys: pytest.CaptureFixture[str]) -> None:
    shown = told(
        capsys,
        "PerHead",
        '--patterns=["Causal", {"class_path": "Window", "init_args": {"window": 9}}]',
        "--heads=[1, 0]",
    )
    assert "PerHead((Causal(), Window(window=9)), heads=(1, 0))" in shown


def test_heads_as_many_as_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert "heads   differ; 2 here" in told(capsys, "Strided", "--kv_heads=2")
    # What is made for a number of heads has that.
    assert "heads   differ; 3 here" in told(capsys, "PerHead")
    assert "heads   differ; 3 here" in told(capsys, "PerHead", "--kv_heads=3")
    assert "heads   differ; 6 here" in told(capsys, "ShiftedGroups", "--group=8", "--num_kv_heads=6")


def test_patterns_and_schedule_of_a_configuration(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = f"--config={root / 'configs' / 'hybrid.yaml'}"
    listed = told(capsys, config)
    assert listed.startswith("schedule  2*local, 2*full, 2*local\n")
    assert "SinkWindow(window=128, sinks=16), 1,024 tokens" in listed
    assert "Causal(), 1,024 tokens" in listed
    one = told(capsys, config, "local", "--model.patterns.local.window=32")
    assert "SinkWindow(window=32, sinks=16), 256 tokens" in one
    assert "Causal" not in one


def test_pictures_are_written_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "pictures"
    assert f"{len(EXAMPLES)} pictures in {folder}" in told(capsys, "--png", str(folder))
    # Nothing that was written aside is left.
    assert {path.name for path in folder.iterdir()} == {f"{name}.png" for name in EXAMPLES}
    for path in folder.iterdir():
        with Image.open(path) as image:
            assert image.format == "PNG" and len(np.unique(np.asarray(image))) > 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_ends_it_quietly(root: Path, unbuffered: str) -> None:
    read, written = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "lg", "patterns", "Causal"],
        cwd=root,
        stdout=written,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    os.close(written)
    assert (done.returncode, done.stderr) == (141, b"")


def test_another_broken_pipe_is_an_error(root: Path) -> None:
    code = "import lg.cli\ndef fails():\n    raise BrokenPipeError\nlg.cli.main = fails\nlg.cli.entry()"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1 and "BrokenPipeError" in done.stderr


def test_where_stdout_has_no_braille_there_is_ascii(root: Path) -> None:
    command = [sys.executable, "-m", "lg", "patterns", "Causal"]
    done = subprocess.run(
        command, cwd=root, capture_output=True, env={"PYTHONIOENCODING": "ascii", "COLUMNS": "80"}, check=True
    )
    assert done.stdout.decode("ascii").endswith("\n" + ":" * 47 + ".\n")


@pytest.mark.parametrize(
    ("pattern", "heads", "length"),
    [
        (Window(64), 1, 256),
        (SinkWindow(64, 4), 1, 512),
        (Causal(), 1, 64),
        (Chunked(100), 1, 128),
        (PrefixLM(), 1, 64),
        (PerHead((Causal(), Window(300)), (0, 1)), 2, 2048),
    ],
)
def test_fitting_length(pattern: Window, heads: int, length: int) -> None:
    assert fitting_length(pattern, heads) == length


MISTAKES = {
    "unknown name": (["Windw"], "'Windw' is not a known pattern; did you mean Window? allowed: Causal, Window, "),
    "unknown field": (["Window", "--windw=3"], "windw: not a known key; did you mean window? allowed: window"),
    "wrong type": (["Window", "--window=x"], "window: 'x' is not allowed; it must be int"),
    "refused by the class": (
        ["Window", "--window=0"],
        "Window.window=0 is not allowed; it must be an integer of at le",
    ),
    "missing field": (["And", "--left=Causal"], "right: missing; And needs it"),
    "field of a composition": (
        ["longformer", "--window=3"],
        "--window=3: longformer has no fields to set; it is a composition, Window(window=12) | GlobalTokens(count=4)",
    ),
    "two names": (["Strided", "Window"], "'Window': one pattern is shown at a time, and Strided is named already"),
    "a field without its value": (["Window", "--window"], "--window: a value is needed"),
    "a field without its value, and another": (["SinkWindow", "--window", "--sinks=2"], "--window: a value is needed"),
    "a field that is called as an option": (
        ["mine_drawn.Long", "--length=9"],
        "length: missing; Long needs it (--length is an option of lg patterns itself: the field is --init_args.length)",
    ),
    "other heads than it is made for": (
        ["ShiftedGroups", "--group=8", "--num_kv_heads=6", "--kv_heads=4"],
        "--kv_heads: 4 is not allowed; ShiftedGroups is made for 6 KV heads: "
        "ShiftedGroups(group=8, num_kv_heads=6, shifted=None)",
    ),
    "other heads than an example is made for": (["PerHead", "--kv_heads=2"], "PerHead is made for 3 KV heads"),
    "heads of all": (["--kv_heads=2"], "--kv_heads: 2 is not allowed; PerHead is made for 3 KV heads"),
    "other heads than one of a configuration is made for": (
        [
            "--config=own.yaml",
            "--kv_heads=2",
            '--model.patterns.local={"class_path": "PerHead", "init_args": {"patterns": ["Causal"], "heads": [0]}}',
        ],
        "--kv_heads: 2 is not allowed; local is made for 1 KV heads",
    ),
    "no such module": (["no_such_module.Near"], "'no_such_module.Near' cannot be used: No module named"),
    "no such class": (
        ["mine_drawn.Nea"],
        "'mine_drawn.Nea' cannot be used: module 'mine_drawn' has no attribute 'Nea'",
    ),
    "no pattern": (["mine_drawn.NoPattern"], "'mine_drawn.NoPattern' is not a known Pattern"),
    "refused by the user's class": (["mine_drawn.CloseBy", "--width=0"], "CloseBy needs a width"),
    "a predicate that cannot be read": (["mine_drawn.Hasty"], "Hasty.sees: `k <= q` is used as a single yes or no"),
    "length": (["Causal", "--length=1G"], "--length: '1G' is not allowed; write tokens from 1 to 16M"),
    "heads": (["Strided", "--kv_heads", "none"], "--kv_heads: 'none' is not allowed; it must be a number of KV heads"),
    "no value": (["Causal", "--png"], "--png: a value is needed"),
    "an option of no pattern": (["--window=3"], "--window=3: not a known option without the name of a pattern"),
    "a folder that is a file": (["Causal", "--png=mine_drawn.py"], "--png: 'mine_drawn.py' cannot be written to"),
    "missing file": (["--config=gone.yaml"], "--config: 'gone.yaml' is not a file"),
    "not of the configuration": (["loca", "--config=own.yaml"], "'loca' is not a pattern of this configuration; allow"),
    "a wrong configuration": (["--config=own.yaml", "--model.schedule=3*full"], "model.init_args.schedule"),
}


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_sentence(mistake: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.yaml").write_text(f"base: {root / 'configs' / 'hybrid.yaml'}\n")
    words, sentence = MISTAKES[mistake]
    assert main(["patterns", *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lg patterns:")]
    assert sentence in line
