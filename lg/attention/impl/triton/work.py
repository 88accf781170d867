"""What each program of a kernel has to do, read off the tile table: one item a program, longest first.

An item is a row of the table, or a piece of one. Long rows of the transpose may be dealt to several programs: a block
of sinks is seen by every query, and one program for all of them would run long after the others have ended.

Everything is linear in rows and runs; nothing has the size of rows times columns.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lg.attention.routed import RoutedTiles
from lg.attention.tiles import TileTable

# A row is dealt to several programs if it has this many times the tiles of an average one, and no fewer than this.
_LONG, _LEAST = 4, 32


class Work(NamedTuple):
    """The programs of one kernel, int32.

    Attributes:
        items: [programs, 8]: row; head of the table; the first run and how many of its tiles to skip; full tiles; first
            place in ``partial`` and partial tiles; and the slot of a share, or -1 where the program does the whole row.
            Or [B, programs, 8], where rows of the batch differ.
        run_first, run_count: the table's runs of full tiles, and one more, which is never used.
        partial: the table's partial tiles, and one more likewise.
        dealt: [rows dealt to several programs, 4]: row; head; first slot; slots.
    """

    items: Tensor
    run_first: Tensor
    run_count: Tensor
    partial: Tensor
    dealt: Tensor

    @property
    def lists(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What a kernel is handed."""
        return self[:4]

    @property
    def of_row(self) -> int:
        """Numbers in ``items`` from one row of the batch to the next."""
        return self.items.shape[1] * 8 if self.items.ndim == 3 else 0

    def num_slots(self, rows: int) -> int:
        """Programs that do but a share of a row, of so many rows."""
        return self.items.shape[-2] - (rows - len(self.dealt))


def work(table: TileTable, deal: bool = False) -> Work:
    """The items of a table's rows, on the host.

    Args:
        table: of query blocks, or of key blocks.
        deal: whether long rows may be dealt to several programs.
    """
    run_ends = torch.cat((table.run_count.new_zeros(1), table.run_count.cumsum(0)))
    first_full = run_ends[table.run_pointer[:-1]]
    num_full = run_ends[table.run_pointer[1:]] - first_full
    num_tiles = num_full + table.partial_pointer.diff()
    rows = num_tiles.numel()

    pieces = torch.ones_like(num_tiles)
    if deal:
        long = max(int(_LONG * num_tiles.sum()) // rows, _LEAST)
        pieces = (num_tiles + long - 1).div(long, rounding_mode="floor").clamp(min=1)
    row = torch.repeat_interleave(torch.arange(rows), pieces)
    ends = pieces.cumsum(0)
    piece = torch.arange(row.numel()) - (ends - pieces)[row]
    # Of a row's tiles, counted full ones first, a piece has those from `low` to `high`.
    size = (num_tiles + pieces - 1).div(pieces, rounding_mode="floor")[row]
    low = torch.minimum(piece * size, num_tiles[row])
    high = torch.minimum(low + size, num_tiles[row])
    full = num_full[row]
    low_full, high_full = torch.minimum(low, full), torch.minimum(high, full)
    place = first_full[row] + low_full
    run = torch.searchsorted(run_ends[1:].contiguous(), place, right=True)

    dealt = pieces > 1
    slots = torch.where(dealt, pieces, 0)
    first_slot = slots.cumsum(0) - slots
    items = torch.stack(
        (
            row % table.num_rows,
            row // table.num_rows,
            run,
            place - run_ends[run],
            high_full - low_full,
            table.partial_pointer[row] + (low - full).clamp(min=0),
            (high - full).clamp(min=0) - (low - full).clamp(min=0),
            torch.where(dealt[row], first_slot[row] + piece, -1),
        ),
        1,
    )
    order = torch.argsort(high - low, descending=True, stable=True)
    long_rows = dealt.nonzero().squeeze(1)
    of_row = long_rows % table.num_rows, long_rows // table.num_rows, first_slot[long_rows], pieces[long_rows]
    run_first, run_count, partial = (
        torch.cat((x, x.new_zeros(1))).int() for x in (table.run_first, table.run_count, table.partial_index)
    )
    return Work(items[order].int(), run_first, run_count, partial, torch.stack(of_row, 1).int())


def routed_work(tiles: RoutedTiles) -> tuple[Work, Work]:
    """The items of tiles chosen by content, for the kernels of queries and of keys: made on the device, all partial.

    Their sizes depend on shapes alone, so nothing waits for the device.
    """
    batch, heads, rows, most = tiles.index.shape
    columns = tiles.num_columns
    every = torch.arange(batch * heads * rows, device=tiles.index.device).view(tiles.count.shape)
    of_rows = _items(every * most, tiles.count, tiles.index)
    # The transpose: sorted by column, then row; those that are none come last.
    head = torch.arange(batch * heads, device=tiles.index.device).view(batch, heads, 1, 1)
    row = torch.arange(rows, device=tiles.index.device)[:, None]
    last = batch * heads * columns * rows
    place = (
        torch.where(tiles.index < columns, (head * columns + tiles.index) * rows + row, last).flatten().sort().values
    )
    begin = torch.searchsorted(place, torch.arange(batch * heads * columns + 1, device=place.device) * rows)
    shape = (batch, heads, columns)
    return of_rows, _items(begin[:-1].view(shape), begin.diff().view(shape), place % rows)


def _items(first: Tensor, count: Tensor, partial: Tensor) -> Work:
    """Items of rows [B, G, rows], each of ``count`` tiles from place ``first`` in ``partial``."""
    heads, rows = first.shape[1:]
    none = torch.zeros_like(first)
    row = torch.arange(rows, device=first.device).expand_as(first)
    head = torch.arange(heads, device=first.device)[:, None].expand_as(first)
    items = torch.stack((row, head, none, none, none, first, count, none - 1), -1).int().flatten(1, 2)
    order = count.flatten(1).argsort(dim=1, descending=True, stable=True)[..., None].expand_as(items)
    unused = partial.new_zeros(1, dtype=torch.int32)
    return Work(
        items.gather(1, order).contiguous(),
        unused,
        unused,
        torch.cat((partial.flatten().int(), unused)),
        unused.new_zeros(0, 4),
    )
