"""What a device of a context group has to do with a batch, told without processes: what a plan is made of.

>>> from lg.attention import Causal, Documents, SinkWindow
>>> layers = [SinkWindow(window=1024)] * 2 + [Causal()]
>>> told = share(Documents(131072), layers, num_kv_heads=8, num_ranks=4)
>>> told.num_tokens, told.received[Causal()], told.imbalance < 1.05
(32768, 98304, True)
>>> told.by_heads
frozenset({Causal()})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lg.attention import Documents, Pattern
from lg.attention.part import Held
from lg.parallel.balance import imbalance, padded_length, split
from lg.parallel.plan import Plan, whole_tiles


class Share(NamedTuple):
    """Of a batch, for whoever has most.

    Attributes:
        num_tokens: tokens that each device holds, padding included.
        imbalance: the attention of the busiest device over the mean.
        received: tokens whose keys a device receives in a layer of each pattern.
        by_heads: the patterns whose KV heads may travel one group after the other.
    """

    num_tokens: int
    imbalance: float
    received: Mapping[Pattern, int]
    by_heads: frozenset[Pattern]


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
    held = Held(dealt, 0)
    # In the order of layers, so that sums of times are the same on all ranks.
    plans = {pattern: Plan(whole_tiles(pattern, padded, num_kv_heads), held) for pattern in dict.fromkeys(layers)}
    return Share(
        length // num_ranks,
        imbalance(dealt, padded, layers, num_kv_heads),
        {pattern: int(plan.tokens.sum(1).max()) for pattern, plan in plans.items()},
        frozenset(pattern for pattern, plan in plans.items() if plan.by_heads),
    )
