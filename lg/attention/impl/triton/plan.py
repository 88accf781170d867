"""Tiles as the kernels take them: work lists on the device, and the tile sizes that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from lg.attention.documents import Documents
from lg.attention.impl.triton.options import Launch, Options
from lg.attention.impl.triton.work import Work, routed_work, work
from lg.attention.routed import RoutedTiles
from lg.attention.tiles import Tiles


class Where(NamedTuple):
    """Where documents lie, int32 on the device.

    Attributes:
        starts, ends: of each token, its document's first token and end (exclusive): [L], or [0] if there is but one
            document.
        attributes: of each token, what the predicate asks of its document, in alphabetical order: [attributes, L].
    """

    starts: Tensor
    ends: Tensor
    attributes: Tensor


class Plan(NamedTuple):
    """What each kernel's programs do.

    Attributes:
        forward, query, key: the programs of the three kernels.
        where: the documents.
        options: how the kernels are launched.
        heads: KV heads that the programs tell apart; 1 if all see alike.
    """

    forward: Work
    query: Work
    key: Work
    where: Where
    options: Options
    heads: int

    @property
    def lists(self) -> list[Tensor]:
        """All tensors, one after the other, as operators of torch take them."""
        return [*self.forward, *self.query, *self.key, *self.where]

    @property
    def launches(self) -> list[int]:
        """All numbers, likewise."""
        return [number for launch in self.options for number in launch] + [self.heads]

    @classmethod
    def of(cls, lists: Sequence[Tensor], launches: Sequence[int]) -> Plan:
        """The inverse of both."""
        n, m = len(Work._fields), len(Launch._fields)
        works = [Work(*lists[i : i + n]) for i in range(0, 3 * n, n)]
        options = Options(*(Launch(*launches[i : i + m]) for i in range(0, 3 * m, m)))
        return cls(works[0], works[1], works[2], Where(*lists[3 * n :]), options, launches[-1])

    @property
    def num_bytes(self) -> int:
        """Device memory of the lists."""
        return sum(x.numel() * x.element_size() for x in self.lists)


def plan(tiles: Tiles, options: Options, device: torch.device) -> Plan:
    """The tiles for kernels so launched, on the device. Tiles chosen by content decide their own size."""
    on = where(tiles.documents, tiles.pattern.attributes)
    if isinstance(tiles, RoutedTiles):
        rows, columns = routed_work(tiles)
        documents = Where(*_together_on(on, device))
        return Plan(rows, rows, columns, documents, options.at(tiles.block_q, tiles.block_k), tiles.heads)
    forward, query = (work(tiles.table(launch.q, launch.k)) for launch in (options.forward, options.query))
    key = work(tiles.transposed(options.key.q, options.key.k), deal=True)
    made = Plan(forward, query, key, on, options, tiles.heads)
    return Plan.of(_together_on(made.lists, device), made.launches)


def where(documents: Documents, attributes: Sequence[str]) -> Where:
    """The documents, and what a predicate asks of them, on the host."""
    packed = len(documents.starts) > 1
    of_token = documents.of_token.long() if packed or attributes else torch.zeros(0, dtype=torch.int64)
    starts, ends = documents.bounds[:, of_token].int() if packed else torch.zeros(2, 0, dtype=torch.int32)
    asked = [documents.attribute(name)[of_token].int() for name in attributes]
    return Where(starts, ends, torch.stack(asked) if asked else torch.zeros(0, 0, dtype=torch.int32))


def _together_on(lists: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The lists, int32, on the device: moved as one, while it still computes what came before.

    Each begins at a multiple of 16 bytes, always: kernels are compiled for that.
    """
    begins = [0, *accumulate(-(-x.numel() // 4) * 4 for x in lists)]
    together = torch.zeros(begins[-1], dtype=torch.int32, pin_memory=device.type == "cuda")
    for begin, x in zip(begins, lists, strict=False):
        together[begin : begin + x.numel()] = x.flatten()
    moved = together.to(device, non_blocking=True)
    return [moved[begin : begin + x.numel()].view(x.shape) for begin, x in zip(begins, lists, strict=False)]
