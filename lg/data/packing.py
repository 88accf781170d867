"""Which row each document goes to: packings lay items of known lengths into rows of equal length.

They read lengths alone, never tokens. What has to stay together, a document and its end, is an item. A packing may
leave items out, or the rest of them: what it keeps of each is told before anything is packed, so that shares of tokens
are shares of what is trained on.

Shape suffixes: P pieces, N items.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

KEY = "data.init_args.packing"
"""The YAML key of a packing that is not one of a mixture's; complaints of packings begin with it."""

_Integers = npt.NDArray[np.int64]

_WORD = 1024  # bits of a word of the bitset: 1,024 words, one bit of the upper level each, reach to a million


@dataclass(frozen=True, eq=False)
class Packed:
    """Items laid into rows: piece p is tokens ``begin`` to ``begin + length`` of ``item``, at ``place`` in ``row``.

    Pieces are in the order of their rows and places. Every token of every item that the packing keeps is in exactly
    one; what no piece covers is padding.

    Attributes:
        row: number of the piece's row: int64 [P], as are all.
        place: its first token, counted from the start of the row; a multiple of the packing's ``align``.
        item: number of the item it is of.
        begin: its first token, counted from the start of the item.
        length: its tokens, at least 1.
        num_rows: rows in all; each has a piece.
        row_length: tokens of a row, padding included.
    """

    row: _Integers
    place: _Integers
    item: _Integers
    begin: _Integers
    length: _Integers
    num_rows: int
    row_length: int

    def padding(self) -> tuple[int, int]:
        """Tokens of padding, and how many of them lie directly before a piece of the same row, to align its start.

        The others are at the ends of rows.
        """
        follows = self.row[1:] == self.row[:-1]
        gap = self.place[1:] - (self.place + self.length)[:-1]
        return self.num_rows * self.row_length - int(self.length.sum()), int(gap[follows].sum())

    @property
    def padding_share(self) -> float:
        """Padding as a share of the tokens of all rows; 0 where there are none."""
        return self.padding()[0] / max(self.num_rows * self.row_length, 1)


class Packing(ABC):
    """A way to lay items into rows."""

    @property
    def selects(self) -> bool:
        """Whether it leaves out items, or parts of them."""
        return False

    def kept(self, lengths: _Integers, row_length: int) -> _Integers:
        """Tokens of each item that are laid into rows, 0 for an item that is left out; by default all."""
        return lengths

    def check(self, row_length: int, align: int) -> None:
        """Refuse rows that it cannot fill.

        Raises:
            ValueError: its message begins with ``data.init_args.packing``.
        """
        assert align >= 1 and row_length % align == 0, (row_length, align)

    @abstractmethod
    def pack(self, lengths: _Integers, row_length: int, align: int = 1) -> Packed:
        """Lay items into as many rows as they need; the same lengths give the same rows.

        Args:
            lengths: tokens of each item, at least 1; int64 [items]. No item gives no row.
            row_length: tokens of a row, a multiple of ``align``.
            align: items begin at multiples of it, as do the pieces of an item that is cut.
        """


