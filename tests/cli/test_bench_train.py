"""`lg bench train`: what a configuration's step costs, by training it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lg.cli import main
from lg.cli.bench_train import _HEAD, _line

YAML = """
base: {base}
model:
  init_args:
    decoder: {{num_layers: 2, width: 32, num_heads: 2, num_kv_heads: 1, ffn_width: 48}}
    schedule: local, full
trainer:
  accelerator: cpu
"""


@pytest.fixture
def config(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(YAML.format(base=root / "configs" / "hybrid.yaml"))
    return "small.yaml"


@pytest.mark.slow
def test_a_row_for_each_case(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--lengths=512,1K", "--schedules=local, full|2*full", "--steps=4", "--warm_up=2", "--json=a.json"]
    parallel = ["--trainer.devices=2", "--trainer.strategy=lg.parallel.HybridStrategy"]
    shared = ["--trainer.strategy.context_parallel_size=2"]
    assert main(["bench", "train", "--config", config, *words, *parallel, *shared]) == 0
    rows = json.loads(Path("a.json").read_text())["rows"]
    assert [(row["length"], row["schedule"]) for row in rows] == [
        (512, "local, full"), (512, "2*full"), (1024, "local, full"), (1024, "2*full"),
    ]  # fmt: skip
    for row in rows:
        assert (row["gpus"], row["context"], row["steps"]) == (2, 2, 2), row
        assert row["tokens_per_s_per_gpu"] > 0 and row["step_s"] > 0
        assert 0 < row["mfu_visible"] <= row["mfu_dense_equivalent"] * 1.001
        assert set(row["exchange_gib_by_layer_type"]) == set(row["schedule"].replace("2*", "").split(", "))
    assert len([line for line in capsys.readouterr().out.splitlines() if " s " in line]) == 4


@pytest.mark.slow
def test_a_case_that_fails_is_told(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", "--config", config, "--schedules=local, none", "--lengths=64"]) == 0
    assert "failed: lg fit: model.init_args.schedule" in capsys.readouterr().out


def test_what_was_predicted_stands_beside_what_was_measured() -> None:
    row = {
        "schedule": "2*full", "length": 512, "step_s": 1.25, "tokens_per_s_per_gpu": 4096.0, "peak_gib": 10.0,
        "exchange_gib_by_layer_type": {},
    }  # fmt: skip
    told = _line({**row, "predicted_step_s": 1.5, "predicted_peak_gib": 11.25})
    assert "1.25 s   (1.50)" in told and told.endswith("10.0 GiB  (11.2)")
    assert "(" not in _line(row)
    ends = [len(_HEAD.partition(name)[0] + name) for name in ("step", "(plan)", "peak")]
    assert [told[end - 1] for end in ends] == ["s", ")", "B"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--steps=0"], "--steps: '0' is not allowed"),
        (["--steps=3", "--warm_up=3"], "--warm_up: 3 is not allowed; it must be below --steps, 3"),
        (["--lengths=many"], "--lengths: 'many' is not allowed"),
        (["--json=a.txt"], "--json: 'a.txt' is not allowed"),
    ],
)
def test_mistakes_are_told(config: str, words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", "--config", config, *words]) == 2
    assert says in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "train", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: lg bench train")
