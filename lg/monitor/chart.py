"""The two charts that the board and the summary show: lines over an axis, and a table of numbers in colours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

# Told apart by readers with any colour vision (Okabe and Ito 2008).
BLUE, ORANGE, GREEN = (0, 114, 178), (213, 94, 0), (0, 158, 115)
_INK, _PALE, _BLANK = (40, 40, 40), (222, 222, 218), (246, 246, 243)
# Drawn this many times larger, then shrunk: lines come out smooth.
_ZOOM = 2
_TEXT = 12
# As high as TensorBoard's cards and as wide as its narrowest: what fits them no better is shown with pixels left out.
_SIZE = (336, 215)
_LEFT, _TOP, _BOTTOM = 46, 44, 40
_CELL = (44, 25)


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: what stands at its end.
        points: x and y of each point, ascending in x; none of a y that is no number.
        colour: of the line and its name.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: Colour = BLUE


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Attributes:
        name: what it measures, unit included.
        ticks: values and what is written there; the axis reaches from the least to the greatest, or as far as lines do.
    """

    name: str
    ticks: Sequence[tuple[float, str]]


def lines(drawn: Sequence[Line], x: Axis, y: str, title: str) -> Image.Image:
    """Lines over an axis; names stand at the ends of lines, as far apart as text needs.

    Args:
        drawn: at least one line with at least one point.
        x: the horizontal axis; the vertical one is made to fit.
        y: what the vertical axis measures, unit included.
        title: what stands above.
    """
    points = [point for line in drawn for point in line.points]
    font = _font(1)
    right = _SIZE[0] - 16 - max(round(font.getlength(line.name)) for line in drawn)
    image = Image.new("RGB", (_SIZE[0] * _ZOOM, _SIZE[1] * _ZOOM), "white")
    draw = ImageDraw.Draw(image)
    across = _extent([*(value for value, _ in x.ticks), *(value for value, _ in points)])
    upward = round_ticks(*_extent([value for _, value in points]))
    low, high = upward[0][0], upward[-1][0]

    def place(at: float, value: float) -> tuple[float, float]:
        return (
            _LEFT + (right - _LEFT) * (at - across[0]) / (across[1] - across[0]),
            _SIZE[1] - _BOTTOM - (_SIZE[1] - _BOTTOM - _TOP) * (value - low) / (high - low),
        )

    _write(draw, (10, 4), title, "la", _TEXT + 1)
    _write(draw, (10, _TOP - 21), y, "la")
    for value, text in upward:
        _, level = place(across[0], value)
        _stroke(draw, [(_LEFT, level), (right, level)], _PALE, 1)
        _write(draw, (_LEFT - 8, level), text, "rm")
    floor = _SIZE[1] - _BOTTOM
    written = -math.inf
    for value, text in x.ticks:
        at, _ = place(value, low)
        _stroke(draw, [(at, floor), (at, floor + 4)], _INK, 1)
        half = font.getlength(text) / 2
        if at - half > written:
            _write(draw, (at, floor + 6), text, "ma")
            written = at + half + 6
    _stroke(draw, [(_LEFT, floor), (right, floor)], _INK, 1)
    _write(draw, ((_LEFT + right) / 2, _SIZE[1] - 4), x.name, "mb")
    for line in drawn:
        spots = [place(at, value) for at, value in line.points]
        _stroke(draw, spots, line.colour, 2)
        # So many points that dots would touch are a line already.
        for spot in spots if len(spots) * 8 < right - _LEFT else spots[-1:]:
            _dot(draw, spot, line.colour)
    ends = sorted((place(*line.points[-1])[1], number) for number, line in enumerate(drawn) if line.points)
    for level, number in zip(_apart([level for level, _ in ends], floor), (number for _, number in ends), strict=True):
        _write(draw, (right + 8, level), drawn[number].name, "lm", colour=drawn[number].colour)
    return image.resize(_SIZE, Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class Cells:
    """Numbers to be shown as a table.

    Attributes:
        rows: names of the rows, from above.
        columns: names of the columns, from the left.
        values: a number for each row and column; None where there is none.
    """

    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]


