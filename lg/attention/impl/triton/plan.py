"""Tiles as the kernels take them: work lists on the device, and the tile sizes that they are of."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from lg.attention.impl.triton.options import Launch, Options
from lg.attention.impl.triton.work import Work, routed_work, work
from lg.attention.routed import RoutedTiles
from lg.attention.tiles import Tiles

# Of the tensor with most.
_DIMS = 3


class Where(NamedTuple):
    """Where documents lie, int32.

    Attributes:
        starts, ends: of each token, its document's first token and end (exclusive): [L], or [0] if there is but one
            document.
        attributes: of each token, what the predicate asks of its document, in alphabetical order: [attributes, L].
        query_tokens, key_tokens: the token that each query and each key is: [Lq] and [Lk], of a part of a sequence;
            [0] where keys are the whole of it.
    """

    starts: Tensor
    ends: Tensor
    attributes: Tensor
    query_tokens: Tensor
    key_tokens: Tensor


class Plan(NamedTuple):
    """What each kernel's programs do.

    Attributes:
        forward, query, key: the programs of the three kernels.
        where: the documents.
        options: how the kernels are launched.
        heads: KV heads that the programs tell apart; 1 if all see alike.
        length: tokens of the whole sequence.
    """

    forward: Work
    query: Work
    key: Work
    where: Where
    options: Options
    heads: int
    length: int

    @property
    def lists(self) -> list[Tensor]:
        """All tensors, one after the other; kernels of one tile size share theirs."""
        return [*self.forward, *self.query, *self.key, *self.where]


class Packed(NamedTuple):
    """A plan as operators of torch take it: whatever is planned, two tensors of the same kind, so that a compiled graph
    that takes one plan takes all.

    Attributes:
        lists: the plan's, end to end: int32, on the device.
        numbers: where each begins, and its shape; and how the kernels are launched: int64, on the host.
    """

    lists: Tensor
    numbers: Tensor


def packed(made: Plan, device: torch.device) -> Packed:
    """The plan on the device. What is on the host is moved as one, while the device still computes what came before."""
    lists = {id(x): x for x in made.lists}
    # Each begins at a multiple of 16 bytes, always: kernels are compiled for that.
    ends = list(accumulate(-(-x.numel() // 4) * 4 for x in lists.values()))
    begins = dict(zip(lists, [0, *ends], strict=False))
    on_host = all(x.device.type == "cpu" for x in lists.values())
    together = torch.zeros(
        ends[-1],
        dtype=torch.int32,
        device="cpu" if on_host else device,
        pin_memory=on_host and device.type == "cuda",
    )
    for name, x in lists.items():
        together[begins[name] : begins[name] + x.numel()] = x.flatten()
    numbers = [number for x in made.lists for number in (begins[id(x)], *x.shape, *[-1] * (_DIMS - x.ndim))]
    launches = [number for launch in made.options for number in launch]
    return Packed(together.to(device, non_blocking=True), torch.tensor([*numbers, *launches, made.heads, made.length]))


def unpacked(lists: Tensor, numbers: Tensor) -> Plan:
    """The inverse of `packed`."""
    *told, heads, length = numbers.tolist()
    n, m, size = len(Work._fields), len(Launch._fields), 1 + _DIMS
    count = 3 * n + len(Where._fields)
    views = []
    for i in range(0, count * size, size):
        begin, shape = told[i], [number for number in told[i + 1 : i + size] if number >= 0]
        views.append(lists[begin : begin + math.prod(shape)].view(shape))
    works = [Work(*views[i : i + n]) for i in range(0, 3 * n, n)]
    launches = told[count * size :]
    options = Options(*(Launch(*launches[i : i + m]) for i in range(0, 3 * m, m)))
    return Plan(works[0], works[1], works[2], Where(*views[3 * n :]), options, heads, length)


def plan(tiles: Tiles, options: Options) -> Plan:
    """The tiles for kernels so launched: on the host; those chosen by content, which decide their own size, where they
    were chosen.
    """
    documents = where(tiles)
    if isinstance(tiles, RoutedTiles):
        rows, columns = routed_work(tiles)
        at = options.at(tiles.block_q, tiles.block_k)
        return Plan(rows, rows, columns, documents, at, tiles.heads, tiles.documents.length)
    forward, query = options.forward, options.query
    of_forward = work(tiles.table(forward.q, forward.k))
    of_query = of_forward if query[:2] == forward[:2] else work(tiles.table(query.q, query.k))
    key = work(tiles.transposed(options.key.q, options.key.k), deal=True)
    return Plan(of_forward, of_query, key, documents, options, tiles.heads, tiles.documents.length)


def where(tiles: Tiles) -> Where:
    """The documents, what the predicate asks of them, and which tokens a part of the sequence is; on the host."""
    documents, attributes = tiles.documents, tiles.pattern.attributes
    of_token = documents.of_token.long() if tiles.packed or attributes else torch.zeros(0, dtype=torch.int64)
    none = torch.zeros(0, dtype=torch.int32)
    starts, ends = documents.bounds[:, of_token].int() if tiles.packed else (none, none)
    asked = [documents.attribute(name)[of_token].int() for name in attributes]
    is_chunk = tiles.all_keys and len(tiles.query_ranges) == 1
    tokens = (none, none) if is_chunk else (tiles.query_tokens.int(), tiles.key_tokens.int())
    return Where(starts, ends, torch.stack(asked) if asked else torch.zeros(0, 0, dtype=torch.int32), *tokens)
