"""`lg bench prefill` and `lg bench decode`: a row for each case, and what each of them holds and reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lg.attention import Causal, SinkWindow
from lg.cli import main
from lg.cli.bench_inference import HELP, _bound, _line
from lg.inference.bench import random_decoder
from lg.inference.formats import Int8, Plain
from lg.inference.room import largest_batch
from lg.models.presets import preset

CPU = torch.device("cpu")
SMALL = ("--device=cpu", "--preset=tiny", "--json=a.json")
SCHEDULES = "--schedules=6*full|2*SinkWindow, 2*full, 2*Strided"


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows() -> list[dict[str, Any]]:
    read: list[dict[str, Any]] = json.loads(Path("a.json").read_text())["rows"]
    return read


def test_prompts_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    words = [SCHEDULES, "--lengths=130,2200", "--batch=2", "--chunk=2K", "--repeats=1"]
    assert main(["bench", "prefill", *SMALL, *words]) == 0
    assert [(row["schedule"][0], row["length"], row["batch"]) for row in rows()] == [
        ("6", 130, 2), ("6", 2200, 2), ("2", 130, 2), ("2", 2200, 2),
    ]  # fmt: skip
    full, hybrid = rows()[1], rows()[3]
    # 35 pages of 64 tokens, in 6 layers, of one KV head: keys and values of 32 features in float32.
    assert full["kv_gib"] * 2**30 == 2 * 35 * 64 * 6 * 2 * 32 * 4 and full["kv_share"] == 1
    assert hybrid["kv_gib"] / full["kv_gib"] == pytest.approx(hybrid["kv_share"]) and hybrid["kv_share"] < 0.85
    assert all(row["prefill_s"] > 0 and row["impl"] == "lg" and row["model"] == "tiny" for row in rows())
    told = capsys.readouterr().out.splitlines()
    assert told[1] == "tiny, random weights in float32" and len([line for line in told if " GiB" in line]) == 4


def test_tokens_are_written() -> None:
    words = [SCHEDULES, "--lengths=300", "--kv=auto,int8,int8_int4", "--steps=2"]
    assert main(["bench", "decode", *SMALL, *words]) == 0
    assert [(row["schedule"][0], row["kv"]) for row in rows()] == [
        ("6", "auto"), ("6", "int8"), ("6", "int8_int4"), ("2", "auto"), ("2", "int8"), ("2", "int8_int4"),
    ]  # fmt: skip
    plain, codes, mixed = rows()[:3]
    assert plain["kv_share"] == codes["kv_share"] == 1 and plain["decode_ms_per_token"] > 0
    # A byte a feature, and 4 of each vector, instead of 4 a feature.
    assert codes["kv_gib"] / plain["kv_gib"] == pytest.approx((32 + 4) / (32 * 4))
    # Half a byte a feature of values.
    assert mixed["kv_gib"] / codes["kv_gib"] == pytest.approx((32 + 16 + 8) / (2 * (32 + 4)))
    weights = sum(x.nbytes for x in random_decoder(preset("tiny"), [Causal()] * 6, CPU, torch.float32).parameters())
    assert plain["weights_gib"] * 2**30 == weights
    assert not plain["graphs"] and "bandwidth_share" not in plain


def test_tokens_are_written_by_kernels() -> None:
    words = ["--schedules=2*full, 4*SinkWindow", "--lengths=100", "--batch=2", "--steps=1", "--graphs=yes"]
    assert main(["bench", "decode", *SMALL, *words]) == 0
    assert rows()[0]["graphs"]


def test_a_configuration_is_timed(root: Path) -> None:
    model = ["--model.preset=tiny", "--model.decoder={num_layers: 2}", "--model.schedule=local, full"]
    config = ["--config", str(root / "configs" / "hybrid.yaml"), *model, "--lengths=70", "--steps=1"]
    assert main(["bench", "decode", "--device=cpu", "--json=a.json", *config]) == 0
    assert [row["schedule"] for row in rows()] == ["local, full"]


def test_as_many_as_fit() -> None:
    full = random_decoder(preset("tiny"), [Causal()] * 6, CPU, torch.float32)
    plain, codes = ((form, form) for form in (Plain(torch.float32), Int8()))
    of_one = 1024 * 6 * 2 * 32 * 4
    assert [largest_batch(full, 1024, plain, size) for size in (of_one - 1, of_one, 5 * of_one, 10**12)] == [
        0, 1, 5, 256,
    ]  # fmt: skip
    assert largest_batch(full, 1024, codes, 5 * of_one) == 17
    hybrid = random_decoder(preset("tiny"), [SinkWindow(window=64)] * 6, CPU, torch.float32)
    assert largest_batch(hybrid, 1024, plain, 5 * of_one) > 10


def test_a_line_has_what_the_bandwidth_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lg.cli.bench_inference._name", lambda device: "NVIDIA H200")
    bound = _bound(torch.device("cuda"), 0.002, int(4.8e9))
    assert bound == {"bound_ms": pytest.approx(1.0), "bandwidth_share": pytest.approx(0.5)}
    row = {
        "schedule": "2*full", "length": 1024, "batch": 4, "kv": "auto", "decode_ms_per_token": 2.0, "kv_gib": 0.5,
        "kv_share": 0.25, "peak_gib": 3.0, **bound,
    }  # fmt: skip
    told = _line("decode", row, 8).split()
    assert told[4:] == ["2.000", "ms", "1.000", "ms", "50.0%", "2,000", "0.500", "GiB", "25.0%", "3.0", "GiB"]
    failed = {key: row[key] for key in ("schedule", "length", "batch", "kv")} | {"error": "out of memory"}
    assert _line("decode", failed, 8).endswith("failed: out of memory")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["prefill", "--preset=huge"], "--preset: 'huge' is not a preset"),
        (["prefill", "--lengths=many"], "--lengths: 'many' is not allowed"),
        (["prefill", "--batch=0"], "--batch: '0' is not allowed"),
        (["prefill", "--chunk=0"], "--chunk: '0' is not allowed"),
        (["prefill", "--steps=3"], "'--steps=3' is not an option (see lg bench prefill --help)"),
        (["prefill", "--schedules=6*none"], "'none'"),
        (["prefill", "--preset=tiny", "--config=a.yaml"], "--preset: 'tiny' is not allowed beside --config"),
        (["decode", "--kv=int2"], "--kv: 'int2' is not allowed"),
        (["decode", "--dtype=int8"], "--dtype: 'int8' is not allowed"),
        (["decode", "--graphs=maybe"], "--graphs: 'maybe' is not allowed; allowed are auto, yes, no"),
        (["decode", "--json=a.txt"], "--json: 'a.txt' is not allowed"),
        (["prefill", "--schedules=6*PrefixLM"], "asks for doc.prefix"),
    ],
)
def test_mistakes_are_told(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words, "--device=cpu"]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("what", ["prefill", "decode"])
def test_help(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", what, "--help"]) == 0
    assert capsys.readouterr().out == HELP[what]
