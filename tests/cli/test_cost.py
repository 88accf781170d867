"""`lg cost`: one command gives the table, the curve and the figures of any model that `lg fit` takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lg.cli import cost, main
from lg.cli.cost import _between
from lg.cli.curve import tokens
from lg.cli.model_part import sections

SEVEN = (
    "--model.preset=llama-2-7b",
    "--model.schedule=10*local, 12*full, 10*local",
    "--model.patterns.local.window=1984",
    "--model.patterns.local.sinks=64",
)


@pytest.fixture
def hybrid(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The flagship's configuration, seen from an empty folder."""
    monkeypatch.chdir(tmp_path)
    return f"--config={root / 'configs' / 'hybrid.yaml'}"


def test_the_flagship(hybrid: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", hybrid]) == 0
    told = capsys.readouterr().out
    assert told.startswith("tiny: 2*local, 2*full, 2*local\n")
    assert [line.split()[0] for line in told.splitlines()[5:9]] == ["8K", "32K", "128K", "1M"]
    assert "  local: (k <= q) & ((q - k < 128) | (k < 16))" in told.splitlines()
    image = Image.open("cost.png")
    assert image.size == (1040, 400)
    # Training, above the other lines, and the cache.
    colours = {colour for _, colour in image.getcolors(1 << 20)}
    assert {(213, 94, 0), (204, 121, 167)} <= colours
    assert [path.name for path in Path().iterdir()] == ["cost.png"]


def test_another_shape_from_the_command_line(hybrid: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", hybrid, *SEVEN, "--lengths", "32K,128K,1M", "--json=figures.json", "--out="]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.lstrip().startswith("128K")]
    assert " ".join(line.split()) == "128K 4,504 1,776 72.2% 50.6% 1.78x 1.79x 2.07x 64.0 24.6 38.5%"
    figures = json.loads(Path("figures.json").read_text())
    assert [each["length"] for each in figures] == [32_768, 131_072, 1_048_576]
    local, full = figures[1]["hybrid"]["layers"]
    assert (local["num_layers"], local["kept_tokens"], full["kept_tokens"]) == (20, 32 * 2048, 32 * 131_072)
    assert full["visible_pairs"] == 32 * 131_072 * 131_073 // 2
    assert not Path("cost.png").exists()


def test_options_of_the_long_form(hybrid: str, capsys: pytest.CaptureFixture[str]) -> None:
    long = ["--model.init_args.preset=llama-3-8b", "--model.init_args.schedule=10*local, 12*full, 10*local"]
    assert main(["cost", hybrid, *long, "--lengths=8K"]) == 0
    assert capsys.readouterr().out.startswith("llama-3-8b: 10*local, 12*full, 10*local\n")
    assert Path("cost.png").exists()


@pytest.mark.parametrize("name", ["full", "hybrid_strided", "interleaved", "sparse_only"])
def test_every_configuration(name: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out = root / "configs" / f"{name}.yaml", tmp_path / "curve.png"
    assert main(["cost", f"--config={config}", "--lengths=1000,4K", f"--out={out}"]) == 0
    assert "1,000" in capsys.readouterr().out
    assert out.exists()


def test_what_was_parsed_can_be_printed(hybrid: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", hybrid, "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert "class_path: lg.models.hybrid.HybridLM" in printed
    assert "trainer:" not in printed


def test_the_environment_gives_defaults(
    hybrid: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LG_COST__LENGTHS", "2K")
    assert main(["cost", hybrid, "--out="]) == 0
    assert "one layer at 2K" in capsys.readouterr().out


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "--help"]) == 0
    told = capsys.readouterr().out
    assert all(option in told for option in ("--lengths", "--out", "--json", "--config"))


MISTAKES = {
    "unknown pattern": (
        "--model.patterns.local=Windw",
        "model.init_args.patterns.local: 'Windw' is not a known Pattern; did you mean Window?",
    ),
    "unknown key": ("--model.schedul=6*full", "model.init_args.schedul: not a known key; did you mean schedule?"),
    "unknown option": ("--lenghts=3", "lenghts: not a known key; did you mean lengths?"),
    "an option of fit": (
        "--trainer.max_steps=3",
        "trainer: not a known key; allowed: model, lengths, prefix, out, json",
    ),
    "unknown preset": ("--model.preset=llama", "model.init_args.preset: 'llama' is not a preset"),
    "window below 1": ("--model.patterns.local.window=0", "(YAML: model.init_args.patterns.local.init_args.window)"),
    "schedule of another depth": ("--model.schedule=3*full", "model.init_args.schedule"),
    "no length": ("--lengths=32K,many", "lengths: 'many' is not allowed; write tokens from 1 to 16M"),
    "length 0": ("--lengths=0", "lengths: '0' is not allowed"),
    "too long": ("--lengths=17M", "lengths: '17M' is not allowed"),
    "no folder": ("--out=nowhere/cost.png", "out: 'nowhere/cost.png' is not allowed; it must be a .png file"),
    "no picture": ("--out=cost.jpg", "out: 'cost.jpg' is not allowed; it must be a .png file"),
    "no share": ("--prefix=30%", "prefix: '30%' is not allowed; it must be a share of the document from 0 to 1"),
    "more than all": ("--prefix=1.1", "prefix: '1.1' is not allowed; it must be a share of the document from 0 to 1"),
    "a pattern that asks": (
        "--model.patterns.full=PrefixLM",
        "model.init_args.patterns.full: PrefixLM() asks for doc.prefix; say how much of the document it is, as in "
        "--prefix 0.3, or in the configuration (data.init_args.prefix)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_sentence(mistake: str, hybrid: str, capsys: pytest.CaptureFixture[str]) -> None:
    option, sentence = MISTAKES[mistake]
    assert main(["cost", hybrid, option]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("lg cost: ")
    assert sentence in told
    assert not list(Path().iterdir())


def test_nothing_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost"]) == 2
    assert "model: missing; name a configuration" in capsys.readouterr().err


def test_lengths_are_told_in_short() -> None:
    assert [tokens(n) for n in (1_048_576, 131_072, 1000, 3 * 2**19)] == ["1M", "128K", "1,000", "1536K"]


@pytest.mark.parametrize("lengths", [[1], [7], [32_768], [1000, 3000], [1000, 1001], [8192, 1_048_576]])
def test_a_curve_has_more_than_one_point(lengths: list[int]) -> None:
    assert len({*lengths, *_between(lengths)}) > 1


def test_no_length_is_counted_twice(hybrid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, compare = [], cost.compare

    def noted(*args: object) -> object:
        counted.append(args[3])
        return compare(*args)

    monkeypatch.setattr(cost, "compare", noted)
    assert main(["cost", hybrid, "--lengths=1K,4K,3000"]) == 0
    assert counted == [1024, 4096, 3000, 2048]


def test_small_shares_are_told(hybrid: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", hybrid, "--lengths=1M", "--out="]) == 0
    assert " 0.027%      1  local\n" in capsys.readouterr().out


ASKS = """
base: {base}
data:
  init_args:
    prefix: {prefix}
model:
  init_args:
    patterns:
      full: PrefixLM
"""


def test_the_prefix_is_the_option_s_or_the_data_s(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asks = ASKS.format(base=root / "configs" / "hybrid.yaml", prefix=0.25)
    Path("asks.yaml").write_text(asks)
    for option, prefix in (([], 0.25), (["--prefix=0.5"], 0.5), (["--prefix=0"], 0)):
        assert main(["cost", "--config=asks.yaml", "--lengths=1000", "--json=figures.json", *option]) == 0
        assert f"; one document, batch 1, the prefix {prefix} of the document\n" in capsys.readouterr().out
        (gain,) = json.loads(Path("figures.json").read_text())
        (full,) = [layer for layer in gain["hybrid"]["layers"] if layer["name"] == "full"]
        assert gain["attributes"] == {"prefix": 1000 * prefix}
        assert full["visible_pairs"] == 2 * sum(max(q + 1, int(1000 * prefix)) for q in range(1000))
    # So data say that documents have none.
    for wrong, sentence in ((0, "asks for doc.prefix; say how much"), ("half", "data.init_args.prefix: 'half'")):
        Path("asks.yaml").write_text(asks.replace("0.25", str(wrong)))
        assert main(["cost", "--config=asks.yaml", "--lengths=1000"]) == 2
        assert sentence in capsys.readouterr().err


def test_a_prefix_that_no_layer_asks_for_is_not_told(hybrid: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", hybrid, "--prefix=0.3", "--lengths=1K", "--out="]) == 0
    assert "prefix" not in capsys.readouterr().out


def test_sections_are_those_of_fit(hybrid: str, capsys: pytest.CaptureFixture[str]) -> None:
    known = set()
    for command in ("fit", "validate"):
        assert main([command, hybrid, "--print_config"]) == 0
        printed = capsys.readouterr().out
        known |= {line.partition(":")[0] for line in printed.splitlines() if line[:1].isalpha()}
        Path("whole.yaml").write_text(printed)
        assert main(["cost", "--config=whole.yaml", "--lengths=1K", "--out="]) == 0
        capsys.readouterr()
    assert sections() == known


@pytest.mark.parametrize("command", ["fit", "cost", "patterns"])
def test_a_misspelt_section_is_refused(command: str, hybrid: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("own.yaml").write_text("modle:\n  init_args:\n    preset: llama-3-8b\n")
    assert main([command, hybrid, "--config=own.yaml"]) == 2
    assert f"lg {command}: modle: not a known key; did you mean model?" in capsys.readouterr().err
