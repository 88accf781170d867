"""What a plan is told of a shared sequence is what the ranks then get of it."""

from __future__ import annotations

import pytest
import torch

from lg.attention import Causal, Documents, PerHead, SinkWindow
from lg.parallel.balance import imbalance
from lg.parallel.batch import own_part
from lg.parallel.plan import Plan, whole_tiles
from lg.parallel.share import share

LAYERS = [SinkWindow(window=200, sinks=4), Causal(), SinkWindow(window=200, sinks=4)]


@pytest.mark.parametrize("length", [4096, 3000])
def test_it_is_what_ranks_get(length: int) -> None:
    told = share(Documents(length, (0, 700)), LAYERS, num_kv_heads=2, num_ranks=4)
    tokens = torch.arange(length)[None]
    parts = [
        own_part({"tokens": tokens, "targets": tokens, "document_starts": [0, 700]}, LAYERS, 2, 4, rank)
        for rank in range(4)
    ]
    assert [part["tokens"].shape[1] for part, _ in parts] == [told.num_tokens] * 4
    part, held = parts[0]
    documents = Documents(held.split.length, part["document_starts"])
    assert told.imbalance == imbalance(held.split, documents, LAYERS, 2)
    received = [[sum(Plan(whole_tiles(layer, documents, 2), held).received) for layer in LAYERS] for _, held in parts]
    most = dict(zip(LAYERS, map(max, zip(*received, strict=True)), strict=True))
    assert told.received == most and most[Causal()] > 0


def test_what_may_travel_by_groups_of_heads_is_told() -> None:
    narrow, wide = SinkWindow(window=200, sinks=4), SinkWindow(window=4000, sinks=4)
    differ = PerHead([Causal(), narrow], [0, 1])
    told = share(Documents(8192), [narrow, wide, Causal(), differ], num_kv_heads=2, num_ranks=2)
    assert told.by_heads == {wide, Causal()}
    assert told.received[narrow] < told.num_tokens // 2 < told.received[wide]
    assert told.received[differ] == told.received[Causal()]
    # A document on each of two ranks: nothing travels.
    apart = share(Documents(8192, (0, 4096)), [Causal()], num_kv_heads=2, num_ranks=2)
    assert (apart.received, apart.by_heads) == ({Causal(): 0}, frozenset())
