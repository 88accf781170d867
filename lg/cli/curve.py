"""Draws how a hybrid's gain grows with the length: ceilings of its speed-up, and its share of the cache."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from lg.models.cost import Comparison

# Told apart by readers with any colour vision (Okabe and Ito 2008).
_ORANGE, _BLUE, _GREEN, _PURPLE = (213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167)
_INK, _PALE = (40, 40, 40), (222, 222, 218)
# Drawn this many times larger, then shrunk: lines come out smooth.
_ZOOM = 3
_SIZE, _TEXT = (1040, 400), 13
_TOP, _BOTTOM = 76, 52


@dataclass(frozen=True)
class _Line:
    name: str
    colour: tuple[int, int, int]
    value: Callable[[Comparison], float]


_GAINS = (
    _Line("training", _ORANGE, lambda gain: gain.training),
    _Line("prefill", _BLUE, lambda gain: gain.prefill),
    _Line("decode", _GREEN, lambda gain: gain.decode),
)
_SHARES = (_Line("KV cache", _PURPLE, lambda gain: gain.kv_share),)


def curve(gains: Sequence[Comparison], title: str) -> Image.Image:
    """Two panels over the length, on a logarithmic axis: speed-ups to the left, shares to the right.

    Args:
        gains: the model at two or more lengths, ascending.
        title: what stands above.
    """
    image = Image.new("RGB", (_SIZE[0] * _ZOOM, _SIZE[1] * _ZOOM), "white")
    draw = ImageDraw.Draw(image)
    _write(draw, (24, 16), title, "la", _TEXT + 2)
    most = max(1.0, *(line.value(gain) for line in _GAINS for gain in gains))
    least = min(1.0, *(line.value(gain) for line in _GAINS for gain in gains))
    step = _step(most - math.floor(least))
    top = max(math.ceil(most / step) * step, math.floor(least) + step)
    middle = _SIZE[0] // 2
    _panel(draw, (64, middle - 76), gains, _GAINS, (math.floor(least), top, step), "{:g}x", "speed-up at most")
    share = max(1.0, *(line.value(gain) for line in _SHARES for gain in gains))
    _panel(
        draw, (middle + 56, _SIZE[0] - 84), gains, _SHARES, (0, share, 0.2), "{:.0%}", "of what full attention keeps"
    )
    return image.resize(_SIZE, Image.Resampling.LANCZOS)


def tokens(length: int) -> str:
    """A length in short: 128K is 131,072 tokens, 1M is 1,048,576."""
    for unit, name in ((2**20, "M"), (2**10, "K")):
        if length % unit == 0:
            return f"{length // unit}{name}"
    return f"{length:,}"


def _panel(
    draw: ImageDraw.ImageDraw,
    across: tuple[int, int],
    gains: Sequence[Comparison],
    lines: Sequence[_Line],
    axis: tuple[float, float, float],
    form: str,
    title: str,
) -> None:
    """One panel between ``across``, its vertical axis from least to most in steps."""
    left, right = across
    least, most, step = axis
    first, last = (math.log2(gain.full.length) for gain in (gains[0], gains[-1]))

    def place(length: int, value: float) -> tuple[float, float]:
        x = left + (right - left) * (math.log2(length) - first) / (last - first)
        return x, _SIZE[1] - _BOTTOM - (_SIZE[1] - _BOTTOM - _TOP) * (value - least) / (most - least)

    _write(draw, (left, _TOP - 26), title, "la", _TEXT)
    for tick in (least + n * step for n in range(math.floor((most - least) / step + 1e-9) + 1)):
        _, y = place(gains[0].full.length, tick)
        _stroke(draw, [(left, y), (right, y)], _PALE, 1)
        _write(draw, (left - 8, y), form.format(round(tick, 6)), "rm", _TEXT - 1)
    powers = [2**n for n in range(math.ceil(first), math.floor(last) + 1)]
    for length in powers[:: 1 + len(powers) // 9]:
        x, y = place(length, least)
        _stroke(draw, [(x, y), (x, y + 4)], _INK, 1)
        _write(draw, (x, y + 8), tokens(length), "ma", _TEXT - 1)
    _stroke(draw, [place(gain.full.length, least) for gain in (gains[0], gains[-1])], _INK, 1)
    _write(draw, ((left + right) / 2, _SIZE[1] - 8), "tokens of one document", "mb", _TEXT - 1)
    ends = []
    # The first line, the one that matters most, is drawn above the others.
    for line in reversed(lines):
        points = [place(gain.full.length, line.value(gain)) for gain in gains]
        _stroke(draw, points, line.colour, 2)
        for x, y in points:
            spot = [(x - 3) * _ZOOM, (y - 3) * _ZOOM, (x + 3) * _ZOOM, (y + 3) * _ZOOM]
            draw.ellipse(spot, fill=line.colour)
        ends.append((points[-1][1], line))
    # Names stand at the ends of their lines, as far apart as text needs.
    at = [y for y, _ in sorted(ends, key=lambda end: end[0])]
    for n, (_, line) in enumerate(sorted(ends, key=lambda end: end[0])):
        at[n] = max(at[n], at[n - 1] + _TEXT + 3) if n else at[n]
        _write(draw, (right + 10, at[n]), line.name, "lm", _TEXT, line.colour)


def _step(extent: float) -> float:
    """A round distance between ticks, of which at most six fit."""
    rounds = (m * 10.0**n for n in itertools.count(-2) for m in (1, 2, 5))
    return next(step for step in rounds if extent / step <= 6)


def _stroke(
    draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], colour: tuple[int, int, int], width: int
) -> None:
    draw.line([(x * _ZOOM, y * _ZOOM) for x, y in points], fill=colour, width=width * _ZOOM, joint="curve")


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    anchor: str,
    size: int,
    colour: tuple[int, int, int] = _INK,
) -> None:
    font = ImageFont.load_default(size * _ZOOM)
    draw.text((at[0] * _ZOOM, at[1] * _ZOOM), text, fill=colour, font=font, anchor=anchor)
