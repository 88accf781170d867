"""Tiles as the kernels take them: work lists on the device, and the tile sizes that they are of."""

from __future__ import annotations

from collections.abc import Sequence
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
        """Device memory of the lists; what two kernels share is counted once."""
        return sum({x.data_ptr(): x.numel() * x.element_size() for x in self.lists}.values())


def plan(tiles: Tiles, options: Options, device: torch.device) -> Plan:
    """The tiles for kernels so launched, on the device. Tiles chosen by content decide their own size."""
    if isinstance(tiles, RoutedTiles):
        rows_of, columns_of = routed_work(tiles)
        documents = where(tiles.documents, tiles.pattern.attributes, device)
        return Plan(rows_of, rows_of, columns_of, documents, options.at(tiles.block_q, tiles.block_k), tiles.heads)
    rows: dict[tuple[int, int], Work] = {}
    for launch in (options.forward, options.query):
        if (launch.q, launch.k) not in rows:
            rows[launch.q, launch.k] = moved(work(tiles.table(launch.q, launch.k)), device)
    columns = work(tiles.transposed(options.key.q, options.key.k), deal=True)
    return Plan(
        rows[options.forward.q, options.forward.k],
        rows[options.query.q, options.query.k],
        moved(columns, device),
        where(tiles.documents, tiles.pattern.attributes, device),
        options,
        tiles.heads,
    )


def where(documents: Documents, attributes: Sequence[str], device: torch.device) -> Where:
    """The documents, and what a predicate asks of them, on the device."""
    packed = len(documents.starts) > 1
    of_token = documents.of_token.long() if packed or attributes else torch.zeros(0, dtype=torch.int64)
    starts, ends = documents.bounds[:, of_token] if packed else torch.zeros(2, 0)
    asked = [documents.attribute(name)[of_token] for name in attributes]
    return Where(
        _on(starts.int(), device),
        _on(ends.int(), device),
        _on(torch.stack(asked).int() if asked else torch.zeros(0, 0, dtype=torch.int32), device),
    )


def moved(lists: Work, device: torch.device) -> Work:
    """The lists on the device."""
    return Work(*(_on(x, device) for x in lists))


def _on(x: Tensor, device: torch.device) -> Tensor:
    # Copied while the device still computes what came before.
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
