"""Keys and values of the tokens that a later query may see, and of no others, page by page.

>>> import torch
>>> from lg.attention import Causal, SinkWindow
>>> cache = Cache([SinkWindow(window=100, sinks=4), Causal()], num_heads=2, head_width=16, max_length=1000)
>>> slot = cache.open(length=1000)
>>> for first in range(0, 960, 320):
...     step = cache.begin([(slot, 320)])
...     cache.end(step)
>>> [kind.groups[0].num_held for kind in cache.kinds]
[3, 15]

Shapes: N tokens of a step, H query heads, G KV heads, g KV heads of a group, D head width, n tokens at hand.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch

from lg.attention import Documents, Pattern
from lg.inference.formats import Format, Plain
from lg.inference.head import OfHead
from lg.inference.lifetime import PAGE
from lg.inference.pages import Group
from lg.inference.state import Piece
from lg.inference.tables import Tables


class Kind:
    """The pages of all layers of one pattern.

    Args:
        pattern: what they see.
        layers: their numbers in the decoder.
        num_heads: KV heads of a layer.
        head_width: features of a head.
        max_length: tokens that a sequence may have.
        num_pages: of each group of heads.
        formats: of keys and of values.
        device: where they lie.
        num_slots: the most sequences that are open at once.
        entries: the most pages that one of them holds in a group.

    Attributes:
        groups: of KV heads that see alike.
        keys, values: room for all pages, one head's at a time: page ``p`` of a group has number
            ``base[group] + p * g + i`` for the group's head ``i``.
        base: where each group's pages begin.
    """

    def __init__(
        self,
        pattern: Pattern,
        layers: Sequence[int],
        num_heads: int,
        head_width: int,
        max_length: int,
        num_pages: Sequence[int],
        formats: tuple[Format, Format],
        device: torch.device,
        num_slots: int,
        entries: int,
    ) -> None:
        self.pattern = pattern
        self.layers = tuple(layers)
        self.groups = [
            Group(one, heads, pages, max_length)
            for (one, heads), pages in zip(groups_of(pattern, num_heads, max_length), num_pages, strict=True)
        ]
        sizes = [group.num_pages * len(group.heads) for group in self.groups]
        self.base = [0, *itertools.accumulate(sizes)][:-1]
        self.formats = formats
        self.keys, self.values = (form.empty(len(layers), sum(sizes), head_width, device) for form in formats)
        self.page_bytes = PAGE * sum(form.num_bytes(head_width) for form in formats)
        self._num_slots, self._entries = num_slots, entries

    @cached_property
    def tables(self) -> Tables:
        """The book on the device, for kernels."""
        device = self.keys[0].device
        return Tables(self.groups, self.base, self._num_slots, self._entries, self.pattern.attributes, device)

    @property
    def num_bytes(self) -> int:
        """Bytes of the pages that are in use."""
        return len(self.layers) * self.page_bytes * sum(group.num_held * len(group.heads) for group in self.groups)


class Cache:
    """What a decoder's attention layers keep of the sequences that are open.

    Args:
        patterns: what each layer sees, in order.
        num_heads: KV heads of a layer.
        head_width: features of a head.
        max_length: the most tokens that a sequence may grow to.
        num_slots: the most sequences that are open at once.
        capacity: pages are set aside for so many tokens in all sequences; by default for all slots at full length.
        formats: of keys and of values; by default float32 as it is.
        device: where pages lie.

    Attributes:
        kinds: pages by pattern.
        lengths: tokens of each open sequence, by slot.
        rotated: whether keys are kept rotated; see `Runner`.
    """

    def __init__(
        self,
        patterns: Sequence[Pattern],
        num_heads: int,
        head_width: int,
        max_length: int,
        num_slots: int = 1,
        capacity: int | None = None,
        formats: tuple[Format, Format] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.max_length = max_length
        self.num_slots = num_slots
        self.head_width = head_width
        formats = formats or (Plain(torch.float32), Plain(torch.float32))
        share = 1.0 if capacity is None else min(1.0, capacity / (num_slots * max_length))
        self.kinds: list[Kind] = []
        for pattern in dict.fromkeys(patterns):
            layers = [layer for layer, one in enumerate(patterns) if one == pattern]
            groups = groups_of(pattern, num_heads, max_length)
            most = [_most_pages(Group(one, heads, 0, max_length)) for one, heads in groups]
            # One sequence of full length fits at least.
            pages = [max(n, int(np.ceil(share * num_slots * n))) for n in most]
            on = torch.device(device)
            self.kinds.append(
                Kind(pattern, layers, num_heads, head_width, max_length, pages, formats, on, num_slots, max(most))
            )
        self.lengths: dict[int, int] = {}
        self._documents: dict[int, dict[str, int]] = {}

    def open(self, length: int, doc: Mapping[str, int] | None = None) -> int | None:
        """A slot for a sequence that may grow to ``length`` tokens; None while there is no room for it.

        Args:
            length: tokens, at most ``max_length``.
            doc: attributes of the document that patterns ask for.
        """
        assert 0 < length <= self.max_length, (length, self.max_length)
        doc = dict(doc or {})
        slot = next((slot for slot in range(self.num_slots) if slot not in self.lengths), None)
        groups = [group for kind in self.kinds for group in kind.groups]
        if slot is None or any(group.needed(length, doc) > group.num_unreserved for group in groups):
            return None
        for group in groups:
            group.open(slot, length, doc)
        self.lengths[slot] = 0
        self._documents[slot] = doc
        return slot

    def close(self, slot: int) -> None:
        """Forgets a sequence."""
        for kind in self.kinds:
            for group in kind.groups:
                group.close(slot)
        del self.lengths[slot], self._documents[slot]

    def begin(self, counts: Sequence[tuple[int, int]]) -> list[Piece]:
        """Takes pages for the next tokens of some sequences: slots, and how many tokens each gets."""
        pieces = [Piece(slot, self.lengths[slot], count) for slot, count in counts]
        for kind in self.kinds:
            for group in kind.groups:
                for piece in pieces:
                    group.grow(piece.slot, piece.first, piece.count)
        return pieces

    def end(self, pieces: Sequence[Piece]) -> None:
        """Counts the tokens of a step, and gives back the pages that no later query may see."""
        for piece in pieces:
            now = self.lengths[piece.slot] = piece.first + piece.count
            for kind in self.kinds:
                for group in kind.groups:
                    group.shrink(piece.slot, now)

    @property
    def told(self) -> Mapping[int, Mapping[str, int]]:
        """Attributes of each open sequence's document, by slot."""
        return self._documents

    def documents(self, slot: int, length: int) -> Documents:
        """A sequence's first ``length`` tokens, as one document."""
        return Documents(length, attributes={name: (value,) for name, value in self._documents[slot].items()})

    @property
    def num_bytes(self) -> int:
        """Bytes of the pages that are in use, in all layers."""
        return sum(kind.num_bytes for kind in self.kinds)

    @property
    def room_bytes(self) -> int:
        """Bytes of all pages, in use or not."""
        return sum(room.nbytes for kind in self.kinds for room in (*kind.keys, *kind.values))


def groups_of(pattern: Pattern, num_heads: int, length: int) -> list[tuple[Pattern, tuple[int, ...]]]:
    """The KV heads that see alike in a document of up to ``length`` tokens, each group with what it sees.

    >>> from lg.attention import Strided
    >>> [heads for _, heads in groups_of(Strided(block=64, local_blocks=4, stride=4), 6, 4096)]
    [(0, 4), (1, 5), (2,), (3,)]
    """
    if not pattern.heads_differ:
        return [(pattern, tuple(range(num_heads)))]
    # Heads that see alike in one document may not in another that has other attributes.
    alike = [[head] for head in range(num_heads)] if pattern.attributes else pattern.alike(num_heads, length)
    return [(OfHead(pattern, heads[0]), tuple(heads)) for heads in alike]


def _most_pages(group: Group) -> int:
    """Pages that one sequence of full length may hold at once, whatever its document's attributes."""
    if group.pattern.attributes:
        return -(-group.max_length // PAGE)
    return group.needed(group.max_length, {})
