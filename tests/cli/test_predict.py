"""`lg predict` writes what `lg.generate` writes, from the beginning of each held-out document, into a whole file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

import lg
from lg.attention import Causal, PrefixLM, SinkWindow
from lg.cli import main
from lg.data import Bytes, Folder, TextData
from lg.inference import Continued, Sampling, WriteOn, room
from lg.models.decoder import Decoder
from lg.models.hybrid import HybridLM

SHAPE = {"num_layers": 2, "width": 16, "num_heads": 2, "num_kv_heads": 1}
WINDOW = {"class_path": "SinkWindow", "init_args": {"window": 32}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, its configuration and its checkpoint."""
    made = tmp_path_factory.mktemp("run")
    (made / "text").mkdir()
    for n in range(40):
        (made / "text" / f"{n}.txt").write_text(f"{n} is a number. " * (n + 5))
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(made / "logs"), "name": "run"}}
    config = {
        "model": {
            "class_path": "HybridLM",
            "init_args": {
                "patterns": {"full": "Causal", "local": WINDOW}, "schedule": "local, full", "decoder": SHAPE,
            },
        },
        "data": {
            "class_path": "TextData",
            "init_args": {
                "source": {"class_path": "Folder", "init_args": {"path": str(made / "text")}},
                "row_length": 128, "held_out": 0.3, "cache": str(made / "cache"), "processes": 1,
            },
        },
        "trainer": {
            "accelerator": "cpu", "max_steps": 2, "limit_val_batches": 0, "enable_model_summary": False,
            "enable_progress_bar": False, "log_every_n_steps": 1, "logger": logger,
            "callbacks": ["Checkpoints", "RunCard", "TextSamples", "Throughput"],
        },
    }  # fmt: skip
    (made / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(made / "config.yaml")]) == 0
    return made


