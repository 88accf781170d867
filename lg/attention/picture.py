"""Pictures of what a layer sees, drawn from the tile table: nothing of the size of L x L is made.

Keys run to the right, queries downward. In a terminal:

>>> from lg.attention import Causal, Documents, SinkWindow
>>> print(terminal(SinkWindow(window=5, sinks=4).tiles(Documents(16)), encoding="ascii"))
:.
:::.
:::::.
:::::::.
::::'::::.
::::  '::::.
::::    '::::.
::::      '::::.

As an image, of one pattern (`drawing`) or of every layer of a model (`sheet`):

>>> image = sheet(["local", "full"], {"local": SinkWindow(window=256), "full": Causal()}, length=4096)
>>> image.save("layers.png")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from lg.attention.documents import Documents
from lg.attention.pattern import Pattern
from lg.attention.tiles import Tiles, TileTable

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

_PAPER, _EDGE = (246, 246, 243), (120, 120, 120)
# One hue a pattern, told apart by readers with any colour vision (Okabe and Ito 2008), in the schedule's order.
_INKS = [(213, 94, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233)]
_EARLIER, _LATER = _INKS[1], _INKS[0]
# Bits of Unicode's Braille patterns, by row and column of the dot.
_BRAILLE = torch.tensor([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])


def plausible(pattern: Pattern, length: int, starts: Sequence[int] = (0,)) -> Documents:
    """Documents to draw a pattern on: whatever it asks of them (``doc.prefix``) is a third of each one's length."""
    lengths = [end - start for start, end in zip(starts, (*starts[1:], length), strict=True)]
    asked = [name for name in pattern.attributes if name != "length"]
    return Documents(length, starts, {name: [n // 3 for n in lengths] for name in asked})


def coverage(tiles: Tiles, cells: int = 64) -> Tensor:
    """How much of each cell is seen: float32 [heads, cells, cells], rows are queries, first query at the top.

    1 where all of a cell is seen, 0 where nothing is, and one half where a part is. Fewer cells than asked for where
    cells are of whole tokens, and of whole blocks of the pattern.
    """
    block = _cell(tiles, cells)
    table = tiles.table(block, block)
    full, partial = (
        _cells(table, *lists) for lists in (table.full_lists(), (table.partial_pointer, table.partial_index))
    )
    # The last tile may be ragged, and is then called partial.
    return full + (0.5 if block > 1 else 1.0) * partial


def terminal(tiles: Tiles, cells: int = 48, encoding: str = "utf-8", most: int = 8) -> str:
    """A drawing in characters, a dot where something is seen; heads that differ stand side by side.

    Args:
        tiles: the pattern, on the documents to draw.
        cells: dots in a row and in a column. In Braille, half as many characters across and a quarter as many lines.
        encoding: of the terminal. Where it has no Braille, each character stands for two dots above one another.
        most: drawings of heads, where they differ.
    """
    seen = coverage(tiles, cells) > 0
    write = _braille if _has_braille(encoding) else _ascii
    drawn = [write(seen[group[0]]) for group in _drawn_alike(seen)[:most]]
    return "\n".join("  ".join(row).rstrip() for row in zip(*drawn, strict=True))


def drawing(tiles: Tiles, caption: str | None = None, side: int = 384, most: int = 8) -> Image:
    """One pattern, large, with axes; heads that differ stand side by side, and lines part packed documents.

    What is seen of later keys, above the diagonal, has an ink of its own.

    Args:
        tiles: the pattern, on the documents to draw.
        caption: a line below; by default the pattern and the length.
        side: pixels of a head's square, or a little fewer.
        most: drawings of heads, where they differ.
    """
    from PIL import Image, ImageDraw

    length, font = tiles.documents.length, _font()
    cells = side // 2
    seen = coverage(tiles, cells)
    zoom = side // seen.shape[-1]
    width = zoom * seen.shape[-1]
    later = torch.ones(seen.shape[1:], dtype=torch.bool).triu(1)[..., None]
    groups = _drawn_alike(seen)[:most]
    text = f"{tiles.pattern}, {length:,} tokens{_attributes(tiles.documents)}" if caption is None else caption
    left, top, gap = 30 + round(font.getlength(_count(length))), 44, 22
    size = (left + max(len(groups) * (width + gap), round(font.getlength(text)) + gap), top + width + 40)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for column, group in enumerate(groups):
        x = left + column * (width + gap)
        inked = torch.where(later, _ink(seen[group[0]], _LATER), _ink(seen[group[0]], _EARLIER))
        image.paste(Image.fromarray(inked.numpy()).resize((width, width), Image.Resampling.NEAREST), (x, top))
        if zoom > 5:
            _grid(draw, (x, top), width, zoom)
        _axes(draw, (x, top), zoom / _cell(tiles, cells), tiles.documents, font, labels_queries=column == 0)
        draw.rectangle((x - 1, top - 1, x + width, top + width), outline=_EDGE)
        heads = f", KV head {', '.join(map(str, group))}" if tiles.heads > 1 else ""
        draw.text((x, 6), f"keys{heads}", fill="black", font=font)
    _upright(image, "queries", (4, top + width // 2), font)
    draw.text((left, top + width + 14), text, fill="black", font=font)
    return image


def sheet(
    schedule: Sequence[str], patterns: Mapping[str, object], length: int, num_kv_heads: int = 1, columns: int = 8
) -> Image:
    """One small drawing for each layer, in the schedule's order, keys to the right and queries downward.

    Args:
        schedule: the name of each layer's pattern, first layer first.
        patterns: the patterns by name; a mixer that is no pattern is drawn blank. What a pattern asks of documents
            is taken to be a third of the length, and the legend says so.
        length: tokens of context to draw.
        num_kv_heads: heads to average over, where they differ.
        columns: drawings in a row.
    """
    from PIL import Image, ImageDraw, ImageFont

    cells, zoom, gap, caption = 64, 2, 14, 16
    side = cells * zoom
    names = list(dict.fromkeys(schedule))
    drawn, notes = {}, dict.fromkeys(names, "")
    for name, pattern in patterns.items():
        if name in names and isinstance(pattern, Pattern):
            documents = plausible(pattern, length)
            notes[name] = _attributes(documents)
            amount = coverage(pattern.tiles(documents, num_kv_heads), cells).mean(0)
            drawn[name] = _ink(amount, _INKS[names.index(name) % len(_INKS)])
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
        text = f"{name}: {patterns[name]}, {length:,} tokens{notes[name]}"
        draw.text((gap + 16, y), text, fill="black", font=font)
    return image


def _cell(tiles: Tiles, cells: int) -> int:
    """Tokens in a cell, when a row has at most ``cells``."""
    tokens = -(-tiles.documents.length // cells)
    grid = tiles.pattern.grid
    # Blocks of the pattern that straddled cells would show in both, here and there: a moire.
    return tokens if tokens < grid else -(-tokens // grid) * grid


def _cells(table: TileTable, pointer: Tensor, index: Tensor) -> Tensor:
    marked = torch.zeros(table.heads * table.num_rows, table.num_columns)
    marked[torch.arange(marked.shape[0]).repeat_interleave(pointer.diff()), index] = 1.0
    return marked.view(table.heads, table.num_rows, table.num_columns)


def _drawn_alike(seen: Tensor) -> list[list[int]]:
    """Heads whose drawings are the same, grouped."""
    groups: dict[bytes, list[int]] = {}
    for head, drawn in enumerate(seen):
        groups.setdefault(drawn.numpy().tobytes(), []).append(head)
    return list(groups.values())


def _ink(amount: Tensor, colour: tuple[int, int, int]) -> Tensor:
    """uint8 [rows, columns, 3]: from paper to the colour."""
    paper, ink = torch.tensor(_PAPER).float(), torch.tensor(colour).float()
    # The square root keeps thin things, such as one head's stripe among many, in sight.
    return torch.lerp(paper, ink, amount.sqrt()[..., None]).round().byte()


def _attributes(documents: Documents) -> str:
    """What a caption says of the documents besides their length."""
    told = documents.attributes.items()
    return "".join(f", doc.{name} = {', '.join(f'{value:,}' for value in values)}" for name, values in told)


# Characters


def _has_braille(encoding: str) -> bool:
    try:
        return bool(chr(0x28FF).encode(encoding))
    except (UnicodeEncodeError, LookupError):
        return False


def _braille(seen: Tensor) -> list[str]:
    rows, columns = seen.shape
    dots = pad(seen.long(), (0, -columns % 2, 0, -rows % 4))
    codes = dots.unfold(0, 4, 4).unfold(1, 2, 2).mul(_BRAILLE).sum((2, 3)) + 0x2800
    return ["".join(map(chr, line)) for line in codes.tolist()]


def _ascii(seen: Tensor) -> list[str]:
    above, below = pad(seen.long(), (0, 0, 0, seen.shape[0] % 2)).unfold(0, 2, 2).unbind(2)
    return ["".join(" '.:"[code] for code in line) for line in (above + 2 * below).tolist()]


# Pixels


def _font() -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(13)


def _count(tokens: int) -> str:
    """Tokens as an axis tells them: 768, 96K."""
    return f"{tokens // 1024}K" if tokens and tokens % 1024 == 0 else f"{tokens:,}"


def _grid(draw: ImageDraw, corner: tuple[int, int], width: int, zoom: int) -> None:
    """Thin lines of paper between tokens, where each has pixels enough."""
    x, y = corner
    for line in range(0, width, zoom):
        draw.line((x + line, y, x + line, y + width - 1), fill="white")
        draw.line((x, y + line, x + width - 1, y + line), fill="white")


def _axes(
    draw: ImageDraw,
    corner: tuple[int, int],
    scale: float,
    documents: Documents,
    font: FreeTypeFont | ImageFont,
    labels_queries: bool,
) -> None:
    """Ticks at four even tokens, and a line wherever a document starts, at ``scale`` pixels a token."""
    x, y = corner
    width = round(documents.length * scale)
    for start in documents.starts[1:]:
        at = round(start * scale)
        draw.line((x + at, y, x + at, y + width), fill=_EDGE)
        draw.line((x, y + at, x + width, y + at), fill=_EDGE)
    for part in range(4):
        token = documents.length * part // 4
        at = round(token * scale)
        draw.line((x + at, y - 5, x + at, y), fill=_EDGE)
        draw.text((x + at, y - 7), _count(token), fill=_EDGE, font=font, anchor="ls")
        draw.line((x - 5, y + at, x, y + at), fill=_EDGE)
        if labels_queries:
            draw.text((x - 8, y + at), _count(token), fill=_EDGE, font=font, anchor="rt")


def _upright(image: Image, text: str, left_middle: tuple[int, int], font: FreeTypeFont | ImageFont) -> None:
    """Text that is read from below, its middle at this height."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = (round(edge) for edge in font.getbbox(text))
    label = Image.new("RGB", (right - left + 2, bottom - top + 2), "white")
    ImageDraw.Draw(label).text((-left, -top), text, fill="black", font=font)
    turned = label.transpose(Image.Transpose.ROTATE_90)
    image.paste(turned, (left_middle[0], left_middle[1] - turned.size[1] // 2))
