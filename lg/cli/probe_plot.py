"""Draws what ``lg probe`` found: layers by measure, and the share of the score over the number of full layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from lg.monitor.chart import Axis, Cells, Colour, Line, heat_map, lines

# Told apart by readers with any colour vision (Okabe and Ito 2008).
_COLOURS: tuple[Colour, ...] = (
    (213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (86, 180, 233), (160, 120, 0), (90, 90, 90), (0, 0, 0),
)  # fmt: skip
_COLUMNS = 16  # layers beside one another
_GAP = 12


def plot(measures: Mapping[str, Mapping[str, Any]], title: str) -> Image.Image:
    """The scores, as shares of each measure's greatest, in rows of layers; and below them the frontiers.

    Args:
        measures: as the file of scores has them, at least one.
        title: what stands above.
    """
    names = list(measures)
    shares = [_of_greatest(measures[name]["layers"]) for name in names]
    num_layers = len(shares[0])
    parts = []
    for first in range(0, num_layers, _COLUMNS):
        layers = range(first, min(first + _COLUMNS, num_layers))
        cells = Cells(names, [str(layer) for layer in layers], [[row[layer] for layer in layers] for row in shares])
        parts.append(
            heat_map(cells, ("layer", "of each measure's greatest"), "share", 1.0, title if first == 0 else "")
        )
    frontiers = [_frontier(name, measures[name]["share"], _COLOURS[n % len(_COLOURS)]) for n, name in enumerate(names)]
    parts += [_beside(frontiers[n : n + 2]) for n in range(0, len(frontiers), 2)]
    image = Image.new("RGB", (max(part.width for part in parts), sum(part.height + _GAP for part in parts)), "white")
    top = 0
    for part in parts:
        image.paste(part, (0, top))
        top += part.height + _GAP
    return image


def _of_greatest(layers: Sequence[float | None]) -> list[float | None]:
    greatest = max((value for value in layers if value is not None), default=0.0)
    return [None if value is None else value / greatest if greatest > 0 else 0.0 for value in layers]


def _frontier(name: str, share: Sequence[float | None], colour: Colour) -> Image.Image:
    points = [(0.0, 0.0), *((float(size), value) for size, value in enumerate(share, 1) if value is not None)]
    step = max(1, len(share) // 8)
    ticks = [(float(size), str(size)) for size in range(0, len(share) + 1, step)]
    return lines([Line("", points, colour)], Axis("full layers", ticks), "share of the score", name)


def _beside(images: Sequence[Image.Image]) -> Image.Image:
    whole = Image.new("RGB", (sum(image.width + _GAP for image in images), max(i.height for i in images)), "white")
    left = 0
    for image in images:
        whole.paste(image, (left, 0))
        left += image.width + _GAP
    return whole
