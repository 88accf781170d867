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
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, dynamic_module_utils

from lg.attention import Causal, Documents, SinkWindow, Window
from lg.cli import main
from lg.data import RandomTokens
from lg.models.adapters import LoRA
from lg.models.hybrid import HybridLM
from lg.models.pretrained.out import save
from lg.models.rope_scaling import Linear

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


def trained(path: Path, precision: Any = "32-true", **patterns: Any) -> HybridLM:
    torch.manual_seed(0)
    schedule = "local, 4*full, local" if patterns else "6*full"
    module = HybridLM({"full": Causal(), **patterns}, schedule, attention="dense")
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, precision=precision,
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


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_weights_are_of_the_type_of_the_checkpoint(precision: str, tmp_path: Path) -> None:
    module = trained(tmp_path / "step.ckpt", precision)
    own = "bfloat16" if precision == "bf16-true" else "float32"
    for name, asked in ((own, []), ("float16", ["--dtype=float16"])):
        assert main(["export", str(tmp_path / "step.ckpt"), str(tmp_path / name), "--positions=1K", *asked]) == 0
        weights = load_file(tmp_path / name / "model.safetensors")
        assert {weight.dtype for weight in weights.values()} == {getattr(torch, name)}
        assert json.loads((tmp_path / name / "config.json").read_text())["dtype"] == name
    given = load_file(tmp_path / own / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(given, module.plain_weights["embedding.weight"])


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


def words_in(folder: Path, num_words: int = 2, **config: Any) -> Path:
    """A tokenizer's folder; what its tokenizer_config.json says beside it."""
    folder.mkdir()
    words = {"<eos>": 0, **{f"w{number}": number for number in range(1, num_words)}}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "w1")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder / "tokenizer.json"


