"""`lg export` writes what transformers loads, with the logits that training had."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import tokenizers
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, dynamic_module_utils

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


def test_positions_may_be_divided_at_the_end(tmp_path: Path) -> None:
    module = trained(tmp_path / "step.ckpt")
    assert main(["export", str(tmp_path / "step.ckpt"), str(tmp_path / "out"), "--positions=1K", "--linear=4"]) == 0
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    tokens = torch.randint(256, (1, 50))
    with torch.no_grad():
        want = module.model.logits(tokens, Documents(50), positions=torch.arange(50)[None] / 4)
        torch.testing.assert_close(model(tokens).logits, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{ckpt}", "{out}"], "--positions: needed, such as 32K"),
        (["{ckpt}", "{out}", "--positions=1K", "--linear=no"], "--linear: 'no' is not allowed; it must be a number"),
        (["{ckpt}", "{out}", "--positions=1K", "--dtype=int8"], "--dtype: 'int8' is not allowed; allowed are float32"),
        (["nowhere.ckpt", "{out}", "--positions=1K"], "CHECKPOINT: 'nowhere.ckpt' does not exist"),
        (["{ckpt}", "{out}", "--positions=1K", "--tokenizer=nowhere"], "--tokenizer: 'nowhere' is none"),
        (["{ckpt}"], "the following arguments are required: folder (see lg export --help)"),
        (["{ckpt}", "{ckpt}", "--positions=1K"], "exists; a folder that does not is needed"),
    ],
)
def test_refusals(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "step.ckpt", local=SinkWindow(window=8))
    filled = [word.format(ckpt=tmp_path / "step.ckpt", out=tmp_path / "out") for word in words]
    capsys.readouterr()
    assert main(["export", *filled]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sinks_go_out_with_a_model_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path))
    module = trained(tmp_path / "step.ckpt", local=SinkWindow(window=8))
    assert main(["export", str(tmp_path / "step.ckpt"), str(tmp_path / "out"), "--positions=1K"]) == 0
    said = capsys.readouterr().out
    assert "trust_remote_code=True: modeling_lg.py" in said and "without a tokenizer" in said
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    tokens = torch.randint(256, (1, 50))
    with torch.no_grad():
        want = module.model.logits(tokens, Documents(50))
        torch.testing.assert_close(model(tokens).logits, want, rtol=1e-4, atol=1e-4)


def run_with(folder: Path, **told: Any) -> Path:
    """A run's folder, as a run leaves it."""
    (folder / "checkpoints").mkdir(parents=True)
    trained(folder / "checkpoints" / "step.ckpt")
    model = {"class_path": "HybridLM", "init_args": {"pretrained": told.get("pretrained")}}
    data = {"class_path": "TextData", "init_args": {"tokenizer": told.get("tokenizer")}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": model, "data": data}))
    return folder / "checkpoints" / "step.ckpt"


def test_the_tokenizer_of_the_pretrained_model_comes_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "tokenizer.json").write_text("{}")
    (tmp_path / "begun" / "chat_template.jinja").write_text("hello")
    (tmp_path / "begun" / "config.json").write_text('{"eos_token_id": 7, "bos_token_id": null}')
    checkpoint = run_with(tmp_path / "run", pretrained=str(tmp_path / "begun"))
    assert main(["export", str(checkpoint), str(tmp_path / "out"), "--positions=1K"]) == 0
    assert f"tokenizer of {tmp_path / 'begun'} (model.init_args.pretrained of" in capsys.readouterr().out
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "hello"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 7


def test_else_the_tokenizer_of_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<eos>": 0, "a": 1}, "a"))
    made.save(str(tmp_path / "words.json"))
    of_data = {"class_path": "lg.data.TokenizerFile", "init_args": {"path": str(tmp_path / "words.json")}}
    gone = str(tmp_path / "gone")
    checkpoint = run_with(tmp_path / "run", pretrained=gone, tokenizer=of_data)
    assert main(["export", str(checkpoint), str(tmp_path / "out"), "--positions=1K"]) == 0
    assert f"tokenizer of {tmp_path / 'words.json'} (data.init_args.tokenizer of" in capsys.readouterr().out
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<eos>", 0)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 0


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: lg export CHECKPOINT FOLDER")
