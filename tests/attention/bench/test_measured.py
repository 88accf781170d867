"""A row says what was computed, how fast, and how far from another implementation; refusals and failures are rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from lg.attention import Causal, Documents, Pattern, SinkWindow, Strided, Tiles, Window
from lg.attention.attend import IMPLEMENTATIONS
from lg.attention.bench import PATTERNS, Case, Row, measured, mixed
from lg.attention.impl import Executed, dense
from lg.testing.patterns import brute_force

CASE = Case("near", Window(9), Documents(70, (0, 33)), torch.device("cpu"), 4, 2, 16, torch.float32)


@dataclass(frozen=True)
class Changed:
    """Dense attention, but for what is done to it."""

    change: Callable[[Tensor], Tensor]
    why: str | None = None

    def refusal(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> str | None:
        return self.why

    def run(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
        return self.change(dense.run(q, k, v, tiles, scale))

    def executed(self, tiles: Tiles) -> Executed:
        return dense.executed(tiles)


def fail(out: Tensor) -> Tensor:
    raise RuntimeError("no\nkernel")


def rows_of(case: Case, **implementations: object) -> list[Row]:
    return list(measured(case, implementations, seconds=1e-3))  # type: ignore[arg-type]


def test_refusals_and_failures_are_rows_and_others_go_on() -> None:
    refused, failed, first, wrong = rows_of(
        CASE,
        refused=Changed(fail, "it is too wide"),
        failed=Changed(fail),
        first=dense,
        wrong=Changed(lambda out: 1.01 * out),
    )
    assert (refused.refused, refused.failed, refused.fwd_ms) == ("it is too wide", None, None)
    assert (failed.refused, failed.failed, failed.bwd_ms) == (None, "RuntimeError: no kernel", None)
    assert (first.errors, first.against) == (None, None)
    assert wrong.against == "first" and wrong.errors
    assert wrong.errors == pytest.approx(dict.fromkeys(("output", "dq", "dk", "dv"), 0.01), rel=1e-2)


@pytest.mark.parametrize("pattern", [Window(9), Strided(block=4, local_blocks=2, stride=4), SinkWindow(5, 3)], ids=str)
@pytest.mark.parametrize("queries", [None, (20, 60)])
def test_rates_count_pairs_seen_and_pairs_computed(pattern: Pattern, queries: tuple[int, int] | None) -> None:
    case = replace(CASE, pattern=pattern, queries=queries)
    row, gathered = rows_of(case, dense=dense, gather=IMPLEMENTATIONS["gather"])
    assert row.fwd_ms and row.bwd_ms and row.fwd_tflops and row.bwd_tflops
    assert row.fwd_executed_tflops and row.bwd_executed_tflops
    seen = brute_force(case.tiles())
    num_seen = int(seen.sum()) * 4 // seen.shape[0]
    num_queries = 40 if queries else 70
    close = {"rel": 2e-2}  # milliseconds are told with three decimals
    assert row.fwd_tflops * row.fwd_ms * 1e9 == pytest.approx(4 * 16 * num_seen, **close)
    assert row.bwd_tflops * row.bwd_ms * 1e9 == pytest.approx(10 * 16 * num_seen, **close)
    assert row.fwd_executed_tflops * row.fwd_ms * 1e9 == pytest.approx(4 * 16 * 4 * 70 * num_queries, **close)
    # Dense attention keeps its weights.
    assert row.bwd_executed_tflops * row.bwd_ms * 1e9 == pytest.approx(8 * 16 * 4 * 70 * num_queries, **close)
    assert (row.queries, row.documents, row.kv_heads, row.sees) == (num_queries, 2, 2, pattern.text)
    assert gathered.errors and max(gathered.errors.values()) < 1e-5


def test_what_auto_takes_is_told() -> None:
    rows = rows_of(replace(CASE, pattern=Causal()), **{name: IMPLEMENTATIONS[name] for name in ("gather", "sdpa")})
    assert [(row.impl, row.auto) for row in rows] == [("gather", False), ("sdpa", True)]


def test_it_trains_whatever_the_caller_does() -> None:
    before = torch._functorch.config.donated_buffer
    with torch.inference_mode():
        rows = measured(CASE, {"dense": dense, "gather": IMPLEMENTATIONS["gather"]}, seconds=1e-3)
        assert next(rows).bwd_ms
        assert torch.is_inference_mode_enabled() and torch._functorch.config.donated_buffer == before
        assert next(rows).against == "dense"


def test_only_what_was_measured_is_written() -> None:
    (row,) = rows_of(CASE, refused=Changed(fail, "no"))
    plain = row.plain()
    assert plain["refused"] == "no" and not {"fwd_ms", "failed", "errors"} & set(plain)
    assert {"case", "impl", "length", "kv_heads"} <= set(plain)
    assert {"fwd_ms", "bwd_ms", "fwd_tflops", "bwd_tflops"} <= set(rows_of(CASE, dense=dense)[0].plain())


@pytest.mark.parametrize(("length", "count"), [(1, 1), (10, 10), (1000, 7), (4096, 1)])
def test_documents_of_mixed_lengths_fill_the_sequence(length: int, count: int) -> None:
    documents = mixed(length, count, ("length", "prefix"))
    own = documents.attribute("length")
    assert (len(own), int(own.sum())) == (count, length)
    assert torch.equal(documents.attribute("prefix"), own // 3)
    assert count in (1, 10) or own.max() > 3 * own.min()


def test_the_named_patterns_are_those_of_the_issue() -> None:
    assert PATTERNS["sink_window_2k"] == SinkWindow(window=1984, sinks=64)
    assert PATTERNS["strided_2k"] == Strided(block=64, local_blocks=16, stride=128, head_step=4)


@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["flex", "sdpa"])
def test_a_gpu_tells_its_peak(impl: str) -> None:
    case = Case("causal", Causal(), Documents(1000), torch.device("cuda", 0), 4, 2, 64)
    (row,) = rows_of(case, **{impl: IMPLEMENTATIONS[impl]})
    out = 1000 * 4 * 64 * 2 / 2**20
    # Output, its gradient, and those of q, k and v.
    assert row.fwd_ms and row.bwd_ms and row.peak_MiB and 3 * out < row.peak_MiB < 40 * out
