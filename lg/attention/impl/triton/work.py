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
        items: [programs, 8]: row; head of the table; the first run; its first tile and how many are left of it; full
            tiles; all tiles, full ones first; and the slot of a share, or -1 where the program does the whole row. Or
            [B, programs, 8], where rows of the batch differ.
        run_first, run_count: adjacent tiles; of a row, runs of full ones, then each partial one as a run of its own.
            And two more, which are looked up and never used.
        dealt: [rows dealt to several programs, 4]: row; head; first slot; slots.
    """

    items: Tensor
    run_first: Tensor
    run_count: Tensor
    dealt: Tensor

    @property
    def lists(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a kernel is handed."""
        return self[:3]

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
    runs, partials = table.run_pointer.diff(), table.partial_pointer.diff()
    rows = runs.numel()
    # Each row's runs of full tiles, then its partial tiles: the places of both in one list.
    num_runs = table.run_count.numel() + table.partial_index.numel()
    at_full = torch.arange(table.run_count.numel()) + table.partial_pointer[:-1].repeat_interleave(runs)
    at_partial = torch.arange(table.partial_index.numel()) + table.run_pointer[1:].repeat_interleave(partials)
    run_first = torch.zeros(num_runs + 2, dtype=torch.int64)
    run_count = torch.ones(num_runs + 2, dtype=torch.int64)
    run_first[at_full], run_count[at_full] = table.run_first, table.run_count
    run_first[at_partial] = table.partial_index
    run_end = run_count.cumsum(0)

    row_ends = torch.cat((run_end.new_zeros(1), run_end))[table.run_pointer + table.partial_pointer]
    num_tiles = row_ends.diff()
    num_full = num_tiles - partials
    pieces = torch.ones_like(num_tiles)
    if deal:
        long = max(int(_LONG * num_tiles.sum()) // rows, _LEAST)
        pieces = (num_tiles + long - 1).div(long, rounding_mode="floor").clamp(min=1)
    row = torch.repeat_interleave(torch.arange(rows), pieces)
    ends = pieces.cumsum(0)
    piece = torch.arange(row.numel()) - (ends - pieces)[row]
    # Of a row's tiles, a piece has those from `low` to `high`.
    size = (num_tiles + pieces - 1).div(pieces, rounding_mode="floor")[row]
    low = torch.minimum(piece * size, num_tiles[row])
    high = torch.minimum(low + size, num_tiles[row])
    place = row_ends[row] + low
    run = torch.searchsorted(run_end, place, right=True)

    dealt = pieces > 1
    slots = torch.where(dealt, pieces, 0)
    first_slot = slots.cumsum(0) - slots
    left = run_end[run] - place
    items = torch.stack(
        (
            row % table.num_rows,
            row // table.num_rows,
            run,
            run_first[run] + run_count[run] - left,
            left,
            (num_full[row] - low).clamp(min=0).minimum(high - low),
            high - low,
            torch.where(dealt[row], first_slot[row] + piece, -1),
        ),
        1,
    )
    order = torch.argsort(high - low, descending=True, stable=True)
    long_rows = dealt.nonzero().squeeze(1)
    of_row = long_rows % table.num_rows, long_rows // table.num_rows, first_slot[long_rows], pieces[long_rows]
    return Work(items[order].int(), run_first.int(), run_count.int(), torch.stack(of_row, 1).int())


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
    run_first = torch.cat((partial.flatten().int(), partial.new_zeros(2, dtype=torch.int32)))
    items = torch.stack((row, head, first, run_first[first], none + 1, none, count, none - 1), -1).int().flatten(1, 2)
    order = count.flatten(1).argsort(dim=1, descending=True, stable=True)[..., None].expand_as(items)
    return Work(items.gather(1, order).contiguous(), run_first, torch.ones_like(run_first), run_first.new_zeros(0, 4))
