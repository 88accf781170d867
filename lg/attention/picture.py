"""Pictures of what each layer sees, drawn from the tile table: nothing of the size of L x L is made.

>>> from lg.attention import Causal, SinkWindow
>>> image = sheet(["local", "full"], {"local": SinkWindow(window=256), "full": Causal()}, length=4096)
>>> image.save("layers.png")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lg.attention.documents import Documents
from lg.attention.pattern import Pattern
from lg.attention.tiles import TileTable

if TYPE_CHECKING:
    from PIL.Image import Image

_PAPER = (246, 246, 243)
# One hue a pattern, told apart by readers with any colour vision (Okabe and Ito 2008), in the schedule's order.
_INKS = [(213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233)]


def coverage(pattern: Pattern, length: int, cells: int = 64, num_kv_heads: int = 1) -> Tensor:
    """How much of each cell is seen: float32 [cells, cells], rows are queries, first query at the top.

    1 where all of a cell is seen by all heads, 0 where nothing is; a cell that a head sees in part counts half.
    """
    block = -(-length // cells)
    table = pattern.tiles(Documents(length), num_kv_heads).table(block, block)
    full, partial = (
        _cells(table, *lists) for lists in (table.full_lists(), (table.partial_pointer, table.partial_index))
    )
    return (full + 0.5 * partial).mean(0)


def sheet(
    schedule: Sequence[str], patterns: Mapping[str, object], length: int, num_kv_heads: int = 1, columns: int = 8
) -> Image:
    """One small drawing for each layer, in the schedule's order, keys to the right and queries downward.

    Args:
        schedule: the name of each layer's pattern, first layer first.
        patterns: the patterns by name; a mixer that is no pattern is drawn blank.
        length: tokens of context to draw.
        num_kv_heads: heads to average over, where they differ.
        columns: drawings in a row.
    """
    from PIL import Image, ImageDraw, ImageFont

    cells, zoom, gap, caption = 64, 2, 14, 16
    side = cells * zoom
    names = list(dict.fromkeys(schedule))
    drawn = {
        name: _ink(coverage(pattern, length, cells, num_kv_heads), _INKS[names.index(name) % len(_INKS)])
        for name, pattern in patterns.items()
        if name in names and isinstance(pattern, Pattern)
    }
    columns = min(columns, len(schedule))
    rows = -(-len(schedule) // columns)
    legend = len(names) * caption + gap
    size = (columns * (side + gap) + gap, rows * (side + caption + gap) + gap + legend)
    image = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default()
    for layer, name in enumerate(schedule):
        x, y = gap + (layer % columns) * (side + gap), gap + (layer // columns) * (side + caption + gap)
        draw.text((x, y), f"{layer} {name}", fill="black", font=font)
        if name in drawn:
            small = Image.fromarray(drawn[name].numpy())
            image.paste(small.resize((side, side), Image.Resampling.NEAREST), (x, y + caption))
    for line, name in enumerate(names):
        y = size[1] - legend + line * caption
        draw.rectangle((gap, y + 1, gap + 10, y + 11), fill=_INKS[line % len(_INKS)])
        draw.text((gap + 16, y), f"{name}: {patterns[name]}, {length:,} tokens", fill="black", font=font)
    return image


def _cells(table: TileTable, pointer: Tensor, index: Tensor) -> Tensor:
    marked = torch.zeros(table.heads * table.num_rows, table.num_columns)
    marked[torch.arange(marked.shape[0]).repeat_interleave(pointer.diff()), index] = 1.0
    return marked.view(table.heads, table.num_rows, table.num_columns)


def _ink(amount: Tensor, colour: tuple[int, int, int]) -> Tensor:
    """uint8 [rows, columns, 3]: from paper to the colour."""
    paper, ink = torch.tensor(_PAPER).float(), torch.tensor(colour).float()
    # The square root keeps thin things, such as one head's stripe among many, in sight.
    return torch.lerp(paper, ink, amount.sqrt()[..., None]).round().byte()
