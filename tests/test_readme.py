"""Every command that the documents show parses, and every file that they name is there."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from lg.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ("README.md", "CONTRIBUTING.md")


def commands(document: str) -> Iterator[list[str]]:
    """The words of each line of the document's shell blocks, comments left out."""
    text = (ROOT / document).read_text(encoding="utf-8")
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.splitlines():
            if words := shlex.split(line, comments=True):
                yield words


ALL = [words for document in DOCUMENTS for words in commands(document)]
LG = [words[1:] for words in ALL if words[0] == "lg"]


def test_every_command_is_of_a_known_kind() -> None:
    assert {words[0] for words in ALL} <= {"make", "lg", "tensorboard"}


@pytest.mark.parametrize("args", LG, ids=" ".join)
def test_lg_command_parses(
    args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    # These two are quick; the others only say what they would do.
    quick = {"patterns": "SinkWindow", "data": "austen"}
    printing = [] if args[0] in quick or "--print_config" in args else ["--print_config"]
    assert main([*args, *printing]) == 0
    assert quick.get(args[0], "class_path: lg.models.hybrid.HybridLM") in capsys.readouterr().out


def test_make_targets_exist() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    shown = {words[-1] for words in ALL if words[0] == "make"}
    assert shown
    assert shown <= set(targets)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_linked_files_exist(document: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / document).read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_readme_is_short_and_its_first_command_early() -> None:
    assert len(README.splitlines()) <= 120
    assert "make fit" in README.split("```sh", 1)[1].splitlines()[1]
    assert README.split("make fit")[0].count("\n") < 20


def test_measured_tables_are_those_of_the_result_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "benchmarks" / "readme.py")
    assert spec and spec.loader
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert tables.rewritten(README) == README
    assert "inference.md" in tables.PAGES
    for name in tables.PAGES:
        page = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert tables.page_rewritten(name, page) == page and page.count(tables.END) == 1, name
    assert README.count(" tokens/s ") == 1


def test_readme_pattern_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (python,) = re.findall(r"```python\n# mine.py\n(.*?)```", README, re.DOTALL)
    (yaml,) = re.findall(r"```yaml\n# mine.yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "mine.py").write_text(python)
    (tmp_path / "mine.yaml").write_text(yaml)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["fit", "--config", "mine.yaml", "--print_config"]) == 0
    assert "class_path: mine.Near" in capsys.readouterr().out
