"""`lg serve` as a process, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import tokenizers
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel

from lg.attention import Causal, SinkWindow
from lg.cli import main
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder
from lg.models.pretrained.out import save

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<end>{% endfor %}{{ '<|assistant|>' }}"
MARKS = ("<end>", "<|user|>", "<|assistant|>", "<|system|>")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model of bytes, its tokenizer and chat template beside it."""
    torch.manual_seed(0)
    sees = [SinkWindow(window=64, sinks=4), Causal()]
    config = DecoderConfig(
        vocab_size=260, num_layers=2, width=32, num_heads=2, num_kv_heads=1, head_width=16, ffn_width=64
    )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), ByteLevel()
    tokenizer.add_special_tokens([tokenizers.AddedToken(mark) for mark in MARKS])
    told = {"eos_token": "<end>", "chat_template": TEMPLATE}
    files: dict[str, str | Path] = {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": json.dumps(told)}
    save(tmp_path / "tiny", Decoder(config, sees).state_dict(), config, sees, 4096, files=files)
    return tmp_path / "tiny"


@pytest.mark.slow
def test_a_process_serves_until_it_is_told_to_end(folder: Path) -> None:
    words = [f"--model={folder}", "--port=0", "--max-length=256", "--slots=2", "--memory=1MiB", "--device=cpu"]
    environment = {**os.environ, "LG_API_KEY": "secret", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "lg", "serve", *words], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert "tiny at " in said and "up to 256 tokens, 2 at once" in said
        url = re.findall(r"http://\S+/v1", said)[0]
        with httpx.Client(base_url=url, timeout=60) as client:
            assert client.get("/models").status_code == 401
            client.headers["authorization"] = "Bearer secret"
            body = {"model": "tiny", "messages": [{"role": "user", "content": "a<end>b"}], "max_tokens": 4}
            answer = client.post("/chat/completions", json=body).json()
            # Two marks, and what is said, in which nothing is a mark.
            assert answer["usage"]["prompt_tokens"] == 3 + len("a<end>b")
            assert answer["choices"][0]["finish_reason"] in ("length", "stop")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stdout.read() == "ended\n"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port=0"], "--model: needed"),
        (["--model={folder}", "--host=0.0.0.0"], "can be reached from other machines, so that --api-key"),
        (["--model={folder}", "--host=nowhere.invalid", "--api-key=k"], "is not an address of this machine"),
        (["--model={folder}", "--port=70000"], "--port: 70000 is not allowed; it must be from 0 to 65535"),
        (["--model={folder}", "--slots=0"], "--slots: 0 is not allowed"),
        (["--model={folder}", "--memory=lots"], "--memory: 'lots' is not allowed; write a size such as"),
        (["--model={folder}", "--kv=int2"], "--kv: 'int2' is not allowed; allowed are auto"),
        (["--model={folder}", "--device=cpu", "--compile"], "--compile: not allowed on cpu; it is for CUDA devices"),
        (["--model={folder}", "--port=0", "--memory=9KiB"], "that keys and values of one request of 4,096 tokens"),
        (["--model={folder}/nowhere", "--port=0"], "does not exist"),
        (["--model={folder}", "--api-key="], "--api-key: '' is not allowed"),
    ],
)
def test_refusals(words: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *(word.replace("{folder}", str(folder)) for word in words), "--device=cpu"]) == 2
    told = capsys.readouterr()
    assert said in told.err.splitlines()[-1] and "Traceback" not in told.err and not told.out


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve"]) == 0
    assert capsys.readouterr().out.startswith("usage: lg serve --model=PATH")
