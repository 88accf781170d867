"""Draws what ``lg bench attention`` measured: useful work a second over the length, a panel a pattern and direction."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

from lg.attention.bench import Row
from lg.cli.bench_table import Unit
from lg.monitor.chart import Axis, Colour, Line, lines, tokens

# Told apart by readers with any colour vision (Okabe and Ito 2008).
_COLOURS: tuple[Colour, ...] = (
    (213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (86, 180, 233), (160, 120, 0), (90, 90, 90),
)  # fmt: skip


def plot(rows: Sequence[Row], unit: Unit) -> Image.Image | None:
    """Two panels a pattern, forward to the left and backward to the right; None if nothing was timed.

    Args:
        rows: of any number of cases.
        unit: of the rates.
    """
    timed = [row for row in rows if row.fwd_tflops is not None]
    cases = list(dict.fromkeys(row.case for row in timed))
    if not cases:
        return None
    names = list(dict.fromkeys(row.impl for row in timed))
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}
    lengths = sorted({row.length for row in timed})
    axis = Axis("tokens", [(math.log2(length), tokens(length)) for length in lengths])
    panels = [
        [
            lines(
                [
                    Line(name, points, colours[name])
                    for name in names
                    if (
                        points := _points(
                            [row for row in timed if (row.case, row.impl) == (case, name)], unit, backward
                        )
                    )
                ],
                axis,
                f"useful {unit.name}",
                f"{case}, {'backward' if backward else 'forward'}",
            )
            for backward in (False, True)
        ]
        for case in cases
    ]
    width, height = panels[0][0].size
    sheet = Image.new("RGB", (2 * width, len(panels) * height), "white")
    for down, pair in enumerate(panels):
        for across, panel in enumerate(pair):
            sheet.paste(panel, (across * width, down * height))
    return sheet


def _points(rows: Sequence[Row], unit: Unit, backward: bool) -> list[tuple[float, float]]:
    rates = {row.length: row.bwd_tflops if backward else row.fwd_tflops for row in rows}
    return [(math.log2(length), unit.in_tera * rate) for length, rate in sorted(rates.items()) if rate is not None]
