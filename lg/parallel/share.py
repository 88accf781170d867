"""What a device of a context group has to do with a batch, told without processes: what a plan is made of.

>>> from lg.attention import Causal, Documents, SinkWindow
>>> layers = [SinkWindow(window=1024)] * 2 + [Causal()]
>>> told = share(Documents(131072), layers, num_kv_heads=8, num_ranks=4)
>>> told.num_tokens, told.received_at_once, told.imbalance < 1.05
(32768, 98304, True)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from lg.attention import Documents, Pattern
from lg.attention.part import Held
from lg.parallel.balance import imbalance, padded_length, split
from lg.parallel.plan import Plan, whole_tiles


class Share(NamedTuple):
    """Of a batch, for whoever has most.

    Attributes:
        num_tokens: tokens that each device holds, padding included.
        imbalance: the attention of the busiest device over the mean.
        received_at_once: tokens whose keys a device receives in the layer that fetches most.
        received: the same of all layers together.
    """

    num_tokens: int
    imbalance: float
    received_at_once: int
    received: int


def share(documents: Documents, layers: Sequence[Pattern], num_kv_heads: int, num_ranks: int) -> Share:
    """What ``num_ranks`` devices that share a sequence each have of it.

    Args:
        documents: of the whole sequence, of any length.
        layers: what each layer sees.
        num_kv_heads: KV heads of a layer.
        num_ranks: how many share the sequence.
    """
    length = padded_length(documents.length, num_ranks)
    starts = [*documents.starts, *([documents.length] if length > documents.length else [])]
    padded = Documents(length, starts)
    dealt = split(padded, layers, num_kv_heads, num_ranks)
    total, most = torch.zeros(num_ranks, dtype=torch.int64), 0
    for pattern in dict.fromkeys(layers):
        received = Plan(whole_tiles(pattern, padded, num_kv_heads), Held(dealt, 0)).tokens.sum(1)
        total += layers.count(pattern) * received
        most = max(most, int(received.max()))
    uneven = imbalance(dealt, padded, layers, num_kv_heads)
    return Share(length // num_ranks, uneven, most, int(total.max()))
