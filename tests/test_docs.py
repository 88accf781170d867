"""What the documentation shows runs, and says what is so."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import yaml
from jsonargparse import ArgumentParser

from lg.attention import Causal, Pattern
from lg.attention.gallery import EXAMPLES
from lg.attention.pattern import NAMES
from lg.cli import main

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
NOT_SHOWN = re.compile(r"<!-- lg (.*?) -->")


def blocks(page: str, language: str) -> list[str]:
    """The code of a page, in one language; blank lines stand for what is above, so that errors tell the line."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return ["\n" * text[: match.start(1)].count("\n") + match[1] for match in found]


WITH_PYTHON = [page for page in PAGES if blocks(page, "python")]
COMMANDS = [
    shlex.split(line, comments=True)
    for page in PAGES
    for block in blocks(page, "sh")
    for line in block.splitlines()
    if line.startswith("lg ")
]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns that a page defines are forgotten afterwards, as are here those of other tests."""
    own = {name: kind for name, kind in NAMES.items() if kind.__module__.startswith("lg.")}
    monkeypatch.setattr("lg.attention.pattern.NAMES", own)


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that writes the patterns' pages, as mkdocs finds it."""
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module("pattern_pages")


@pytest.fixture
def hooks(pages: ModuleType) -> ModuleType:
    return importlib.import_module("hooks")


def test_there_are_examples() -> None:
    assert {"index.md", "attention.md", "patterns/index.md", "patterns/own.md"} <= set(WITH_PYTHON)
    assert {command[1] for command in COMMANDS} == {"fit", "cost", "plan"}


# The page says when to compile it; here that would take longer than the rest.
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_the_python_of_a_page_runs(page: str) -> None:
    # A module that stays: the parser of configurations imports every pattern that it comes upon.
    module = ModuleType("page_" + re.sub(r"\W", "_", page))
    sys.modules[module.__name__] = module
    for block in blocks(page, "python"):
        exec(compile(block, str(DOCS / page), "exec", dont_inherit=True), vars(module))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_commands_of_a_page_run(
    command: list[str], root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    trains = command[1] in ("fit", "validate") and "--print_config" not in command
    assert main([*command[1:], *["--print_config"] * trains]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("page", [page for page in PAGES if NOT_SHOWN.search((DOCS / page).read_text())])
def test_what_commands_print_is_filled_in(page: str, hooks: ModuleType) -> None:
    filled = hooks.on_page_markdown((DOCS / page).read_text(), None, None, None)
    assert "<!--" not in filled
    assert "usage: lg " in filled


def test_a_command_that_fails_fails_the_build(hooks: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="`lg patterns Windw`, which the documentation shows, ended with 2"):
        hooks.on_page_markdown("<!-- lg patterns Windw -->", None, None, None)


def test_the_gallery_links_every_pattern(hooks: ModuleType) -> None:
    filled = hooks.on_page_markdown((DOCS / "patterns" / "index.md").read_text(), None, None, None)
    assert all(f"({name}.png)" in filled and f"({name}.md)" in filled for name in EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_python_of_a_pattern_makes_it(name: str, pages: ModuleType) -> None:
    namespace: dict[str, object] = {}
    exec(pages.python(EXAMPLES[name]), namespace)
    assert namespace["pattern"] == EXAMPLES[name].real


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_yaml_of_a_pattern_makes_it(name: str, pages: ModuleType) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--patterns", type=dict[str, Pattern])
    patterns = yaml.safe_load(pages.in_yaml(EXAMPLES[name]))["model"]["init_args"]["patterns"]
    made = parser.instantiate_classes(parser.parse_object({"patterns": patterns})).patterns
    real = EXAMPLES[name].real
    assert made["local"] == (real & Causal() if name in ("GlobalTokens", "longformer") else real)


@pytest.mark.parametrize("name", ["GlobalTokens", "longformer", "PrefixLM"])
def test_the_yaml_of_a_pattern_that_sees_later_keys_trains(
    name: str,
    pages: ModuleType,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    for number in range(8):
        Path(f"texts/{number}.txt").write_text(f"{number}: the quick brown fox. " * 30)
    Path("own.yaml").write_text(f"base: {root / 'configs' / 'base.yaml'}\n{pages.in_yaml(EXAMPLES[name])}")
    words = [
        "--config=own.yaml",
        "--model.schedule=5*local, full",
        '--data.source={"class_path": "Folder", "init_args": {"path": "texts"}}',
        "--data.row_length=256",
        "--trainer.accelerator=cpu",
        "--trainer.max_steps=1",
        "--trainer.val_check_interval=1",
        "--trainer.limit_val_batches=1",
        "--trainer.log_every_n_steps=1",
    ]
    assert main(["fit", *words]) == 0, capsys.readouterr().err


def test_pages_of_patterns_that_see_later_keys_say_how_they_train(
    pages: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "LENGTHS", (1024, 2048))
    assert "In a configuration, with `& Causal()`" in pages.written(EXAMPLES["longformer"])
    page = pages.written(EXAMPLES["PrefixLM"])
    assert "data:\n  init_args:\n    prefix: 0.3\n" in page
    assert "In a configuration:" in pages.written(EXAMPLES["Window"])


def test_the_predicate_of_a_page_is_no_private_code(pages: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "LENGTHS", (1024, 2048))
    page = pages.written(EXAMPLES["PerHead"])
    assert "self._" not in page
    assert "## The predicate\n\n```python\nPerHead((Causal(), SinkWindow(window=8, sinks=4)), heads=(0, 1, 1))" in page


def test_a_page_has_the_pattern_s_text_papers_and_cost(pages: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "LENGTHS", (1024, 4096))
    page = pages.written(EXAMPLES["SinkWindow"])
    assert "`(k <= q) & ((q - k < 12) | (k < 4))`" in page
    assert "[arXiv 2309.17453](https://arxiv.org/abs/2309.17453)" in page
    # 1984 + 64 of 4096 keys, and pairs of a triangle that is cut off.
    seen = sum(min(q + 1, 1984) + min(max(q + 1 - 1984, 0), 64) for q in range(4096))
    assert f"At 4K tokens {seen / (4096 * 4097 / 2):.1%} and 50.0%." in page
    assert "lists no tile in which nothing is seen" in page
    assert pages.picture(EXAMPLES["SinkWindow"], (0, 20, 33)).startswith(b"\x89PNG")


def test_a_composition_s_page_tells_its_excess(pages: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "LENGTHS", (1024, 2048))
    page = pages.written(EXAMPLES["sparse-transformer"])
    assert "Window(window=8) | Dilated(window=6, dilation=8)" in page
    assert "class_path: Or" in page


def test_the_curve_is_well_formed_and_higher_where_shares_are(pages: ModuleType) -> None:
    text = importlib.import_module("cost_curve").svg((1024, 4096), {"one": (1.0, 0.5), "other": (1.0, 0.49)})
    tree = ElementTree.fromstring(text)
    lines = [node.attrib["points"] for node in tree if node.tag.endswith("polyline")]
    heights = [float(point.split(",")[1]) for point in " ".join(lines).split()]
    assert heights[0] == heights[2] < heights[1] < heights[3]
    labels = {node.text: float(node.attrib["y"]) for node in tree if node.text in ("one", "other")}
    assert labels["other"] - labels["one"] == 14