def heat_map(cells: Cells, axes: tuple[str, str], unit: str, most: float, title: str) -> Image.Image:
    """A table whose cells are the darker the larger their number, with the numbers and a bar of colours.

    Args:
        cells: the numbers.
        axes: what columns are, and what rows are.
        unit: of the numbers.
        most: the number from which on a cell is darkest; from 0 down it is blank.
        title: what stands above.
    """
    font = _font(1)
    left = 24 + max(round(font.getlength(name)) for name in cells.rows)
    top, (wide, high) = 46, _CELL
    right, bottom = left + wide * len(cells.columns), top + high * len(cells.rows)
    size = (max(right + 92, 20 + round(_font(1, _TEXT + 1).getlength(title))), max(bottom + 40, _SIZE[1]))
    image = Image.new("RGB", (size[0] * _ZOOM, size[1] * _ZOOM), "white")
    draw = ImageDraw.Draw(image)
    _write(draw, (10, 4), title, "la", _TEXT + 1)
    _write(draw, (10, top - 22), axes[1], "la")
    for row, values in enumerate(cells.values):
        y = top + row * high
        _write(draw, (left - 8, y + high / 2), cells.rows[row], "rm")
        for column, value in enumerate(values):
            x = left + column * wide
            share = 0.0 if value is None else min(max(value / most, 0.0), 1.0)
            _fill(draw, (x, y, x + wide - 1, y + high - 1), _shade(share))
            # Adding nothing makes a zero of a minus zero.
            told = "none" if value is None else f"{round(value, 2) + 0.0:.2f}"
            _write(draw, (x + wide / 2, y + high / 2), told, "mm", colour=(255, 255, 255) if share > 0.5 else _INK)
    for column, name in enumerate(cells.columns):
        _write(draw, (left + (column + 0.5) * wide, bottom + 5), name, "ma")
    _write(draw, ((left + right) / 2, size[1] - 4), axes[0], "mb")
    bar = right + 14
    for step in range(bottom - top):
        _fill(draw, (bar, bottom - step - 1, bar + 14, bottom - step), _shade(step / (bottom - top)))
    for level, text in ((bottom - 4, "0"), ((top + bottom) / 2, f"{most / 2:.2g}"), (top + 4, f"{most:.2g}+")):
        _write(draw, (bar + 20, level), text, "lm")
    _write(draw, (bar, top - 22), unit, "la")
    return image.resize(size, Image.Resampling.LANCZOS)


def ramp(number: int, count: int) -> Colour:
    """The colour of one of several lines in an order, pale to dark: the last stands out."""
    return ORANGE if number == count - 1 else _mixed((168, 192, 212), (0, 74, 130), number / max(count - 2, 1))


def tokens(count: int) -> str:
    """Tokens as an axis tells them: 768, 96K, 1M."""
    for unit, name in ((2**20, "M"), (2**10, "K")):
        if count and count % unit == 0:
            return f"{count // unit}{name}"
    return f"{count:,}"


def round_ticks(least: float, most: float) -> list[tuple[float, str]]:
    """Round values from at most ``least`` to at least ``most``, up to eight, and how they are written."""
    steps = (m * 10.0**n for n in itertools.count(math.floor(math.log10(most - least)) - 1) for m in (1, 2, 5))
    step = next(step for step in steps if (most - least) / step <= 6)
    first, last = math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(n * step, f"{n * step:,.{decimals}f}") for n in range(first, last + 1)]


def _extent(values: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest, made two where they are one."""
    least, most = min(values), max(values)
    return (least, most) if most > least else (least - 0.5, least + 0.5)


def _apart(levels: Sequence[float], floor: float) -> list[float]:
    """Ascending levels moved so that text fits between them: down, and where that ends, all of them up."""
    gap, moved = _TEXT + 2, list[float]()
    for level in levels:
        moved.append(max(level, moved[-1] + gap) if moved else level)
    for number in reversed(range(len(moved))):
        moved[number] = min(moved[number], floor - gap * (len(moved) - 1 - number))
    return moved


def _shade(share: float) -> Colour:
    return _mixed(_BLANK, BLUE, share * 4 / 3) if share < 0.75 else _mixed(BLUE, (0, 50, 90), share * 4 - 3)


def _mixed(start: Colour, end: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(start, end, strict=True))
    return red, green, blue


def _font(zoom: int, size: int = _TEXT) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * zoom)


def _fill(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], colour: Colour) -> None:
    draw.rectangle([edge * _ZOOM for edge in box], fill=colour)


def _dot(draw: ImageDraw.ImageDraw, spot: tuple[float, float], colour: Colour) -> None:
    x, y = spot
    draw.ellipse([(x - 3) * _ZOOM, (y - 3) * _ZOOM, (x + 3) * _ZOOM, (y + 3) * _ZOOM], fill=colour)


def _stroke(draw: ImageDraw.ImageDraw, spots: Sequence[tuple[float, float]], colour: Colour, width: int) -> None:
    draw.line([(x * _ZOOM, y * _ZOOM) for x, y in spots], fill=colour, width=width * _ZOOM, joint="curve")


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    anchor: str,
    size: int = _TEXT,
    colour: Colour = _INK,
) -> None:
    draw.text((at[0] * _ZOOM, at[1] * _ZOOM), text, fill=colour, font=_font(_ZOOM, size), anchor=anchor)