@pytest.mark.parametrize("kind", ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"])
def test_a_bare_tokenizer_json_ends_as_the_files_beside_it_say(kind: str, tmp_path: Path) -> None:
    file = words_in(tmp_path / "words", 8, pad_token={"content": "w3"}, bos_token="gone")
    told = {"eos_token_id": [5, 6]} if kind == "generation_config.json" else {"eos_token": "w5", "pad_token": "w3"}
    (tmp_path / "words" / kind).write_text(json.dumps(told))
    trained(tmp_path / "step.ckpt")
    words = [str(tmp_path / "step.ckpt"), str(tmp_path / "out"), "--positions=1K", f"--tokenizer={file}"]
    assert main(["export", *words]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    eos = [5, 6] if kind == "generation_config.json" else 5
    assert [config[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [None, eos, 3]
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.pad_token, tokenizer.bos_token) == ("w3", None)
    assert kind == "generation_config.json" or tokenizer.eos_token_id == 5


def test_marks_of_the_pretrained_model_stay_without_a_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text('{"eos_token_id": 7, "bos_token_id": null}')
    (tmp_path / "begun" / "generation_config.json").write_text('{"eos_token_id": [7, 8], "pad_token_id": 9}')
    first = run_with(tmp_path / "run", pretrained=str(tmp_path / "begun"))
    # Also of a run that begins where another one has ended.
    second = run_with(tmp_path / "again", pretrained=str(first))
    for checkpoint in (first, second):
        out = checkpoint.with_suffix(".out")
        assert main(["export", str(checkpoint), str(out), "--positions=1K"]) == 0
        assert "without a tokenizer" in capsys.readouterr().out
        config = json.loads((out / "config.json").read_text())
        assert [config[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [None, 7, 9]
    # A tokenizer that ends texts otherwise is not the model's.
    words = [f"--tokenizer={words_in(tmp_path / 'words', eos_token='<eos>')}", "--positions=1K"]
    assert main(["export", str(first), str(tmp_path / "out"), *words]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [config[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [None, 0, None]


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = words_in(tmp_path / "words", 257)
    checkpoint = run_with(tmp_path / "run", pretrained=str(tmp_path / "words"))
    capsys.readouterr()
    for given in (file, tmp_path / "words"):
        words = ["export", str(checkpoint), str(tmp_path / "out"), "--positions=1K", f"--tokenizer={given}"]
        assert main(words) == 2
        said = f"--tokenizer: {str(given)!r} has ids up to 256, and the model 0 to 255; another tokenizer is needed"
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    assert main(words[:-1]) == 0
    assert "without a tokenizer: that of" in capsys.readouterr().out
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_what_is_no_checkpoint_is_told_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained(tmp_path / "step.ckpt")
    whole = (tmp_path / "step.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "README.md").write_text("# lg")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    torch.save(torch.zeros(2), tmp_path / "tensor.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    capsys.readouterr()
    for name, said in {
        "half.ckpt": "cannot be read: it is no checkpoint, or a part of one; a checkpoint of lg's is needed",
        "README.md": "cannot be read: it is no checkpoint, or a part of one",
        "empty.ckpt": "cannot be read: it is no checkpoint, or a part of one",
        "tensor.ckpt": "holds a Tensor; a checkpoint of lg's is needed",
        "other.ckpt": "this is no checkpoint of lg's",
        "": "is a folder; a checkpoint of lg's, a file, is needed",
    }.items():
        for more in (["--positions=1K"], ["--adapter"]):
            assert main(["export", str(tmp_path / name), str(tmp_path / "out"), *more]) == 2
            told = capsys.readouterr().err
            assert "lg export: CHECKPOINT: " in told and said in told
            assert not (tmp_path / "out").exists()


def adapted(path: Path, base: Path, **more: Any) -> None:
    """A checkpoint of LoRA that has begun with a folder, whose weights it saves."""
    torch.manual_seed(1)
    options: dict[str, Any] = {"patterns": {"full": Causal()}, "schedule": "6*full", **more}
    adapter = LoRA(rank=2, targets=("q_proj",), also_train=("norm",))
    module = HybridLM(pretrained=str(base), adapter=adapter, attention="dense", **options)
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, precision="bf16-true",
    )  # fmt: skip
    trainer.fit(module, RandomTokens(64))
    trainer.save_checkpoint(path)


def test_an_adapter_is_refused_for_other_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = trained(tmp_path / "step.ckpt")
    config, weights = module.decoder_config, dict(module.plain_weights)
    save(tmp_path / "base", weights, config, [Causal()] * 6, 128)
    name = "blocks.3.mlp.up_proj.weight"
    save(tmp_path / "other", {**weights, name: weights[name] * 1.02}, config, [Causal()] * 6, 128)
    adapted(tmp_path / "lora.ckpt", tmp_path / "base")
    words = ["export", str(tmp_path / "lora.ckpt"), str(tmp_path / "out"), "--adapter"]
    for base, said in {
        tmp_path / "other": "since its model.layers.3.mlp.up_proj.weight differs from that of the checkpoint by up to",
        tmp_path: "has no config.json; a folder of transformers is needed",
        tmp_path / "step.ckpt": "is a file; a folder of transformers, or the name of one, is needed",
    }.items():
        capsys.readouterr()
        assert main([*words, f"--base={base}"]) == 2
        assert f"--base: {str(base)!r} {'is not allowed, ' if base.name == 'other' else ''}{said}" in (
            capsys.readouterr().err
        )
        assert not (tmp_path / "out").exists()
    # What was frozen is bfloat16 and the base float32; norms were trained.
    assert main([*words, f"--base={tmp_path / 'base'}"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    kept = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {weight.dtype for weight in kept.values()} == {torch.bfloat16}


def test_a_base_of_another_shape_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = trained(tmp_path / "step.ckpt")
    save(tmp_path / "base", module.plain_weights, module.decoder_config, [Causal()] * 6, 128)
    adapted(tmp_path / "lora.ckpt", tmp_path / "base")
    for n, (decoder, said) in enumerate([
        ({"ffn_width": 80}, "mlp.gate_proj.weight is [80, "),
        ({"num_layers": 5}, "since only the checkpoint has model.layers.5.input_layernorm.weight"),
        ({"num_layers": 7}, "since only that folder has model.layers.6.input_layernorm.weight"),
    ]):  # fmt: skip
        of = HybridLM({"full": Causal()}, f"{decoder.get('num_layers', 6)}*full", decoder=decoder)
        # Up to where the shape differs the weights are the same.
        same = {
            key: one for key, one in module.plain_weights.items() if one.shape == of.plain_weights.get(key, one).shape
        }
        weights = {**of.plain_weights, **same}
        save(tmp_path / f"base{n}", weights, of.decoder_config, [Causal()] * of.decoder_config.num_layers, 128)
        words = [str(tmp_path / "lora.ckpt"), str(tmp_path / "out"), "--adapter", f"--base={tmp_path / f'base{n}'}"]
        capsys.readouterr()
        assert main(["export", *words]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_an_adapter_tells_what_its_base_does_not_compute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = trained(tmp_path / "step.ckpt")
    base = tmp_path / "base"
    save(base, module.plain_weights, module.decoder_config, [Causal()] * 6, 128)
    patterns = {"full": Causal(), "sinks": SinkWindow(10, 3)}
    adapted(
        tmp_path / "lora.ckpt",
        base,
        patterns=patterns,
        schedule="sinks, 4*full, sinks",
        rope_scaling=Linear(factor=2.0),
    )

    def told(out: str, *words: str) -> list[str]:
        capsys.readouterr()
        assert main(["export", str(tmp_path / "lora.ckpt"), str(tmp_path / out), "--adapter", *words]) == 0
        return capsys.readouterr().out.splitlines()[1:]

    assert told("a", f"--base={base}") == [
        f"its logits there are others: {base} has rope_scaling None, it was trained with Linear(factor=2.0)",
        f"its logits there are others: layers 0, 5 of {base} see Causal(), it was trained for SinkWindow(window=10, "
        "sinks=3)",
    ]
    hub = "not compared with the model that it is for: 'someone/model' is no folder here"
    assert told("b", "--base=someone/model") == [hub]
    assert told("c") == ["not compared with the model that it is for: --base names one"]
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    (line,) = told("d", f"--base={base}")
    assert line.startswith("not compared with the model that it is for: --base: ") and "model.safetensors" in line


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: lg export CHECKPOINT FOLDER")
