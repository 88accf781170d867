"""Stages of one YAML: each begins with the weights of the one before, and goes on to the bit after an interruption."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lg.cli import main
from lg.cli.stages import take_stages

STOP = """
import os, signal
import lightning.pytorch as pl

class StopAt(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if os.environ.get("STOP_AT") == f"{pl_module.decoder_config.rope_theta:g}:{trainer.global_step}":
            os.kill(os.getpid(), signal.SIGTERM)
"""


def configuration(**more: Any) -> dict[str, Any]:
    return {
        "weights_only": True,
        "model": {
            "class_path": "HybridLM",
            "init_args": {
                "patterns": {"full": "Causal"},
                "schedule": "2*full",
                "decoder": {"num_layers": 2, "width": 32, "num_heads": 2, "num_kv_heads": 1},
                "lr_schedule": {"class_path": "Cosine", "init_args": {"warmup": 2}},
            },
        },
        "data": {
            "class_path": "TextData",
            "init_args": {"source": {"class_path": "Folder", "init_args": {"path": "text"}}, "row_length": 128},
        },
        "trainer": {
            "accelerator": "cpu", "max_steps": 3, "limit_val_batches": 0, "enable_model_summary": False,
            "enable_progress_bar": False, "log_every_n_steps": 1, "callbacks": ["Checkpoints", "stop.StopAt"],
            "logger": {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "logs", "name": "run"}},
        },
        "stages": [
            {"name": "short"},
            {
                "name": "long", "optimizer": "kept", "trainer": {"max_steps": 4},
                "data": {"init_args": {"row_length": 256}},
                "model": {"init_args": {"decoder": {"rope_theta": 1e6}}},
            },
        ],
        **more,
    }  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "text").mkdir()
    for n in range(40):
        (tmp_path / "text" / f"{n}.txt").write_text(f"{n} is a number. " * (n + 5))
    (tmp_path / "stop.py").write_text(STOP)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(configuration()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def fit(*words: str) -> int:
    return main(["fit", "--config", "c.yaml", *words])


def end(run: str, stage: str) -> dict[str, Any]:
    (path,) = Path("logs", "run", run, stage, "checkpoints").glob("*.ckpt")
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def check_same(left: Any, right: Any) -> None:
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            check_same(left[key], right[key])
    elif isinstance(left, list):
        for one, other in zip(left, right, strict=True):
            check_same(one, other)
    else:
        assert left == right


def steps(content: dict[str, Any]) -> set[int]:
    return {int(state["step"]) for state in content["optimizer_states"][0]["state"].values()}


@pytest.mark.filterwarnings("ignore")
def test_stages(here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert fit("--stage", "long") == 2
    assert "stages.1: 'long' begins from the end of the stage 'short', which is not fin" in capfd.readouterr().err
    assert fit("--stage", "short") == 0
    assert fit("--stage", "short") == 0  # a new run
    assert fit("--stage=long", "--run=version_0") == 0
    assert "what to type next" in capfd.readouterr().out
    begun, whole = end("version_0", "short"), end("version_0", "long")
    check_same(begun["state_dict"], end("version_1", "short")["state_dict"])
    assert (begun["global_step"], whole["global_step"]) == (3, 4)
    assert (steps(begun), steps(whole)) == ({3}, {7})
    assert [content["lr_schedulers"][0]["last_epoch"] for content in (begun, whole)] == [3, 4]

    second = ["--stage", "long", "--run", "version_1"]
    # Interrupted in the middle, it goes on in its folder to the same bits; then there is nothing left to do.
    monkeypatch.setenv("STOP_AT", "1e+06:2")
    assert fit(*second) == 143
    assert "'long' is finished" not in capfd.readouterr().out
    monkeypatch.delenv("STOP_AT")
    assert fit(*second) == 2
    assert "the stage 'long' was begun in 'logs/run/version_1/long'; --ckpt_path last" in capfd.readouterr().err
    assert fit(*second, "--ckpt_path", "last", "--data.row_length=128") == 2
    assert "'long' cannot be gone on with: data.init_args.row_length was 256, is 128" in capfd.readouterr().err
    assert fit(*second, "--ckpt_path", "last") == 0
    check_same(end("version_1", "long")["state_dict"], whole["state_dict"])
    check_same(end("version_1", "long")["optimizer_states"], whole["optimizer_states"])
    assert fit(*second, "--ckpt_path", "last") == 0
    assert "stage 'long' is finished already" in capfd.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_what_a_stage_may_change(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert fit("--stage", "short") == 0
    begun = end("version_0", "short")

    # Another shape is refused, and whatever the parser refuses has the key of the file.
    (here / "c.yaml").write_text(yaml.safe_dump(with_second("wide", model={"init_args": {"decoder": {"width": 64}}})))
    assert fit("--stage", "wide", "--run", "version_0") == 2
    assert "lg fit: stages.1.model: the shape is not that of the stage before: decoder.emb" in capfd.readouterr().err
    (here / "c.yaml").write_text(yaml.safe_dump(with_second("other", data={"init_args": {"row_lenght": 3}})))
    assert fit("--stage", "other") == 2
    assert "lg fit: stages.1.data.init_args.row_lenght: not a known key" in capfd.readouterr().err

    # Without the optimizer's state, and at a rate of nothing, weights are those of the stage before.
    (here / "c.yaml").write_text(yaml.safe_dump(with_second("still", model={"init_args": {"learning_rate": 1e-30}})))
    assert fit("--stage", "still", "--run", "version_0") == 0
    check_same(end("version_0", "still")["state_dict"], begun["state_dict"])
    assert steps(end("version_0", "still")) == {3}

    # Other commands take the stage that is named, or the last.
    assert main(["validate", "--config", "c.yaml", "--ckpt_path", "last", "--trainer.limit_val_batches=1"]) == 0
    assert "version_0/still/checkpoints" in "".join(capfd.readouterr())


@pytest.mark.filterwarnings("ignore")
def test_a_stage_whose_time_is_up_is_not_finished(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert fit("--stage", "short", "--trainer.max_steps=100000", "--trainer.max_time=00:00:00:01") == 0
    assert "stage 'short' is not finished: trainer.max_time was up" in capfd.readouterr().out
    assert fit("--stage", "long", "--run", "version_0") == 2
    assert "which is not finished" in capfd.readouterr().err
    reached = end("version_0", "short")["global_step"]
    assert fit("--stage", "short", "--ckpt_path=last", f"--trainer.max_steps={reached + 1}") == 0
    assert "stage 'short' is finished" in capfd.readouterr().out


def with_second(name: str = "long", **sections: Any) -> dict[str, Any]:
    return configuration(stages=[{"name": "short"}, {"name": name, **sections}])


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ("64k", "stages: '64k' is not allowed; it must list at least one stage"),
        ([], "stages: [] is not allowed"),
        (["64k"], "stages.0: '64k' is not allowed; a stage must map keys to values"),
        ([{"name": 64}], "stages.0.name: 64 is not allowed"),
        ([{"name": "../64k"}], "stages.0.name: '../64k' is not allowed"),
        ([{"name": "a"}, {"name": "a"}], "stages.1.name: 'a' is not allowed; stages.0 has that name"),
        ([{"name": "a", "modle": {}}], "stages.0.modle: not a known key; allowed: name, optimizer, model"),
        ([{"name": "a", "optimizer": "kept"}], "stages.0.optimizer: 'kept' is not allowed; before the first"),
        (
            [{"name": "a"}, {"name": "b", "model": {"init_args": {"pretrained": "m"}}}],
            "stages.1.model.init_args.pretrained: not allowed; a stage begins with the weights of the one before",
        ),
        ([{"name": "a"}, {"name": "b", "optimizer": True}], "stages.1.optimizer: True is not allowed; allowed are r"),
        ([{"name": "a", "model": "HybridLM"}], "stages.0.model: 'HybridLM' is not allowed"),
    ],
)
def test_what_is_no_stage(stages: Any, said: str) -> None:
    with pytest.raises(ValueError) as error:
        take_stages({"stages": stages})
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("more", "words", "said"),
    [
        ({}, ["--stage", "x"], "--stage: 'x' is not there; the configuration has short, long"),
        ({"stages": [{"name": "a"}]}, ["--stage"], "--stage: needs a value"),
        ({}, ["--ckpt_path", "c.yaml"], "ckpt_path: 'c.yaml' is not allowed with stages"),
        ({}, ["--trainer.logger", "false"], "trainer.logger: stages need a folder each"),
        ({}, ["--trainer.callbacks", "[]"], "trainer.callbacks: stages need Checkpoints"),
        (
            {"stages": [{"name": "a"}, {"name": "b", "trainer": {"logger": {"init_args": {"name": "else"}}}}]},
            [],
            "stages.1.trainer.logger: stages of one run lie in one folder",
        ),
    ],
)
def test_what_cannot_be_run(
    more: dict[str, Any], words: list[str], said: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "c.yaml").write_text(yaml.safe_dump(configuration(**more)))
    assert fit(*words) == 2
    assert f"lg fit: {said}" in capfd.readouterr().err
    assert not (here / "logs").exists()


def test_cost_of_a_stage(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stages = [{"name": "a"}, {"name": "b", "model": {"init_args": {"decoder": {"width": 48}}}}]
    (here / "c.yaml").write_text(yaml.safe_dump(configuration(stages=stages)))
    cost = ["cost", "--config", "c.yaml", "--lengths", "1K", "--out", ""]
    told = []
    for words in (["--stage", "a"], ["--stage", "b"], []):
        assert main([*cost, *words]) == 0
        told.append(capfd.readouterr().out)
    assert told[0] != told[1] == told[2]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_one_command(here: Path, devices: int) -> None:
    more = {"devices": devices, **({"strategy": {"class_path": "lg.parallel.HybridStrategy"}} if devices > 1 else {})}
    config = configuration()
    (here / "c.yaml").write_text(yaml.safe_dump({**config, "trainer": {**config["trainer"], **more}}))
    words = [sys.executable, "-m", "lg", "fit", "--config", "c.yaml", "--ckpt_path", "last"]

    def run(code: int, **more: str) -> str:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **more}
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert "stage 'short' is finished" in run(143, STOP_AT="1e+06:2")
    told = run(0)
    assert "stage 'short' is finished already" in told
    assert "begins training at step 3" in told  # the step was let end
    assert "stage 'long' is finished already" in run(0)
