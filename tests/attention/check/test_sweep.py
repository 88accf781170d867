"""Every pattern that comes with lg is among those that are checked; what is remembered is not checked again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from wrong import Altered

from lg.attention import Causal, Routed, SinkWindow, Strided, Tiles, Window
from lg.attention.check import Case, memory
from lg.attention.check.case import inquiry, problem
from lg.attention.check.sweep import PATTERNS, WIDTHS, Row, of_all, of_model, swept
from lg.attention.gallery import parts
from lg.attention.impl import dense, flex, gather, sdpa
from lg.attention.pattern import NAMES

CPU = torch.device("cpu")
FLOAT = [torch.float32]


def told_of(rows: list[Row]) -> list[str]:
    return [row.implementation for row in rows]


def test_every_registered_pattern_is_there() -> None:
    ours = {name for name, kind in NAMES.items() if kind.__module__.startswith("lg.")}
    assert ours == {type(part).__name__ for pattern in PATTERNS.values() for part in parts(pattern)}


@pytest.mark.parametrize("name", PATTERNS)
def test_their_edges_lie_within_a_short_problem(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lg.attention.check.case._LENGTH", 1093)
    for row in of_all({name: PATTERNS[name]}, [64], FLOAT, CPU, ["gather"]):
        assert problem(row.case).tiles.documents.length == 1093


def test_all_is_every_combination() -> None:
    rows = of_all(PATTERNS, WIDTHS, [torch.bfloat16], CPU, ["dense", "flex"])
    assert len(set(rows)) == len(rows) == len(PATTERNS) * 5 * 2 * 2
    assert {(row.case.facts.width, row.case.facts.packed) for row in rows} == {
        (width, packed) for width in (64, 80, 96, 128, 256) for packed in (False, True)
    }


def test_a_model_s_own_heads_count_where_they_matter() -> None:
    patterns = {"local": Window(9), "striped": Strided()}
    rows = of_model(patterns, (32, 8), 128, [torch.bfloat16], CPU, (True, False), lambda pattern: ("flex", "triton"))
    assert len(rows) == 2 * 2 * 2
    assert {(row.pattern, row.case.facts.heads_kv, row.case.facts.groups) for row in rows} == {
        ("local", 2, 4),
        ("striped", 8, 4),
    }


@dataclass(frozen=True)
class Nearest(Routed):
    """Each block of queries sees its own block of keys and one that its content says; a rule of the tests' own."""

    block_q: int = 32
    block_k: int = 32

    def sees(self, q: Any, k: Any, h: Any) -> Any:
        return k <= q

    def route(self, q: Tensor, k: Tensor, tiles: Tiles) -> Tensor:
        shape = (len(q), k.shape[1], -(-q.shape[2] // 32))
        own = torch.arange(shape[2], device=q.device).expand(shape)
        chosen = torch.stack([q[:, 0, ::32].sum(-1) > 0] * shape[1], 1) * own // 2
        return torch.stack((own, chosen), -1)


def test_a_pattern_that_is_chosen_by_content_is_checked_where_it_is_computed() -> None:
    rows = of_model({"near": Nearest()}, (4, 2), 16, FLOAT, CPU, (True, False), lambda pattern: ("dense", "flex"))
    there = {"dense": dense, "flex": flex.TRITON}
    outcomes = list(swept(rows, there, False, lambda row: None))
    assert [outcome.state for outcome in outcomes] == ["passed", "refused"] * 2
    assert outcomes[1].refusal == "it is chosen by content, which only triton and dense compute"
    # What its text admits is another pattern.
    assert memory.recall("dense", Case(Causal(), rows[0].case.facts)) is None
    assert memory.recall("dense", rows[0].case) == outcomes[0].verdict


def test_an_inquiry_is_of_the_same_kind() -> None:
    for row in of_all({"Window": Window(9)}, [16], FLOAT, CPU, ["gather"]):
        short, whole = inquiry(row.case), problem(row.case)
        for one, other in ((short.q, whole.q), (short.k, whole.k)):
            assert (one.shape[1], one.shape[3], one.dtype) == (other.shape[1], other.shape[3], other.dtype)
        assert len(short.tiles.documents.starts) == len(whole.tiles.documents.starts)


def test_what_is_remembered_is_not_checked_again() -> None:
    counted = Altered()
    rows = of_all({"Window": Window(9)}, [16], FLOAT, CPU, ["counted", "sdpa"])
    there, told = {"counted": counted, "sdpa": sdpa}, list[Row]()
    outcomes = list(swept(rows, there, False, told.append))
    assert [outcome.state for outcome in outcomes] == ["passed", "refused"] * 2
    assert str(outcomes[1].refusal).startswith("it computes full causal attention only")
    assert told_of(told) == ["counted"] * 2
    launches = counted.launches
    memory._shelf.cache_clear()
    again = list(swept(rows, there, False, told.append))
    assert [outcome.is_remembered for outcome in again] == [True, False] * 2
    assert [outcome.verdict for outcome in again] == [outcome.verdict for outcome in outcomes]
    assert (counted.launches, len(told)) == (launches, 2)
    assert not any(outcome.is_remembered for outcome in swept(rows, there, True, told.append))
    assert (counted.launches, len(told)) == (2 * launches, 4)


def test_no_room_is_told_and_not_remembered() -> None:
    def fails(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("64 GiB")

    rows = of_all({"Causal": Causal(), "SinkWindow": SinkWindow(9, 2)}, [16], FLOAT, CPU, ["large", "gather"])
    outcomes = list(swept(rows, {"large": Altered("dk", fails), "gather": gather}, False, lambda row: None))
    assert [outcome.state for outcome in outcomes] == ["no room", "passed"] * 4
    assert memory.recall("large", rows[0].case) is None
