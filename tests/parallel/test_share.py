"""What a plan is told of a shared sequence is what the ranks then get of it."""

from __future__ import annotations

import pytest
import torch

from lg.attention import Causal, Documents, SinkWindow
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
    assert told.received_at_once == max(map(max, received))
    assert told.received == max(map(sum, received))