def predicted(folder: Path, out: Path, *words: str, code: int = 0) -> list[dict[str, Any]]:
    words = (f"--out={out}", "--prompt_tokens=100", "--max_new_tokens=12", *words)
    assert main(["predict", "--config", str(folder / "config.yaml"), "--ckpt_path", "last", *words]) == code
    return [] if code else [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n")[:-1]]


def checkpoint(folder: Path) -> str:
    (path,) = folder.rglob("*.ckpt")
    return str(path)


def decoder(folder: Path) -> Decoder:
    return HybridLM.from_checkpoint(checkpoint(folder)).model


def data(folder: Path) -> TextData:
    found = TextData(
        Folder(str(folder / "text")), row_length=128, held_out=0.3, cache=str(folder / "cache"), processes=1
    )
    found.setup()
    return found


def held_out(folder: Path) -> list[bytes]:
    return [bytes(text[:-1].tolist()) for text in data(folder).val_rows.texts()]


def trainer(**changes: Any) -> pl.Trainer:
    options: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    return pl.Trainer(**options, enable_checkpointing=False, enable_model_summary=False, **changes)


def test_it_writes_on_every_document_that_is_long_enough(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path for path in folder.rglob("*"))
    lines = predicted(folder, tmp_path / "out.jsonl")
    texts = [text for text in held_out(folder) if len(text) > 100]
    assert [line["prompt"] for line in lines] == [text[:100].decode() for text in texts]
    assert [line["stood"] for line in lines] == [text[100:112].decode() for text in texts]
    assert [line["document"] for line in lines] == list(range(len(texts)))
    written = lg.generate(decoder(folder), [list(text[:100]) for text in texts], 12, tokenizer=Bytes(), stop={0})
    for line, one in zip(lines, written, strict=True):
        assert (line["written"], line["tokens"], line["finish"]) == (one.text, one.tokens, one.finish)
        assert line["logprobs"] == pytest.approx(one.logprobs, abs=1e-4)
    assert f"{len(texts)} documents are written on in {tmp_path / 'out.jsonl'}\n" in capsys.readouterr().out
    # Nothing is left beside the file, nor logged.
    assert list(tmp_path.iterdir()) == [tmp_path / "out.jsonl"]
    assert sorted(path for path in folder.rglob("*")) == before


def test_batches_and_room_change_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = predicted(folder, tmp_path / "out.jsonl", "--trainer.precision=bf16-mixed")
    told = [(line["written"], line["finish"]) for line in lines]
    assert len(told) > 4
    some = predicted(
        folder, tmp_path / "out.jsonl", "--batch_size=2", "--num_documents=3", "--trainer.enable_progress_bar=true"
    )
    assert [(line["written"], line["finish"]) for line in some] == told[:3]
    assert "writing\n" in capsys.readouterr().err
    half = decoder(folder).bfloat16()
    texts = [list(line["prompt"].encode()) for line in lines]
    told_half = [line["tokens"] for line in predicted(folder, tmp_path / "out.jsonl", "--trainer.precision=bf16-true")]
    assert told_half == [one.tokens for one in lg.generate(half, texts, 12, stop={0})]
    of_one = room.room_bytes(decoder(folder), 112)
    monkeypatch.setattr(room, "free_memory", lambda device: int(2.5 * of_one))
    less = predicted(folder, tmp_path / "out.jsonl")
    assert [(line["written"], line["finish"]) for line in less] == told
    monkeypatch.setattr(room, "free_memory", lambda device: of_one)
    predicted(folder, tmp_path / "none.jsonl", code=2)
    assert "prompt_tokens: 100, and 12 of max_new_tokens, are not allowed; keys and values" in capsys.readouterr().err
    assert not (tmp_path / "none.jsonl").exists()


def test_tokens_are_drawn_as_asked(folder: Path, tmp_path: Path) -> None:
    words = ("--temperature=0.9", "--top_k=50", "--seed=4", "--num_documents=1", "--kv=int8")
    (line,) = predicted(folder, tmp_path / "out.jsonl", *words)
    (again,) = predicted(folder, tmp_path / "out.jsonl", *words)
    assert line == again and line["written"] != predicted(folder, tmp_path / "out.jsonl")[0]["written"]
    sampling = Sampling(0.9, 50, seed=4)
    prompt = list(line["prompt"].encode())
    (free,) = lg.generate(decoder(folder), [prompt], 12, sampling, Bytes())
    stop = next(character for character in free.text[3:] if character != "\ufffd")
    (stopped,) = predicted(folder, tmp_path / "out.jsonl", *words[:-1], f"--stop={json.dumps([stop])}")
    assert stopped["finish"] == "stop" and stopped["written"] == free.text[: free.text.index(stop)]


class OwnStep(HybridLM):
    """Predicts something else."""

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return 0


WRONG = {
    "no prompt": (["--prompt_tokens=0"], "prompt_tokens: 0 is not allowed; it must be at least 1"),
    "long prompts": (["--prompt_tokens=5000"], "prompt_tokens: 5000 is not allowed; the longest of "),
    "nothing to write": (["--max_new_tokens=0"], "max_new_tokens: 0 is not allowed; it must be at least 1"),
    "no documents": (["--num_documents=0"], "num_documents: 0 is not allowed; it must be at least 1"),
    "cold": (["--temperature=-1"], "temperature: -1.0 is not allowed; it must be a number of at least 0"),
    "empty stop": (['--stop=[""]'], "stop: '' is not allowed; it would end every text"),
    "type": (["--kv=int3"], "kv: 'int3' is not allowed; allowed are auto, "),
    "no file": (["--out="], "out: '' is not allowed; it must be a .jsonl file"),
    "another file": (["--out=a.txt"], "out: 'a.txt' is not allowed; it must be a .jsonl file in a folder that exists"),
    "no folder": (["--out=nowhere/a.jsonl"], "out: 'nowhere/a.jsonl' is not allowed; it must be a .jsonl file in a "),
    "a prefix": (["--prefix=3"], "prefix: 3 is not allowed; no layer asks for it"),
    "no checkpoint": (["--ckpt_path=null"], "ckpt_path: needed; without one the model has learnt nothing"),
    "a folder of none": (
        ["--trainer.logger.save_dir=nowhere"],
        "ckpt_path: last is not there; there is no checkpoint below 'nowhere/run'",
    ),
    "a step of one's own": (
        [f"--model.class_path={__name__}.OwnStep"],
        "model.class_path: OwnStep is not allowed; a HybridLM without a predict_step of its own is needed",
    ),
    "no number": (["--prompt_tokens=many"], "prompt_tokens: 'many' is not allowed; it must be int"),
    "shards": (
        ['--trainer.strategy={"class_path": "lg.parallel.HybridStrategy"}', "--trainer.devices=1"],
        "trainer.strategy: HybridStrategy on 1 devices is not allowed; one device writes",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_and_the_file_is_as_it_was(
    case: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words, what = WRONG[case]
    out = tmp_path / "out.jsonl"
    out.write_text("as it was")
    predicted(folder, out, *words, code=2)
    assert f"\nlg predict: {what}" in f"\n{capsys.readouterr().err}"
    assert out.read_text() == "as it was" and list(tmp_path.iterdir()) == [out]


def test_a_file_is_needed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--config", str(folder / "config.yaml"), "--ckpt_path", "last"]) == 2
    assert "lg predict: out: needed; a .jsonl file" in capsys.readouterr().err


def test_options_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--help"]) == 0
    told = capsys.readouterr().out
    assert "--prompt_tokens PROMPT_TOKENS" in told and "return_predictions" not in told


def test_from_python(folder: Path) -> None:
    model = HybridLM.from_checkpoint(checkpoint(folder))
    model.write_on = WriteOn(prompt_tokens=50, max_new_tokens=4, batch_size=4, num_documents=6)
    found = trainer().predict(model, datamodule=data(folder))
    assert found is not None
    batches: list[list[Continued]] = [list(batch) for batch in found]  # type: ignore[arg-type]
    assert [len(batch) for batch in batches] == [4, 2]
    texts = [list(text) for text in held_out(folder) if len(text) > 50][:6]
    for one, text in zip((one for batch in batches for one in batch), texts, strict=True):
        assert (one.prompt, one.stood, len(one.written.tokens)) == (text[:50], text[50:54], 4)


def test_where_training_was_in_its_data_is_no_matter(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a logger the configuration is kept where one stands.
    monkeypatch.chdir(tmp_path)
    saved = torch.load(checkpoint(folder), weights_only=True)
    # As of a stream that two ranks have read, with positions that nothing else has.
    saved["TextData"] = {"shards": [saved["TextData"]["train"]] * 2, "positions": "PoSE(target=256, chunks=2)"}
    torch.save(saved, tmp_path / "stream.ckpt")
    assert predicted(folder, tmp_path / "out.jsonl", "--ckpt_path", str(tmp_path / "stream.ckpt"), "--num_documents=1")
    words = ("--config", str(folder / "config.yaml"), "--ckpt_path", str(tmp_path / "stream.ckpt"))
    assert main(["validate", *words, "--trainer.limit_val_batches=1", "--trainer.logger=false"]) == 0
    assert "goes on with" not in caplog.text


class Own(pl.LightningDataModule):
    """Documents of its own."""

    def __init__(self, batches: Sequence[Any]) -> None:
        super().__init__()
        self.batches = batches

    def predict_dataloader(self) -> Any:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]


def module(*sees: Any) -> HybridLM:
    first, second = sees or (SinkWindow(window=8), Causal())
    return HybridLM({"a": first, "b": second}, "a, b", decoder=SHAPE)


def test_data_of_ones_own() -> None:
    model = module()
    model.write_on = WriteOn(prompt_tokens=5, max_new_tokens=2)
    texts = torch.randint(1, 256, (3, 9))
    found = trainer().predict(model, datamodule=Own([[texts[0], texts[1, :5], texts[2, :6]], texts]))
    assert found is not None
    assert [len(batch) for batch in found] == [2, 3]
    assert [one.prompt for one in found[1]] == texts[:, :5].tolist()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"data\.predict_dataloader: dict is not allowed as a batch; a list of"):
        trainer().predict(model, datamodule=Own([{"tokens": texts}]))
    model.write_on = None
    with pytest.raises(ValueError, match=r"model\.write_on: None is not allowed"):
        trainer().predict(model, datamodule=Own([texts]))


def test_a_prefix_is_told_where_it_is_asked_for() -> None:
    model = module(PrefixLM(), PrefixLM())
    texts = [torch.randint(1, 256, (20,))]
    model.write_on = WriteOn(prompt_tokens=10, max_new_tokens=3)
    with pytest.raises(ValueError, match="prefix: needed; layers ask how many tokens of the prompt"):
        trainer().predict(model, datamodule=Own([texts]))
    model.write_on = WriteOn(prompt_tokens=10, max_new_tokens=3, prefix=10)
    assert trainer().predict(model, datamodule=Own([texts]))
    with pytest.raises(ValueError, match="prefix: 11 is not allowed; it must be from 0 to prompt_tokens, 10"):
        WriteOn(prompt_tokens=10, prefix=11)
