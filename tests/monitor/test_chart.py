"""Charts show what they are given: ticks hold every value, names keep apart, colours follow the numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lg.monitor.chart import ORANGE, Axis, Cells, Line, heat_map, lines, ramp, round_ticks, tokens

X = Axis("steps", [(0, "0"), (100, "100")])


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_even_and_hold_the_values(least: float, extent: float) -> None:
    most = least + extent
    if most - least < 1e-9 * abs(least):
        return
    ticks = [value for value, _ in round_ticks(least, most)]
    assert 2 <= len(ticks) <= 9
    slack = 1e-6 * (ticks[1] - ticks[0])
    assert ticks[0] <= least + slack and most - slack <= ticks[-1]
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-3)


def test_ticks_are_written_with_the_decimals_they_need() -> None:
    assert [text for _, text in round_ticks(2.2, 2.9)] == ["2.2", "2.4", "2.6", "2.8", "3.0"]
    assert [text for _, text in round_ticks(0, 4000)] == ["0", "1,000", "2,000", "3,000", "4,000"]


def test_a_line_is_drawn_from_left_to_right_and_a_higher_value_higher_up() -> None:
    falling = np.asarray(lines([Line("falling", [(0, 3.0), (100, 1.0)], ORANGE)], X, "nats", "Loss"))
    inked = np.abs(falling.astype(int) - ORANGE).sum(2) < 60
    columns = np.flatnonzero(inked[:, :270].any(0))
    first, last = (np.flatnonzero(inked[:, column]).mean() for column in (columns[0], columns[-1]))
    assert columns[0] < 60 and first < last - 80


@pytest.mark.parametrize("points", [[(0, 1.0)], [(0, 2.0), (100, 2.0)]])
def test_a_point_and_a_level_line_can_be_drawn(points: list[tuple[float, float]]) -> None:
    assert lines([Line("one", points)], Axis("steps", []), "nats", "Loss").size == (336, 215)


def test_many_names_keep_inside_the_picture() -> None:
    drawn = [Line(f"line {n}", [(0, 1.0), (100, 1.0)], ramp(n, 8)) for n in range(8)]
    image = np.asarray(lines(drawn, X, "nats", "Loss"))
    assert (image[-20:, 300:] >= 250).all(), "nothing is written below the axis at the right"


def test_a_cell_is_the_darker_the_larger_its_number() -> None:
    values = [0.0, 0.5, 1.0, 2.3, 9.0]
    cells = Cells(["row"], [str(n) for n in range(5)], [values])
    image = np.asarray(heat_map(cells, ("x", "y"), "nats", 2.3, "Needle").convert("L")).astype(int)
    row = image[49, :]  # below a cell's upper edge, above its number
    left = 24 + 22
    shades = [row[left + 44 * n + 10] for n in range(5)]
    assert shades[0] > shades[1] > shades[2] > shades[3] == shades[4]


def test_a_missing_number_and_a_negative_one_are_blank() -> None:
    cells = Cells(["a", "b"], ["1"], [[None], [-3.0]])
    assert heat_map(cells, ("x", "y"), "nats", 2.3, "Needle").size[1] > 80


def test_the_last_of_several_lines_stands_out() -> None:
    assert [ramp(n, 3) == ORANGE for n in range(3)] == [False, False, True]
    assert ramp(0, 1) == ORANGE


def test_tokens_are_told_in_short() -> None:
    assert [tokens(n) for n in (0, 768, 1000, 1024, 98304, 2**20)] == ["0", "768", "1,000", "1K", "96K", "1M"]
