"""`auto` picks by times measured on such a device, on the problem that is nearest; damaged tables lose nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from lg.attention import Causal, Chunked, Dilated, Documents, Pattern, SinkWindow, Strided, Window, rates
from lg.attention.attend import IMPLEMENTATIONS
from lg.attention.rates import ranked, table

H100 = "NVIDIA H100 80GB HBM3"
NEAR = Window(10)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What the machine's device is called; tests may change it. The cache is empty."""
    told: dict[str, Any] = {"name": H100, "capability": [9, 0]}
    monkeypatch.setattr(table, "_name", lambda device: told["name"])
    monkeypatch.setattr(table, "_capability", lambda device: told["capability"])
    monkeypatch.setenv("LG_CACHE", str(tmp_path))
    rates.forget()
    yield told
    rates.forget()


def order(
    pattern: Pattern,
    length: int = 131_072,
    starts: tuple[int, ...] = (0,),
    width: int = 128,
    dtype: torch.dtype = torch.bfloat16,
    heads_kv: int = 8,
) -> list[str]:
    q, k = torch.empty(1, 32, 1, width, dtype=dtype), torch.empty(1, heads_kv, 1, width, dtype=dtype)
    return [choice.name for choice in ranked(q, k, pattern.tiles(Documents(length, starts), heads_kv))]


def row(impl: str, both: float, pattern: Pattern = NEAR, case: str = "near", **other: Any) -> dict[str, Any]:
    """As `lg bench attention` writes it."""
    shape = {"length": 1024, "heads": 32, "kv_heads": 8, "width": 128, "dtype": "bfloat16", "documents": 1}
    made = {"case": case, "impl": impl, "sees": pattern.text, "date": "2026-01-02", **shape, **other}
    return {"queries": made["length"], "fwd_ms": both / 4, "bwd_ms": 3 * both / 4, **made}


def keep(rows: list[dict[str, Any]]) -> Path:
    path, text = table.updated(torch.device("cpu"), table.rows_of(rows))
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    rates.forget()
    return path


def test_shipped_tables_are_those_of_committed_results(root: Path) -> None:
    files = [file for file in resources.files("lg.attention.rates").iterdir() if file.name.endswith(".json")]
    assert files
    for file in files:
        shipped = json.loads(file.read_text())
        results = [json.loads((root / source).read_text()) for source in shipped["sources"]]
        for result in results:
            assert shipped["device"] == result["device"]
            assert result["versions"].items() <= shipped["versions"].items()
        measured = {
            (each["impl"], each["length"], round(each["fwd_ms"] + each["bwd_ms"], 3))
            for result in results
            for each in result["rows"]
            if "fwd_ms" in each
        }
        assert shipped["rows"]
        for each in shipped["rows"]:
            assert {(impl, each["length"], taken) for impl, taken in each["ms"].items()} <= measured
            assert set(each["ms"]) <= set(IMPLEMENTATIONS)


def test_full_attention_and_sparse_are_told_apart(device: dict[str, Any]) -> None:
    assert order(Causal())[:3] == ["flash", "flex_flash", "sdpa"]
    for pattern in (SinkWindow(window=100, sinks=3), Strided(block=64, local_blocks=2, stride=9, head_step=1)):
        assert "sdpa" not in order(pattern) and "flex" in order(pattern)


def test_a_kernel_for_each_document_is_not_chosen_by_times_of_one(device: dict[str, Any]) -> None:
    assert order(Chunked(100))[0] == "sdpa"
    assert order(Chunked(100), starts=(0, 7)) == ["triton", "flex"]
    assert "sdpa" not in order(Causal(), starts=(0, 7)), "it has not been timed on packings that change"
    # All others by the same pattern, though it was not measured packed.
    assert order(Window(4096), starts=(0, 7)) == order(Window(4096)) == ["flash", "flex_flash", "triton", "flex"]
    # Where it was measured on packed documents, that counts.
    keep([row(impl, both, Chunked(9), documents=3) for impl, both in (("flex", 2.0), ("sdpa", 1.0))])
    assert order(Chunked(100), starts=(0, 7)) == ["sdpa", "flex"]
    assert order(Chunked(100))[0] == "sdpa"


def test_what_is_left_out_is_not_compared_with(device: dict[str, Any]) -> None:
    device.update(name="some", capability=[1, 0])
    times = {"sdpa": 1.0, "flex": 6.0, "triton": 3.0}
    keep([row(impl, both, Chunked(9), length=2048) for impl, both in times.items()])
    q, k = torch.empty(1, 32, 1, 128, dtype=torch.bfloat16), torch.empty(1, 8, 1, 128, dtype=torch.bfloat16)
    best, worst = ranked(q, k, Chunked(9).tiles(Documents(2048, (0, 7)), 8))
    assert best == (
        "triton", "it was measured 2.00x as fast as flex, on near, 2K tokens, head width 128, some, 2026-01-02"
    )  # fmt: skip
    assert worst.reason.startswith("it was measured 0.50x as fast as triton, on near")


def test_the_reason_has_the_figures(device: dict[str, Any]) -> None:
    q, k = torch.empty(1, 32, 1, 128, dtype=torch.float16), torch.empty(1, 8, 1, 128, dtype=torch.float16)
    keep([row("flex", 9.0, length=2048), row("sdpa", 6.0, length=2048)])
    best, worst = ranked(q, k, Window(3).tiles(Documents(2000), 8))
    assert best == (
        "sdpa",
        f"it was measured 1.50x as fast as flex, on near, 2K tokens, head width 128, {H100}, 2026-01-02",
    )
    assert worst.reason.startswith("it was measured 0.67x as fast as sdpa, on near")


