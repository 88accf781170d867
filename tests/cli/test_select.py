"""`lg data select` scores with two real models, and writes what the source Jsonl reads, or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lg.attention import Causal, Documents
from lg.cli import main
from lg.data import Jsonl
from lg.data.impactful import impact, top
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder
from lg.models.hybrid import HybridLM
from lg.models.pretrained.out import save

SHAPE = DecoderConfig(
    num_layers=2, width=32, num_heads=4, num_kv_heads=2, head_width=8, ffn_width=48, vocab_size=256, rope_theta=1e4
)


def decoder(seed: int) -> Decoder:
    torch.manual_seed(seed)
    made = Decoder(SHAPE, [Causal()] * 2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(3)
    return made


def checkpoint(path: Path, made: Decoder) -> None:
    from lg.models.checkpoint import stamp

    shape = {name: value for name, value in vars(SHAPE).items() if name != "rope_scaling"}
    module = HybridLM({"full": Causal()}, "2*full", decoder=shape)
    module.decoder = made
    content = {"state_dict": module.state_dict(), "pytorch-lightning_version": "2.6.0"}
    stamp(content, module.config)
    torch.save(content, path)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    for number in range(3):
        text = "".join(f"Sentence {n} of text {number} says {n * 7919 % 1000}. " for n in range(40 + number * 30))
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    source = {"class_path": "Folder", "init_args": {"path": "texts"}}
    config = {"data": {"class_path": "TextData", "init_args": {"source": source}}, "trainer": {"max_steps": 3}}
    (tmp_path / "books.yaml").write_text(yaml.safe_dump(config))
    save(tmp_path / "base", decoder(0).state_dict(), SHAPE, [Causal()] * 2, 512)
    checkpoint(tmp_path / "extended.ckpt", decoder(1))
    return tmp_path


WORDS = ["data", "select", "--config", "books.yaml", "--base=base", "--extended=extended.ckpt", "--out=kept.jsonl"]


def scores(made: Decoder, tokens: torch.Tensor, window: int) -> np.ndarray:
    """By logits, each window alone."""
    found = []
    for piece in tokens.view(-1, window):
        with torch.no_grad():
            logits = made.logits(piece[None], Documents(len(piece)))[0].log_softmax(-1)
        found += [np.nan, *logits[:-1].gather(1, piece[1:, None])[:, 0].tolist()]
    return np.array(found)


def test_what_is_kept_is_read_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--length=1K", "--budget=256", "--window=512"]) == 0
    out = capsys.readouterr().out
    lines = [json.loads(line) for line in (here / "kept.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["0.txt#0", "1.txt#0", "1.txt#1", "2.txt#0", "2.txt#1", "2.txt#2"]
    kept = [document.text for document in Jsonl(str(here / "kept.jsonl")).read()]
    assert out.startswith(f"kept.jsonl  6 documents, {sum(map(len, kept)):,} of 6,144 tokens, ")
    for line, text in zip(lines, kept, strict=True):
        name, number = line["name"].split("#")
        whole = (here / "texts" / name).read_bytes()[1024 * int(number) :][:1024]
        assert 150 < len(text) <= 256
        tokens = torch.tensor(list(whole))
        marked = top(impact(scores(decoder(0), tokens, 512), scores(decoder(1), tokens, 512)), 0.2)
        # Every sentence that is kept stands there, and holds an impactful token.
        place = 0
        for sentence in [part + b"." for part in text.split(b".") if part]:
            place = whole.find(sentence if sentence in whole else sentence[:-1], place)
            assert place >= 0 and marked[place : place + len(sentence)].any()


def test_it_ends_after_so_many_documents(here: Path) -> None:
    words = [*WORDS, "--length=1K", "--budget=256", "--documents=2"]
    assert main(words) == 0
    first = (here / "kept.jsonl").read_bytes()
    assert first.count(b"\n") == 2
    assert main(words) == 0 and (here / "kept.jsonl").read_bytes() == first
    assert main([*words, "--seed=1"]) == 0 and (here / "kept.jsonl").read_bytes() != first


MISTAKES = {
    "--length=1M": "--length: 1048576 is not allowed; no document has so many tokens",
    "--base=nowhere": "--base: 'nowhere' has no config.json",
    "--extended=nowhere.ckpt": "--extended: 'nowhere.ckpt' does not exist",
    "--out=kept.txt": "--out: 'kept.txt' is not allowed; it must be a .jsonl file",
    "--out=": "--out: needed (see lg data select --help)",
    "--share=half": "--share: 'half' is no number",
    "--window=1": "--window: 1 is not allowed; it must be at least 2",
    "--documents=0": "--documents: 0 is not allowed; it must be at least 1",
    "--data.row_length=0": "data.init_args.row_length: 0 is not allowed",
    "--data=RandomTokens": "data.class_path: RandomTokens is not allowed",
}


@pytest.mark.parametrize("word", MISTAKES)
def test_mistakes(word: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--data.row_length=8"] if "RandomTokens" in word else []
    assert main([*WORDS, "--length=1K", "--budget=256", word, *more]) == 2
    assert f"lg data: {MISTAKES[word]}" in capsys.readouterr().err
    assert not (here / "kept.jsonl").exists() and not list(here.glob(".*part"))


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "select", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: lg data select")
