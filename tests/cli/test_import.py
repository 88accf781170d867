"""`lg import` makes a folder to train from, of a folder, a GGUF file, or the real SmolLM2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lg.attention import Causal, Documents, Pattern, SinkWindow, Window
from lg.cli import main
from lg.data.assets import folder_of
from lg.data.assets.asset import Damaged, listed
from lg.data.assets.table import ASSETS
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder
from lg.models.hybrid import HybridLM
from lg.models.pretrained import open_pretrained
from lg.models.pretrained.out import save

CONFIG = DecoderConfig(2, 32, 4, 2, 8, 48, 97, tied_embeddings=True)


def written(path: Path, sees: list[Pattern], **files: str | Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    weights = Decoder(CONFIG, sees, "dense").state_dict()
    marks = {"bos_token_id": 1, "eos_token_id": [2, 5]}
    save(path, weights, CONFIG, sees, longest=64, files=files, marks=marks)
    return weights


@pytest.mark.parametrize("sees", [[Causal(), Window(8)], [Causal(), SinkWindow(8)]], ids=str)
def test_a_folder_in_another_type(sees: list[Pattern], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = written(tmp_path / "a", sees, **{"tokenizer.json": "{}", "tokenizer_config.json": "{}"})
    assert main(["import", str(tmp_path / "a"), str(tmp_path / "models" / "b"), "--dtype=bfloat16"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(str(tmp_path / "models" / "b")) and f"tokenizer of {tmp_path / 'a'}" in said.out
    assert "reading a" in said.err
    found = open_pretrained(tmp_path / "models" / "b")
    assert (found.config, list(found.sees), found.longest) == (CONFIG, sees, 64)
    assert found.marks == {"bos_token_id": 1, "eos_token_id": [2, 5]}
    got = found.weights.tensor("model.embed_tokens.weight")
    assert torch.equal(got, weights["embedding.weight"].bfloat16())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "models" / "b" / name).read_text() == "{}"


def test_without_a_tokenizer_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "a", [Causal()] * 2)
    assert main(["import", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "without a tokenizer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "{tmp}/b"], "SOURCE: 'nowhere' is not there; a GGUF file, a folder of transformers, or smollm2"),
        (["{tmp}/a", "{tmp}/a"], "FOLDER: '{tmp}/a' exists; a folder that does not is needed"),
        (["{tmp}/a", "{tmp}/b", "--dtype=int8"], "--dtype: 'int8' is not allowed; allowed are float32"),
        (["{tmp}", "{tmp}/b"], "SOURCE: '{tmp}' has no config.json"),
        (["{tmp}/bad.gguf", "{tmp}/b"], "SOURCE: '{tmp}/bad.gguf' is no GGUF file"),
        (["{tmp}/a"], "the following arguments are required: folder (see lg import --help)"),
    ],
)
def test_refusals(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "a", [Causal()] * 2)
    (tmp_path / "bad.gguf").write_bytes(b"nothing")
    assert main(["import", *(word.format(tmp=tmp_path) for word in words)]) == 2
    assert said.format(tmp=tmp_path) in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "bad.gguf"]


def test_a_length_that_is_not_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "a", [Causal()] * 2)
    file = tmp_path / "a" / "config.json"
    told = json.loads(file.read_text())
    del told["max_position_embeddings"]
    file.write_text(json.dumps(told))
    assert main(["import", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "does not say max_position_embeddings" in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: lg import SOURCE FOLDER")


def fetched() -> bool:
    try:
        listed(folder_of("smollm2"), ASSETS["smollm2"])
    except (Damaged, FileNotFoundError):
        return False
    return True


@pytest.mark.network
@pytest.mark.slow
def test_the_real_smollm2(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path))
    was_there = fetched()
    assert main(["import", "smollm2", str(tmp_path / "smollm2")]) == 0
    assert fetched() or not was_there
    assert "SmolLM2" in capsys.readouterr().out
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "smollm2")
    text = "The fox said to the crow, 'What have you there?' " * 20
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0]) == text and tokenizer.eos_token == "<|im_end|>"
    assert "<|im_start|>user\nHi<|im_end|>" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False
    )
    for local in (Causal(), SinkWindow(60)):
        patterns: dict[str, Pattern] = {"local": local, "full": Causal()}
        module = HybridLM(
            patterns, "10*local, 10*full, 10*local", pretrained=str(tmp_path / "smollm2"), attention="dense"
        )
        module.configure_model()
        checkpoint = {"state_dict": module.state_dict()}
        module.on_save_checkpoint(checkpoint)
        torch.save(checkpoint, tmp_path / "a.ckpt")
        out = tmp_path / type(local).__name__
        words = ["--positions=8K", f"--tokenizer={tmp_path / 'smollm2'}"]
        assert main(["export", str(tmp_path / "a.ckpt"), str(out), *words]) == 0
        model: Any = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True).eval()
        with torch.no_grad():
            want, got = module.model.logits(ids, Documents(ids.shape[1])), model(ids).logits
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))
        assert list(open_pretrained(out).sees) == [*[local] * 10, *[Causal()] * 10, *[local] * 10]
        assert torch.equal(AutoTokenizer.from_pretrained(out)(text, return_tensors="pt").input_ids, ids)
        assert model.config.eos_token_id == tokenizer.eos_token_id
