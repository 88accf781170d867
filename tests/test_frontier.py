"""What a measure foretells of trained sets, and how scores of other texts agree (benchmarks/frontier.py)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SETS = ([0], [1], [2], [0, 1], [1, 2])


@pytest.fixture(scope="module")
def frontier() -> ModuleType:
    spec = importlib.util.spec_from_file_location("frontier", ROOT / "benchmarks" / "frontier.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(full: list[int], exact: float, name: str = "", seed: int = 0) -> dict[str, Any]:
    schedule = ", ".join("full" if layer in full else "local" for layer in range(4))
    return {"name": name or f"random, {len(full)}", "schedule": schedule, "seed": seed, "needle_exact": {"4096": exact}}


def scores(**layers: list[float | None]) -> dict[str, Any]:
    def sets(of: list[float | None]) -> list[list[int]]:
        order = sorted(range(4), key=lambda layer: -(of[layer] or 0.0))
        return [sorted(order[:size]) for size in range(1, 5)]

    return {"num_layers": 4, "measures": {name: {"layers": of, "sets": sets(of)} for name, of in layers.items()}}


def test_a_measure_that_is_right_foretells_and_its_opposite_foretells_the_opposite(frontier: ModuleType) -> None:
    worth = [0.1, 0.5, 0.2, 0.0]
    rows = [row(one, sum(worth[layer] for layer in one)) for one in SETS]
    told = scores(right=[1.0, 5.0, 2.0, 0.0], wrong=[5.0, 0.0, 1.0, 0.0], nothing=[-1.0, 5.0, None, 0.0])
    found = frontier.foretold(rows, told, frontier.needle)
    assert found["right"] == (pytest.approx(1.0, abs=1e-5), 5)
    assert found["wrong"][0] < 0 < found["nothing"][0] < 1


def test_all_none_heads_and_what_failed_are_not_ranked_and_seeds_are_one(frontier: ModuleType) -> None:
    rows = [row([0], 0.1), row([1], 0.2, seed=0), row([1], 0.4, seed=1), row([2], 0.25)]
    rows += [row([0, 1, 2, 3], 0.0), row([], 9.0), row([3], 9.0, "heads of gates, 1")]
    rows += [{"name": "random, 1", "schedule": "local, local, local, full", "seed": 0, "error": "no room"}]
    found = frontier.foretold(rows, scores(right=[1.0, 3.0, 2.0, 0.0]), frontier.needle)
    assert found == {"right": (pytest.approx(1.0, abs=1e-5), 3)}


def test_scores_of_other_texts(frontier: ModuleType) -> None:
    one = scores(same=[4.0, 3.0, 2.0, 1.0], turned=[4.0, 3.0, 2.0, 1.0], only=[1.0, 2.0, 3.0, 4.0])
    other = scores(same=[8.0, 7.0, 1.0, 0.0], turned=[1.0, 2.0, 3.0, 4.0])
    assert frontier.alike(one, other, count=2) == {
        "same": (pytest.approx(1.0, abs=1e-5), 2),
        "turned": (pytest.approx(-1.0, abs=1e-5), 0),
    }
