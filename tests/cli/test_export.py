"""`lg export` writes what transformers loads, with the logits that training had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from transformers import AutoModelForCausalLM

from lg.attention import Causal, Documents, SinkWindow, Window
from lg.cli import main
from lg.data import RandomTokens
from lg.models.hybrid import HybridLM

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


def trained(path: Path, **patterns: Any) -> HybridLM:
    torch.manual_seed(0)
    schedule = "local, 4*full, local" if patterns else "6*full"
    module = HybridLM({"full": Causal(), **patterns}, schedule, attention="dense")
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, RandomTokens(64))
    trainer.save_checkpoint(path)
    return module


def test_transformers_computes_what_was_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = trained(tmp_path / "step.ckpt", local=Window(window=8))
    (tmp_path / "tokenizer.json").write_text("{}")
    words = [f"--tokenizer={tmp_path / 'tokenizer.json'}", "--positions=1K"]
    assert main(["export", str(tmp_path / "step.ckpt"), str(tmp_path / "out"), *words]) == 0
    assert capsys.readouterr().out.startswith(str(tmp_path / "out"))
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    (tmp_path / "out" / "tokenizer.json").unlink()
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    assert (model.config.model_type, model.config.max_position_embeddings) == ("qwen3", 1024)
    tokens = torch.randint(256, (1, 50))
    with torch.no_grad():
        want = module.model.logits(tokens, Documents(50))
        torch.testing.assert_close(model(tokens).logits, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{ckpt}", "{out}"], "--positions: needed, such as 32K"),
        (["{ckpt}", "{out}", "--positions=1K", "--dtype=int8"], "--dtype: 'int8' is not allowed; allowed are float32"),
        (["nowhere.ckpt", "{out}", "--positions=1K"], "CHECKPOINT: 'nowhere.ckpt' does not exist"),
        (["{ckpt}", "{out}", "--positions=1K", "--tokenizer=nowhere"], "--tokenizer: 'nowhere' is none"),
        (["{ckpt}"], "the following arguments are required: folder (see lg export --help)"),
        (["{ckpt}", "{out}", "--positions=1K"], "transformers cannot say what these layers see: SinkWindow"),
    ],
)
def test_refusals(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "step.ckpt", local=SinkWindow(window=8))
    filled = [word.format(ckpt=tmp_path / "step.ckpt", out=tmp_path / "out") for word in words]
    capsys.readouterr()
    assert main(["export", *filled]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: lg export CHECKPOINT FOLDER")
