"""`lg check`: a verdict a row on what a configuration would use, or on all that there is; what fails is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lg.attention import Documents, SinkWindow, Tiles
from lg.attention.attend import IMPLEMENTATIONS
from lg.attention.check import case, memory, refused
from lg.attention.impl import gather
from lg.cli import main


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short problems, nothing remembered, an empty folder."""
    monkeypatch.setattr(case, "_LENGTH", 333)
    monkeypatch.setenv("LG_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def hybrid(root: Path) -> str:
    return f"--config={root / 'configs' / 'hybrid.yaml'}"


class Wrong:
    """Gathered attention, with its dq too large; as it was if asked of a window."""

    def refusal(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> str | None:
        return None

    def run(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
        q = q * 1
        q.register_hook(lambda grad: 1.1 * grad)
        return gather.run(q, k, v, tiles, scale)


def rows(told: str) -> list[list[str]]:
    """The rows of the table, in words."""
    lines = told.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("  backend "))
    return [line.split() for line in lines[first + 1 : lines.index("", first)]]


def test_the_flagship_passes_and_is_remembered(hybrid: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", hybrid, "--trainer.accelerator=cpu"]) == 2
    assert "trainer: not a known key" in capsys.readouterr().err
    for remembered in ([], ["(remembered)"]):
        assert main(["check", hybrid, "--device=cpu", "--json=verdicts.json"]) == 0
        told = capsys.readouterr().out
        assert told.startswith("tiny: 2*local, 2*full, 2*local\ncpu (")
        assert f"torch {torch.__version__}" in told.splitlines()[1]
        table = rows(told)
        assert [row[:5] for row in table] == [
            [name, pattern, "32", "float32", documents]
            for pattern in ("local", "full")
            for documents in ("packed", "one")
            for name in ("sdpa", "gather")
        ]
        assert table[0][5:8] == ["refused:", "it", "computes"]
        assert table[1][7:] == ["passed", *remembered]
        assert 0 < float(table[1][5]) <= 2
        assert "\n6 passed, 2 refused\nremembered in " in told
        figures = json.loads(Path("verdicts.json").read_text())
        assert figures["machine"]["torch"] == torch.__version__
        assert [row["verdict"] for row in figures["rows"]] == ["refused", "passed"] * 2 + ["passed"] * 4
        assert figures["rows"][1]["sees"] == "(k <= q) & ((q - k < 128) | (k < 16))"
        assert figures["rows"][1]["remembered"] is bool(remembered)
        memory._shelf.cache_clear()
    assert main(["check", hybrid, "--device=cpu", "--again", "--patterns=full"]) == 0
    told = capsys.readouterr().out
    assert "remembered)" not in told
    assert len(rows(told)) == 4


def test_what_fails_is_told_and_refused_from_then_on(
    hybrid: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(IMPLEMENTATIONS, "gather", Wrong())  # type: ignore[arg-type]
    for _ in range(2):
        assert main(["check", hybrid, "--device=cpu"]) == 1
        told = capsys.readouterr().out
        assert " failed: it failed the check of its gradients on this device: " in told
        assert "\n2 passed, 4 failed, 2 refused\n" in told
        assert (
            "nothing here computes SinkWindow(window=128, sinks=16), head width 32, float32, packed documents" in told
        )
        assert "Causal(), head" not in told.rpartition("\n\n")[2]
        memory._shelf.cache_clear()
    tiles = SinkWindow(window=128, sinks=16).tiles(Documents(300), 2)
    q, k = torch.zeros(1, 4, 300, 32), torch.zeros(1, 2, 300, 32)
    assert "checks anew" in str(refused("gather", q, k, k, tiles))
    monkeypatch.undo()


def test_an_implementation_that_is_named_is_the_one_that_is_checked(
    hybrid: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", hybrid, "--device=cpu", "--model.attention=flex"]) == 1
    told = capsys.readouterr().out
    assert {row[0] for row in rows(told)} == {"flex"}
    assert told.count("refused: FlexAttention has no backward pass on a CPU; 'gather' has") == 4
    assert told.count("nothing here computes ") == 4
    assert main(["check", hybrid, "--device=cpu", "--impls=gather", "--patterns=local"]) == 0
    assert {row[0] for row in rows(capsys.readouterr().out)} == {"gather"}


SAYS = """
base: {base}
data:
  init_args:
    document_mask: false
    batch_size: {rows}
trainer:
  accelerator: {accelerator}
  precision: {precision}
"""


@pytest.mark.parametrize(
    ("precision", "num_rows", "words"),
    [
        ("bf16-mixed", 1, ["bfloat16", "one"]),
        ("16-true", 2, ["float16", "packed"]),
        (64, 1, ["float64", "one"]),
        ("null", 1, ["float32", "one"]),
    ],
)
def test_types_and_packing_are_the_configuration_s(
    precision: Any, num_rows: int, words: list[str], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = root / "configs" / "hybrid.yaml"
    Path("own.yaml").write_text(SAYS.format(base=base, rows=num_rows, accelerator="cpu", precision=precision))
    assert main(["check", "--config=own.yaml", "--patterns=local", "--impls=gather"]) == 0
    (row,) = rows(capsys.readouterr().out)
    assert row[3:5] == words


def test_all_that_there_is_goes_on_where_it_was_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["check", "--all", "--device=cpu", "--impls=gather", "--widths=16,8", "--patterns=Window(1),PrefixLM"]
    remember = memory.remember

    def interrupted(*args: Any) -> None:
        remember(*args)
        if args[1].facts.width == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(memory, "remember", interrupted)
        assert main([*words, "--json=verdicts.json"]) == 130
    told = capsys.readouterr()
    assert told.err.endswith("lg check: interrupted; the same command goes on from here\n")
    assert len(json.loads(Path("verdicts.json").read_text())["rows"]) == 4
    memory._shelf.cache_clear()
    assert main(words) == 0
    told = capsys.readouterr()
    assert told.out.startswith("every kind of attention\n")
    table = rows(told.out)
    assert [row[2] for row in table] == ["16"] * 4 + ["8"] * 4
    assert [row[-1] for row in table] == ["(remembered)"] * 5 + ["passed"] * 3
    assert told.err == "checking\n"


def test_a_terminal_has_one_line_of_progress(
    hybrid: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["check", hybrid, "--device=cpu", "--impls=gather"]) == 0
    told = capsys.readouterr().err
    assert "\n" not in told
    assert "s  checking: 2 of 4, gather, local" in told
    assert told.endswith("\r")


def test_help_comes_before_any_heavy_import(root: Path) -> None:
    for words in (["check"], ["check", "--help"]):
        code = f"import sys; from lg.cli import main; main({words!r}); print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
        assert done.stdout.startswith("usage: lg check --config FILE")
        assert not {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()} & {"torch", "lightning"}


def test_what_was_parsed_can_be_printed(hybrid: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", hybrid, "--print_config"]) == 0
    assert "class_path: lg.models.hybrid.HybridLM" in capsys.readouterr().out


MISTAKES = {
    "--all --widht=3": "--widht=3: not a known option of lg check --all (see lg check --help)",
    "--all --widths=0": "--widths: '0' is not allowed; it must be a head width from 1 to 1024",
    "--all --widths": "--widths: a value is needed (see lg check --help)",
    "--all --dtypes=bf16": "--dtypes: 'bf16' is not allowed; allowed: bfloat16, float16, float32, float64",
    "--all --impls=flash9": "--impls: 'flash9' is not known; allowed: dense, gather, ",
    "--all --patterns=Windw": "--patterns: 'Windw' is not known; allowed: Causal, Window(1), Window, ",
    "--all --device=tpu": "--device: 'tpu' is not checked; allowed: auto, gpu, cuda, cpu",
    "--all --json=no/where.json": "--json: 'no/where.json' is not allowed; it must be a .json file in a folder that",
    "CONFIG --widths=64": "--widths: only --all takes it; a configuration's is model.init_args.decoder.head_width",
    "CONFIG --patterns=Window": "--patterns: 'Window' is not known; allowed: local, full",
    "CONFIG --model.patterns.local=Windw": "'Windw' is not a known Pattern; did you mean Window?",
    "--impls=gather": "model: missing; name a configuration",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_told_in_one_sentence(words: str, hybrid: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *words.replace("CONFIG", hybrid).split()]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("lg check: ") and MISTAKES[words] in told.err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("accelerator", "precision", "sentence"),
    [
        ("tpu", "32-true", "trainer.accelerator: 'tpu' is not checked; allowed: auto, gpu, cuda, cpu"),
        ("cpu", "transformer-engine", "trainer.precision: 'transformer-engine' is not checked; allowed begin with 16"),
    ],
)
def test_what_the_trainer_s_section_says_is_told_with_its_key(
    accelerator: str, precision: str, sentence: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = root / "configs" / "hybrid.yaml"
    Path("own.yaml").write_text(SAYS.format(base=base, rows=1, accelerator=accelerator, precision=precision))
    assert main(["check", "--config=own.yaml"]) == 2
    assert sentence in capsys.readouterr().err


def test_a_cache_that_cannot_be_written(hybrid: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("../cache").write_text("a file where a folder should be")
    assert main(["check", hybrid, "--device=cpu"]) == 2
    assert "lg check: LG_CACHE: " in capsys.readouterr().err


@pytest.mark.gpu
def test_on_a_gpu_the_flagship_passes(hybrid: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", hybrid, "--dtypes=bfloat16", "--model.decoder.head_width=64"]) == 0, capsys.readouterr().out