@dataclass(frozen=True)
class Cut(Packing):
    """Items end to end, in the order given, cut where a row ends: rows are full but for the last, documents are cut."""

    def pack(self, lengths: _Integers, row_length: int, align: int = 1) -> Packed:
        _check(lengths, row_length, align)
        # Positions along all rows laid end to end.
        aligned = _above(lengths, align) * align
        start = np.cumsum(aligned) - aligned
        end = start + lengths
        first_row = start // row_length
        item, number = _counted((end - 1) // row_length - first_row + 1)
        row = first_row[item] + number
        left = np.maximum(start[item], row * row_length)
        right = np.minimum(end[item], (row + 1) * row_length)
        num_rows = int(row[-1]) + 1 if len(row) else 0
        return Packed(row, left - row * row_length, item, left - start[item], right - left, num_rows, row_length)


@dataclass(frozen=True)
class BestFit(Packing):
    """Best-fit decreasing: no item is cut that fits a row (Ding et al., 2024, "Fewer Truncations Improve Language
    Modeling", https://arxiv.org/abs/2404.10830).

    An item longer than a row fills whole rows first. What is left of it goes with the other items, the longest first,
    each into the fullest row where it still fits, or else into a new one. Lengths count as rounded up to ``align``.
    """

    def pack(self, lengths: _Integers, row_length: int, align: int = 1) -> Packed:
        _check(lengths, row_length, align)
        item, number = _counted(lengths // row_length)
        num_whole = len(item)
        zeros = np.zeros(num_whole, np.int64)
        rest = lengths % row_length
        short = np.flatnonzero(rest)
        units = _above(rest[short], align)
        longest_first = np.argsort(-units, kind="stable")
        row, place = _best_fit(units[longest_first], row_length // align)
        by_place = np.lexsort((place, row))
        short = short[longest_first][by_place]
        return Packed(
            row=np.concatenate((np.arange(num_whole), num_whole + row[by_place])),
            place=np.concatenate((zeros, place[by_place] * align)),
            item=np.concatenate((item, short)),
            begin=np.concatenate((number * row_length, (lengths - rest)[short])),
            length=np.concatenate((zeros + row_length, rest[short])),
            num_rows=num_whole + int(row.max(initial=-1)) + 1,
            row_length=row_length,
        )


@dataclass(frozen=True)
class Whole(Packing):
    """`BestFit` of the items that fit a row: longer ones are left out, so that none is ever cut."""

    @property
    def selects(self) -> bool:
        """True."""
        return True

    def kept(self, lengths: _Integers, row_length: int) -> _Integers:
        """All of an item that fits a row, nothing of another."""
        return np.where(lengths <= row_length, lengths, 0)

    def pack(self, lengths: _Integers, row_length: int, align: int = 1) -> Packed:
        fits = np.flatnonzero(lengths <= row_length)
        packed = BestFit().pack(lengths[fits], row_length, align)
        return replace(packed, item=fits[packed.item])


@dataclass(frozen=True)
class Chunks(Packing):
    """Pieces of one length, each of one document alone; what fills none is left out, short documents as a whole.

    So are the long documents of ProLong (Gao et al., 2024, https://arxiv.org/abs/2410.02660, section 3 and appendix
    A). A row of several chunks has them side by side, each a document of its own to attention.

    Args:
        length: tokens of a chunk; ``null`` is the row's.
        below: documents of so many tokens or more are left out as well, for a part of a mixture whose other parts
            have these; ``null`` leaves out none.

    Raises:
        ValueError: a number is out of its range.
    """

    length: int | None = None
    below: int | None = None

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 1:
            raise ValueError(f"{KEY}.init_args.length: {self.length} is not allowed; it must be at least 1")
        if self.below is not None and self.below <= (self.length or 1):
            raise ValueError(
                f"{KEY}.init_args.below: {self.below} is not allowed; it must be more than the length of a chunk"
                f"{f', {self.length}' if self.length else ''}"
            )

    @property
    def selects(self) -> bool:
        """True."""
        return True

    def check(self, row_length: int, align: int) -> None:
        length = self.length or row_length
        if row_length % length or length % align:
            raise ValueError(
                f"{KEY}.init_args.length: {length} is not allowed; it must divide data.init_args.row_length "
                f"({row_length}) and be a multiple of data.init_args.align ({align})"
            )
        if self.below is not None and self.below <= length:
            raise ValueError(
                f"{KEY}.init_args.below: {self.below} is not allowed; it must be more than the length of a chunk, "
                f"{length}"
            )

    def kept(self, lengths: _Integers, row_length: int) -> _Integers:
        """Its whole chunks."""
        length = self.length or row_length
        kept: _Integers = lengths // length * length
        return kept if self.below is None else np.where(lengths < self.below, kept, 0)

    def pack(self, lengths: _Integers, row_length: int, align: int = 1) -> Packed:
        _check(lengths, row_length, align)
        length = self.length or row_length
        assert row_length % length == 0 and length % align == 0, (self, row_length, align)
        item, number = _counted(self.kept(lengths, row_length) // length)
        row, place = np.divmod(np.arange(len(item)) * length, row_length)
        num_rows = -(-len(item) * length // row_length)
        return Packed(row, place, item, number * length, np.full(len(item), length), num_rows, row_length)


def packed_apart(
    lengths: _Integers, which: _Integers, packings: Sequence[Packing], row_length: int, align: int = 1
) -> Packed:
    """Items laid into rows by several packings, those of equal packings together, those of others in rows of their own.

    Args:
        lengths: as for `Packing.pack`.
        which: the index of each item's packing.
        packings: of the items.
        row_length: as for `Packing.pack`, as is ``align``.
    """
    groups = [index for index, packing in enumerate(packings) if packings.index(packing) == index]
    first = np.array([packings.index(packing) for packing in packings], np.int64)[which]
    parts, num_rows = [], 0
    for group in groups:
        items = np.flatnonzero(first == group)
        packed = packings[group].pack(lengths[items], row_length, align)
        parts.append(replace(packed, row=packed.row + num_rows, item=items[packed.item]))
        num_rows += packed.num_rows
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("row", "place", "item", "begin", "length")
    }
    return Packed(**columns, num_rows=num_rows, row_length=row_length)


class _OpenRows:
    """Rows that are not full, by the units that each has left.

    A bitset of two levels tells which numbers of units some row has left, so that the fullest row where an item still
    fits is found in two words.
    """

    def __init__(self, most: int) -> None:
        self._rows: dict[int, list[int]] = {}
        self._words = [0] * (most // _WORD + 1)
        self._filled_words = 0

    def add(self, left: int, rows: list[int]) -> None:
        """Enter rows that have ``left`` units left; full ones are of no more use."""
        if left and rows:
            self._rows.setdefault(left, []).extend(rows)
            self._words[left // _WORD] |= 1 << left % _WORD
            self._filled_words |= 1 << left // _WORD

    def least(self, units: int) -> int | None:
        """The least number of units, at least ``units``, that some row has left; None if there is no such row."""
        word, bit = divmod(units, _WORD)
        here = self._words[word] >> bit
        if here:
            return units + _lowest(here)
        after = self._filled_words >> (word + 1)
        if not after:
            return None
        word += 1 + _lowest(after)
        return word * _WORD + _lowest(self._words[word])

    def take(self, left: int, most: int) -> list[int]:
        """Take out up to ``most`` of the rows that have ``left`` units left."""
        rows = self._rows[left]
        taken = rows[-most:]
        del rows[-most:]
        if not rows:
            del self._rows[left]
            word = left // _WORD
            self._words[word] ^= 1 << left % _WORD
            if not self._words[word]:
                self._filled_words ^= 1 << word
        return taken


def _best_fit(units: _Integers, capacity: int) -> tuple[_Integers, _Integers]:
    """The row and the place of each item, in units, by best-fit decreasing.

    Equal items are placed together. The fullest row where one fits takes as many as it has room for: after the first
    it is fuller still. Each turn of the loop ends a length or a number of units left, so there are few, however many
    items and rows there are.

    Args:
        units: each item's length, descending, 1 to ``capacity``.
        capacity: units of a row.
    """
    lengths, counts = np.unique(units, return_counts=True)
    open_rows, num_rows = _OpenRows(capacity), 0
    # Of each turn: units left before, length and number of the items, number of the rows; and its rows.
    turns: list[tuple[int, int, int, int]] = []
    rows_of_turns: list[int] = []
    for length, count in zip(lengths[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            found = open_rows.least(length)
            left = capacity if found is None else found
            each = left // length
            wanted = -(-count // each)
            if found is None:
                rows = list(range(num_rows, num_rows + wanted))
                num_rows += wanted
            else:
                rows = open_rows.take(left, wanted)
            placed = min(count, each * len(rows))
            full, over = divmod(placed, each)
            open_rows.add(left - each * length, rows[:full])
            open_rows.add(left - over * length, rows[full:])
            turns.append((left, length, placed, len(rows)))
            rows_of_turns += rows
            count -= placed
    table: _Integers = np.array(turns, np.int64).reshape(-1, 4)
    turn, number = _counted(table[:, 2])
    left_N, length_N = table[turn, 0], table[turn, 1]
    in_row, in_turn = number % (left_N // length_N), number // (left_N // length_N)
    first = np.cumsum(table[:, 3]) - table[:, 3]
    return np.array(rows_of_turns, np.int64)[first[turn] + in_turn], capacity - left_N + in_row * length_N


def _check(lengths: _Integers, row_length: int, align: int) -> None:
    assert align >= 1 and row_length >= 1 and row_length % align == 0, (row_length, align)
    assert lengths.dtype == np.int64 and lengths.ndim == 1 and lengths.min(initial=1) >= 1, lengths


def _above(lengths: _Integers, align: int) -> _Integers:
    """Multiples of ``align`` that hold each length."""
    return (lengths + align - 1) // align


def _counted(counts: _Integers) -> tuple[_Integers, _Integers]:
    """Each index as often as its count says, and beside it 0, 1, ... up to its count."""
    index = np.repeat(np.arange(len(counts)), counts)
    return index, np.arange(len(index)) - (np.cumsum(counts) - counts)[index]


def _lowest(word: int) -> int:
    """The lowest bit that is set."""
    return (word & -word).bit_length() - 1
