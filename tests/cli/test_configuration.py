"""Files build on a base: nested values merge, other classes replace, circles are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lg.cli.configuration import as_argument, gather, load, merge

BASE = """
model:
  class_path: HybridLM
  init_args:
    schedule: 6*full
    learning_rate: 3e-3
    patterns:
      full: Causal
      local: {class_path: SinkWindow, init_args: {window: 256, sinks: 16}}
trainer: {callbacks: [{class_path: ModelCheckpoint}]}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path


def on_base(folder: Path, text: str) -> dict[str, Any]:
    (folder / "own.yaml").write_text(f"base: base.yaml\n{text}")
    return load(folder / "own.yaml")


def test_one_value_keeps_its_neighbours(base: Path) -> None:
    own = on_base(base, "model: {init_args: {schedule: 6*local}}")
    expected = load(base / "base.yaml")
    expected["model"]["init_args"]["schedule"] = "6*local"
    assert own == expected
    assert own["model"]["init_args"]["learning_rate"] == 3e-3


def test_one_pattern_of_several(base: Path) -> None:
    own = on_base(base, "model: {init_args: {patterns: {local: {init_args: {window: 8}}}}}")
    assert own["model"]["init_args"]["patterns"] == {
        "full": "Causal",
        "local": {"class_path": "SinkWindow", "init_args": {"window": 8, "sinks": 16}},
    }


def test_another_class_takes_none_of_the_first_ones_arguments(base: Path) -> None:
    window = "{class_path: Window, init_args: {window: 8}}"
    own = on_base(base, f"model: {{init_args: {{patterns: {{local: {window}}}}}}}")
    assert own["model"]["init_args"]["patterns"]["local"]["init_args"] == {"window": 8}


def test_a_bare_class_name_takes_arguments() -> None:
    named = merge({"source": "Stdlib"}, {"source": {"init_args": {"exclude": []}}})
    assert named == {"source": {"class_path": "Stdlib", "init_args": {"exclude": []}}}


def test_lists_are_replaced(base: Path) -> None:
    assert on_base(base, "trainer: {callbacks: []}")["trainer"] == {"callbacks": []}


def test_bases_are_relative_to_their_file(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (base / "deep").mkdir()
    (base / "deep" / "middle.yaml").write_text("base: ../base.yaml\nseed_everything: 1")
    (base / "deep" / "own.yaml").write_text("base: middle.yaml\nseed_everything: 2")
    monkeypatch.chdir("/")
    own = load(base / "deep" / "own.yaml")
    assert own["seed_everything"] == 2
    assert own["model"]["class_path"] == "HybridLM"
    assert "base" not in own


def test_gather_merges_files_in_order_and_leaves_the_rest(base: Path) -> None:
    (base / "more.yaml").write_text("model: {init_args: {schedule: 6*local}}")
    first, second = str(base / "base.yaml"), str(base / "more.yaml")
    config, rest = gather(["--config", first, "--trainer.max_steps=2", f"--config={second}", "-x"])
    assert rest == ["--trainer.max_steps=2", "-x"]
    assert config["model"]["init_args"]["schedule"] == "6*local"
    assert config["model"]["init_args"]["patterns"]["full"] == "Causal"


def test_as_argument_keeps_types() -> None:
    config = {"a": "3e-3", "b": 1e-5, "c": "yes", "d": None, "e": [True, "ü 🙂"], "f": "2*local"}
    assert json.loads(as_argument(config)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "base: none.yaml",
            "base (in own.yaml): 'none.yaml' is not a file; . has base.yaml, own.yaml",
        ),
        (
            "base: own.yaml",
            "base: own.yaml -> own.yaml runs in a circle; a chain of bases must end",
        ),
        (
            "base: [a, b]",
            "base: ['a', 'b'] in own.yaml is not allowed; it must be one YAML file's path",
        ),
        ("- a\n- b", "--config: 'own.yaml' must map keys to values, not be ['a', 'b']"),
        ("a: [", "--config: 'own.yaml' is not YAML: while parsing a flow node"),
    ],
)
def test_refusals(base: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    monkeypatch.chdir(base)
    Path("own.yaml").write_text(text)
    with pytest.raises(ValueError) as caught:
        gather(["--config", "own.yaml"])
    assert str(caught.value).startswith(message)


def test_longer_circle(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(base)
    Path("a.yaml").write_text("base: b.yaml")
    Path("b.yaml").write_text("base: ./a.yaml")
    with pytest.raises(ValueError, match=r"a.yaml -> b.yaml -> a.yaml runs in a circle"):
        load(Path("a.yaml"))


def test_config_without_a_file() -> None:
    with pytest.raises(ValueError, match=r"--config: a YAML file is needed"):
        gather(["--config"])


LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{key}: &{key} [{', '.join(['*' + under] * 10)}]\n" for under, key in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (LAUGHS, "more than 10000 values"),
        ("a: &a [*a]", "40 levels"),
        ("a: &a {b: *a}", "40 levels"),
        ("a: " + "[" * 60 + "]" * 60, "40 levels"),
        ("a: " + "[" * 20_000 + "]" * 20_000, "is not YAML|40 levels"),
        ("a: !!bool perhaps", "is not YAML"),
        ("a: {b: [1, 9223372036854775808]}", "^a.b.1: an integer of 65 bits is not allowed"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ValueError, match=told):
        load(tmp_path / "c.yaml")


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "loop.yaml", "folder"])
def test_a_path_that_no_file_can_have(tmp_path: Path, path: str) -> None:
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="is not a file"):
        load(tmp_path / path)


def test_a_text_with_a_nul_character_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text('trainer: {default_root_dir: "a\\0b"}\n')
    with pytest.raises(ValueError, match=r"trainer\.default_root_dir: .* must not hold a NUL"):
        gather(["--config", str(tmp_path / "a.yaml")])
