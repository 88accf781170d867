"""The book of pages on the device: what kernels read of it, copied once a change and shared by all layers of a kind.

The tensors are the same ones for good and are written over in place: a CUDA graph that reads them finds what is new.

Shapes: S sequences of a step, N slots, G KV heads, F groups of them, E pages that a sequence may hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lg.inference.pages import Group, Numbers
from lg.inference.state import Step, moved


class Rows(NamedTuple):
    """Sequences that read one token each: int32, on the device.

    Attributes:
        slots: whose tokens they are: [S].
        lengths: tokens of each sequence, the new one included: [S].
        tokens: the place of the new one: [S].
        pages: the page that it lies in, in each group: [S, F].
    """

    slots: Tensor
    lengths: Tensor
    tokens: Tensor
    pages: Tensor


class Tables:
    """The pages of all slots' sequences, in all groups of one kind.

    Args:
        groups: their books.
        base: where each group's pages begin.
        num_slots: how many sequences there may be.
        entries: the most pages that a sequence holds in a group.
        attributes: what the kind's pattern asks of a document, in alphabetical order.
        device: where kernels read.

    Attributes:
        logical, physical: the pages of each slot and group, and where they lie: int32 [N, F, E].
        counts: how many there are: int32 [N, F].
        last: where the last of them lies, which the newest token is in: int32 [N, F].
        heads: of each KV head its group, where the head's pages begin, and from one to the next: int32 [G, 3].
        told: attributes of each slot's document: int32 [attributes, N].
    """

    def __init__(
        self,
        groups: Sequence[Group],
        base: Sequence[int],
        num_slots: int,
        entries: int,
        attributes: tuple[str, ...],
        device: torch.device,
    ) -> None:
        self._groups = groups
        self._attributes = attributes
        both = torch.zeros(2, num_slots, len(groups), entries, dtype=torch.int32, device=device)
        self.logical, self.physical = self._both = both
        self.counts, self.last = self._ends = both.new_zeros(2, num_slots, len(groups))
        self.told = both.new_zeros(len(attributes), num_slots)
        heads = np.zeros((sum(len(group.heads) for group in groups), 3), np.int32)
        for number, (group, first) in enumerate(zip(groups, base, strict=True)):
            heads[list(group.heads)] = [(number, first + i, len(group.heads)) for i in range(len(group.heads))]
        self.heads = torch.from_numpy(heads).to(device)
        self._versions: list[int] = []
        self._copied: dict[tuple[int, int], Numbers] = {}

    def rows(self, step: Step, told: Mapping[int, Mapping[str, int]]) -> Rows:
        """The sequences of a step that read one token each; made once for all layers.

        Args:
            step: pieces of any length.
            told: attributes of each open sequence's document, by slot.
        """

        def make() -> Rows:
            self.update(told)
            pieces = [piece for piece in step.pieces if piece.count == 1]
            on_host = torch.tensor([[one.slot for one in pieces], [one.first + 1 for one in pieces]])
            slots, lengths = moved(on_host.int(), self.counts.device)
            return self.rows_of(slots, lengths)

        return step.once((id(self), "rows"), make)

    def rows_of(self, slots: Tensor, lengths: Tensor) -> Rows:
        """The same of slots and lengths that are on the device, from the book as it is there."""
        return Rows(slots, lengths, lengths - 1, self.last[slots])

    def update(self, told: Mapping[int, Mapping[str, int]]) -> None:
        """Copies what has changed in the book."""
        versions = [group.version for group in self._groups]
        if versions == self._versions:
            return
        self._versions = versions
        ends = np.zeros(self._ends.shape, np.int32)
        for number, group in enumerate(self._groups):
            for slot, table in group.tables.items():
                count = len(table.logical)
                if count:
                    ends[:, slot, number] = count, table.physical[-1]
                # A table that changes gets new lists.
                if self._copied.get((slot, number)) is not table.physical:
                    lists = np.stack((table.logical, table.physical))
                    self._both[:, slot, number, :count] = moved(torch.from_numpy(lists).int(), self._both.device)
                    self._copied[slot, number] = table.physical
        self._ends.copy_(moved(torch.from_numpy(ends), self._ends.device))
        values = [[told.get(slot, {}).get(name, 0) for slot in range(self.told.shape[1])] for name in self._attributes]
        if values:
            self.told.copy_(moved(torch.tensor(values), self.told.device))
