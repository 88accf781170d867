"""`lg bench attention`: a table, a picture, a file, and what `auto` picks by from then on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from lg.attention import Causal, Documents, rates
from lg.attention.rates import ranked
from lg.cli import main

SMALL = ("bench", "attention", "--lengths=64,130", "--seconds=0.001", "--heads=4", "--kv_heads=2", "--width=16")


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder, and an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LG_CACHE", str(tmp_path / "cache"))
    rates.forget()
    yield
    rates.forget()


def test_table_file_and_picture(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--patterns=SinkWindow,causal", "--impls=dense,sdpa,gather,flex", "--json=a.json", "--out=a.png"]
    assert main([*SMALL, "--device=cpu", *words]) == 0
    told = capsys.readouterr().out
    lines = told.splitlines()
    assert lines[0].startswith("CPU, 1 threads; torch ") and "4 query heads on 2 KV heads of 16, float32" in lines[1]
    assert "causal, 64 tokens: k <= q" in lines
    assert "SinkWindow, 130 tokens: (k <= q) & ((q - k < 1984) | (k < 64))" in lines
    assert "  sdpa        refused: it computes full causal attention only" in told
    assert told.count("FlexAttention has no backward pass on a CPU") == 4
    taken = [line.split() for line in lines if line.endswith(" auto")]
    assert [words[0] for words in taken] == ["sdpa", "gather"] * 2
    assert taken[1][-3].endswith("x")  # as fast as the best causal one
    rows = json.loads(Path("a.json").read_text())
    assert [(row["case"], row["length"]) for row in rows[::4]] == [
        ("causal", 64), ("SinkWindow", 64), ("causal", 130), ("SinkWindow", 130),
    ]  # fmt: skip
    assert [row["impl"] for row in rows if "fwd_ms" in row] == ["dense", "sdpa", "gather", "dense", "gather"] * 2
    assert all(max(row["errors"].values()) < 1e-5 for row in rows if "errors" in row)
    # Two patterns, each forward and backward.
    with Image.open("a.png") as image:
        assert image.size == (2 * 336, 2 * 215)


def test_documents_are_packed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--device=cpu", "--documents=3", "--patterns=PrefixLM", "--impls=dense,gather"]) == 0
    assert "PrefixLM, 64 tokens in 3 documents: (k <= q) | (k < doc.prefix)" in capsys.readouterr().out


def test_auto_picks_by_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    q, k = torch.empty(1, 4, 64, 16), torch.empty(1, 2, 64, 16)
    tiles = Causal().tiles(Documents(64), 2)
    assert not ranked(q, k, tiles)
    assert main([*SMALL, "--device=cpu", "--patterns=causal", "--impls=sdpa,gather", "--update"]) == 0
    path = Path(capsys.readouterr().out.splitlines()[-1].split()[-1])
    assert path == Path("cache/rates/cpu.json").absolute()
    assert [sorted(row["ms"]) for row in json.loads(path.read_text())["rows"]] == [["gather", "sdpa"]] * 2
    assert [path.name for path in path.parent.iterdir()] == ["cpu.json"]
    rates.forget()
    assert {choice.name for choice in ranked(q, k, tiles)} == {"sdpa", "gather"}


@pytest.mark.parametrize("words", [[], ["--help"], ["attention", "--help"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 0
    assert capsys.readouterr().out.startswith("usage: lg bench attention ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["matmul"], "'matmul' is not a benchmark; allowed: attention, train, prefill, decode (see lg bench --help)"),
        (["attention", "--patterns=causal,Windw"], "--patterns: 'Windw' is not known; allowed: causal, window_4k, "),
        (["attention", "--impls=fast"], "--impls: 'fast' is not known; allowed: dense, "),
        (["attention", "--lengths=2K,0"], "--lengths: '0' is not allowed; write tokens"),
        (["attention", "--heads=0"], "--heads: '0' is not allowed; it must be a number from 1 to 1,024"),
        (["attention", "--heads=6", "--kv_heads=4"], "--kv_heads: 4 is not allowed; 6 query heads must be a multiple"),
        (["attention", "--width=\u00b2"], "--width: '\u00b2' is not allowed"),
        (["attention", "--dtype=int8"], "--dtype: 'int8' is not allowed; it must be one of bfloat16, float16, float32"),
        (["attention", "--device=abacus"], "--device: 'abacus' is not allowed; it must be a device of this machine"),
        (["attention", "--device=meta"], "--device: 'meta' is not allowed; it must be cpu, cuda or cuda:N"),
        (["attention", "--seconds=nan"], "--seconds: 'nan' is not allowed; it must be a number above 0"),
        (["attention", "--documents=999", "--lengths=8"], "--documents: 999 is not allowed in 8 tokens"),
        (["attention", "--json=no/a.json"], "--json: 'no/a.json' is not allowed; it must be a .json file in a folder"),
        (["attention", "--out=a.jpg"], "--out: 'a.jpg' is not allowed; it must be a .png file"),
        (["attention", "--speed=1"], "unrecognized arguments: --speed=1 (see lg bench --help)"),
        (["attention", "--length=1K"], "unrecognized arguments: --length=1K"),
        (["attention", "--patterns=causal,ShiftedGroups"], "is made for 8 KV heads, but the layer has 2"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_is_measured(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("lg bench: ") and said in captured.err and captured.err.count("\n") == 1
    assert not captured.out


def test_a_picture_of_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--device=cpu", "--patterns=Window", "--impls=sdpa", "--out=a.png"]) == 2
    assert "--out: 'a.png' is not written, since nothing could be timed" in capsys.readouterr().err
    assert not Path("a.png").exists()
