"""A young kernel is used where it has passed its check, and refused where not."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lg.attention import Documents, SinkWindow, Tiles, Window
from lg.attention.check import case
from lg.attention.impl import Executed, gather
from lg.attention.impl.proof import Proven, bare


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A shorter problem: a CPU takes its time in float64; and nothing remembered."""
    monkeypatch.setattr(case, "_LENGTH", 333)
    monkeypatch.setenv("LG_CACHE", str(tmp_path))


class Times:
    """Gathered attention, times a factor; counts its launches."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor, self.launches, self.says = factor, 0, ""

    def refusal(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> str | None:
        return self.says or None

    def run(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
        self.launches += 1
        return self.factor * gather.run(q, k, v, tiles, scale)

    def executed(self, tiles: Tiles) -> Executed:
        return gather.executed(tiles)


def asked(width: int = 16) -> list[Tensor]:
    return [torch.zeros(1, heads, 200, width) for heads in (4, 2, 2)]


def test_a_case_is_checked_once_and_then_runs() -> None:
    counted = Times()
    proven, tiles = Proven("counted", counted), Window(50).tiles(Documents(200), 2)
    assert proven.refusal(*asked(), tiles) is None
    launches = counted.launches
    assert launches > 8
    assert Proven("counted", counted).refusal(*asked(), Window(50).tiles(Documents(200), 2)) is None
    assert counted.launches == launches
    others: list[Any] = [
        (asked(32), tiles),
        (asked(), Window(51).tiles(Documents(200), 2)),
        (asked(), Window(50).tiles(Documents(200, (0, 7)), 2)),
        ([asked()[0][:, :, :50], *asked()[1:]], Window(50).tiles(Documents(200), 2, (10, 60))),
    ]
    for number, (qkv, other) in enumerate(others):
        assert proven.refusal(*qkv, other) is None
        assert counted.launches > launches * (number + 1)
    q, k, v = asked()
    assert torch.equal(proven.run(q, k, v, tiles, 1.0), torch.zeros_like(q))
    assert torch.equal(proven.executed(tiles).pairs, gather.executed(tiles).pairs)
    assert bare(proven) is counted and bare(counted) is counted


def test_a_failed_check_is_a_refusal_with_figures_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    tiles = SinkWindow(50, 4).tiles(Documents(200), 2)
    wrong = Times(1.1)
    for _ in range(3):
        refusal = Proven("wrong", wrong).refusal(*asked(), tiles)
    assert refusal is not None
    assert refusal.startswith("it failed the check of its gradients on this device: ")
    assert " times the error of dense attention, in its " in refusal
    assert refusal.endswith(", where 2 are allowed; `lg check --config FILE --again` checks anew")
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert told == [f"attention by wrong of `{tiles.text}`, head width 16, torch.float32, is not used: {refusal}"]
    assert wrong.launches == 8


def test_a_kernel_that_raises_is_refused_with_what_it_raised() -> None:
    class Fails(Times):
        def run(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
            raise RuntimeError("no such tile")

    refusal = Proven("failing", Fails()).refusal(*asked(), Window(50).tiles(Documents(200), 2))
    assert str(refusal).startswith("the check of its gradients ended in RuntimeError: no such tile; ")


def test_its_own_refusal_comes_first_and_costs_no_check() -> None:
    counted = Times()
    counted.says = "not today"
    assert Proven("busy", counted).refusal(*asked(), Window(50).tiles(Documents(200), 2)) == "not today"
    assert counted.launches == 0