def test_a_device_of_the_same_capability_is_served_and_told(device: dict[str, Any]) -> None:
    device["name"] = "NVIDIA H200"
    q, k = torch.empty(1, 32, 1, 128, dtype=torch.bfloat16), torch.empty(1, 8, 1, 128, dtype=torch.bfloat16)
    assert H100 in ranked(q, k, Causal().tiles(Documents(4096), 8))[0].reason


@pytest.mark.parametrize(("name", "capability"), [("NVIDIA A100-SXM4-80GB", [8, 0]), ("cpu", None)])
def test_nothing_is_known_of_another_device(device: dict[str, Any], name: str, capability: Any) -> None:
    device.update(name=name, capability=capability)
    assert order(Causal()) == []


def test_a_compiled_graph_has_the_choice_as_a_constant(device: dict[str, Any]) -> None:
    tiles = Causal().tiles(Documents(4096), 8)

    def scaled(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return q * (2 if ranked(q, k, tiles)[0].name == "flash" else 3)

    q, k = torch.ones(1, 32, 4, 128, dtype=torch.bfloat16), torch.ones(1, 8, 4, 128, dtype=torch.bfloat16)
    assert bool((torch.compile(scaled, fullgraph=True, backend="eager")(q, k) == 2).all())


def test_nothing_is_known_of_a_type_of_other_bits(device: dict[str, Any]) -> None:
    assert order(Causal(), dtype=torch.float32) == []
    assert order(Causal(), dtype=torch.float16) == order(Causal())


def test_the_nearest_problem_counts(device: dict[str, Any]) -> None:
    device.update(name="some", capability=[1, 0])
    pairs = [
        {"length": 1024, "width": 64},
        {"length": 8192, "width": 64},
        {"length": 1024, "width": 128},
        {"length": 1024, "width": 64, "documents": 3},
        {"length": 1024, "width": 64, "kv_heads": 32},
    ]
    rows = []
    for number, other in enumerate(pairs):
        rows += [row(f"best{number}", 1.0, **other), row("other", 2.0, **other)]
    rows += [row("sparse", 1.0, SinkWindow(5, 5), width=64), row("other", 2.0, SinkWindow(5, 5), width=64)]
    keep(rows)
    assert order(Window(99), 2000, width=64)[0] == "best0"
    assert order(Window(99), 100_000, width=80)[0] == "best1"
    assert order(Window(99), 100_000, width=256)[0] == "best2"
    assert order(Window(99), 2000, (0, 7), width=64)[0] == "best3"
    assert order(Window(99), 2000, width=64, heads_kv=16)[0] in ("best0", "best4")
    assert order(Window(99), 2000, width=64, heads_kv=32)[0] == "best4"
    assert order(SinkWindow(7, 7), 2000, width=64)[0] == "sparse"
    # A pattern that nobody measured: the mean over those of the nearest shape.
    assert set(order(Dilated(5, 2), 2000, width=64)) == {"best0", "sparse", "other"}
    assert order(Causal(), 2000, width=64) == []


def test_own_times_take_the_place_of_shipped_ones(device: dict[str, Any]) -> None:
    assert order(Causal())[0] == "flash"
    shape = {"case": "causal", "length": 131_072}
    path = keep([row("flash", 3.0, Causal(), **shape), row("flex", 2.0, Causal(), **shape)])
    # The others stand as they were shipped.
    assert order(Causal()) == ["flex", "flash", "flex_flash", "sdpa", "triton"]
    assert order(Causal(), 32_768)[0] == "flash"
    # Again, another case: the first stays.
    keep([row("flex", 5.0), row("triton", 4.0)])
    assert order(Causal())[:2] == ["flex", "flash"]
    assert order(Window(10), 1024) == ["triton", "flex"]
    assert len(json.loads(path.read_text())["rows"]) == 2


def test_only_whole_measurements_make_rows() -> None:
    timed = [row("flex", 2.0), row("sdpa", 1.0), row("dense", 0.1)]
    refused = {key: value for key, value in row("flash", 1.0).items() if key not in ("fwd_ms", "bwd_ms")}
    alone = row("flex", 1.0, Causal())
    chunk = [row(impl, 1.0, queries=10) for impl in ("flex", "sdpa")]
    wrong = [row("triton", 0.1) | {"errors": {"output": 1e-3, "dq": error}} for error in (1.0, float("nan"))]
    (made,) = table.rows_of([*timed, refused | {"refused": "no"}, alone, *chunk, *wrong])
    assert made["ms"] == {"flex": 2.0, "sdpa": 1.0}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"rows": 3}', '{"device": "x", "rows": [{}]}', "null", b"\xff\xfe",
     '{"device": "x", "rows": [{"case": "a", "sees": "", "packed": 0, "length": "7", "heads": 1, "kv_heads": 1, '
     '"width": 1, "dtype": "", "date": "", "ms": {}}]}'],
)  # fmt: skip
def test_a_damaged_table_is_told_and_not_read(
    device: dict[str, Any], text: str | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = keep([row("flex", 5.0), row("triton", 4.0)])
    before = order(Causal())
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    rates.forget()
    with caplog.at_level(logging.WARNING, "lg"):
        assert order(Causal()) == before
    (record,) = caplog.records
    assert str(path) in record.getMessage() and "lg bench attention --update" in record.getMessage()
    keep([row("flex", 5.0), row("triton", 4.0)])
    assert order(Window(10), 1024) == ["triton", "flex"]
