"""The book on the device is that on the host, in the same tensors for good, and is made once a step."""

from __future__ import annotations

import random

import torch

from lg.attention import Causal, PrefixLM, SinkWindow, Strided
from lg.inference import Cache
from lg.inference.state import Step


def test_the_device_has_what_the_book_has() -> None:
    rng = random.Random(0)
    patterns = [Strided(block=16, local_blocks=2, stride=3), SinkWindow(window=70, sinks=3), PrefixLM() & Causal()]
    cache = Cache(patterns, num_heads=4, head_width=8, max_length=400, num_slots=3)
    kept = [kind.tables.physical for kind in cache.kinds]
    for _ in range(60):
        if len(cache.lengths) < 3 and (slot := cache.open(400, {"prefix": rng.randrange(9)})) is not None:
            cache.end(cache.begin([(slot, rng.choice([2, 64, 130]))]))
        slots = rng.sample(sorted(cache.lengths), rng.randint(1, len(cache.lengths)))
        pieces = cache.begin([(slot, rng.choice([1, 1, 7])) for slot in slots])
        step = Step(pieces, lambda positions, length: (positions, positions))
        alone = [piece for piece in pieces if piece.count == 1]
        for kind, physical in zip(cache.kinds, kept, strict=True):
            tables, rows = kind.tables, kind.tables.rows(step, cache.told)
            assert kind.tables.rows(step, cache.told) is rows and tables.physical is physical
            assert rows.slots.tolist() == [piece.slot for piece in alone]
            assert rows.lengths.tolist() == [piece.first + 1 for piece in alone]
            for number, group in enumerate(kind.groups):
                for i, head in enumerate(group.heads):
                    assert tables.heads[head].tolist() == [number, kind.base[number] + i, len(group.heads)]
                for row, piece in enumerate(alone):
                    table, count = group.tables[piece.slot], int(tables.counts[piece.slot, number])
                    assert tables.logical[piece.slot, number, :count].tolist() == table.logical.tolist()
                    assert tables.physical[piece.slot, number, :count].tolist() == table.physical.tolist()
                    # The new token's page is there.
                    assert table.logical[-1] == piece.first // 64 and int(rows.pages[row, number]) == table.physical[-1]
            for name, values in zip(kind.pattern.attributes, tables.told, strict=True):
                assert all(int(values[slot]) == doc[name] for slot, doc in cache.told.items())
        cache.end(pieces)
        for slot in [slot for slot, length in cache.lengths.items() if length > 390 or rng.random() < 0.05]:
            cache.close(slot)
    assert torch.int32 == kept[0].dtype
