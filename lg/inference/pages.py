"""Which blocks of 64 tokens each sequence keeps, and where: one book for all layers that see alike.

Layers of one pattern need the same tokens, so they share page numbers; KV heads that see alike share pages. A page is
free again as soon as no later query may see any of its tokens.

Shapes: S slots, g KV heads of a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lg.attention import Pattern
from lg.inference.lifetime import PAGE, last_queries, pages_needed

Numbers = npt.NDArray[np.int64]


@dataclass
class Table:
    """The pages of one sequence in a group, in order.

    Attributes:
        logical: which of the sequence's pages, ascending: page ``n`` has tokens ``64 n`` to ``64 n + 63``.
        physical: where each lies.
        last: of every page that the sequence may have, the last query that may see it.
        reserved: pages set aside for this sequence, those it holds included.
    """

    logical: Numbers
    physical: Numbers
    last: Numbers
    reserved: int


class Group:
    """The pages of KV heads that see alike, in all layers of one pattern.

    Args:
        pattern: what these heads see, whichever asks.
        heads: their numbers.
        num_pages: how many there are.
        max_length: tokens that a sequence may have.

    Attributes:
        tables: of each open sequence, by slot.
        version: goes up whenever a table changes.
    """

    def __init__(self, pattern: Pattern, heads: tuple[int, ...], num_pages: int, max_length: int) -> None:
        self.pattern = pattern
        self.heads = heads
        self.num_pages = num_pages
        self.max_length = max_length
        self.tables: dict[int, Table] = {}
        self.version = 0
        # The last is taken first.
        self._free = np.arange(num_pages)[::-1].copy()
        self._num_free = num_pages

    @property
    def num_held(self) -> int:
        """Pages in use."""
        return self.num_pages - self._num_free

    @property
    def num_unreserved(self) -> int:
        """Pages that no open sequence may come to need."""
        return self.num_pages - sum(table.reserved for table in self.tables.values())

    def needed(self, length: int, doc: Mapping[str, int]) -> int:
        """Pages that a sequence of ``length`` tokens may hold at once."""
        return pages_needed(self.pattern, self.max_length, length, doc)

    def open(self, slot: int, length: int, doc: Mapping[str, int]) -> None:
        """Sets pages aside for a sequence that may grow to ``length`` tokens."""
        assert slot not in self.tables
        none = np.empty(0, np.int64)
        last = last_queries(self.pattern, self.max_length, doc).numpy()
        self.tables[slot] = Table(none, none, last, self.needed(length, doc))
        self.version += 1

    def close(self, slot: int) -> None:
        """Gives all pages of a sequence back."""
        table = self.tables.pop(slot)
        self._give(table.physical)
        self.version += 1

    def grow(self, slot: int, now: int, count: int) -> None:
        """Takes pages for tokens ``now`` to ``now + count - 1``: those that are seen later.

        A single token always has its page: it is read from there.
        """
        table = self.tables[slot]
        pages = np.arange(now // PAGE, (now + count - 1) // PAGE + 1)
        if count > 1:
            pages = pages[table.last[pages] >= now + count]
        if len(table.logical):
            pages = pages[pages > table.logical[-1]]
        if not len(pages):
            return
        assert len(pages) <= self._num_free, (self.pattern, len(pages), self._num_free)
        self._num_free -= len(pages)
        taken = self._free[self._num_free : self._num_free + len(pages)][::-1]
        table.logical = np.concatenate([table.logical, pages])
        table.physical = np.concatenate([table.physical, taken])
        assert len(table.logical) <= table.reserved, (self.pattern, len(table.logical), table.reserved)
        self.version += 1

    def shrink(self, slot: int, now: int) -> None:
        """Gives back the pages that no query from ``now`` on may see."""
        table = self.tables[slot]
        stays = table.last[table.logical] >= now
        if stays.all():
            return
        self._give(table.physical[~stays])
        table.logical, table.physical = table.logical[stays], table.physical[stays]
        self.version += 1

    def _give(self, pages: Numbers) -> None:
        self._free[self._num_free : self._num_free + len(pages)] = pages[::-1]
        self._num_free += len(pages)
