"""How long a sequence may grow in the memory that there is, told before anything is read.

>>> from lg.attention import Causal, SinkWindow
>>> from lg.models.presets import preset
>>> full = Decoder(preset("tiny"), [Causal()] * 6)
>>> hybrid = Decoder(preset("tiny"), [SinkWindow(window=64)] * 5 + [Causal()])
>>> room_bytes(hybrid, 4096) < room_bytes(full, 4096) / 4, longest(hybrid, 2**20) > 3 * longest(full, 2**20)
(True, True)
"""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

import torch

from lg.inference.cache import Cache
from lg.inference.formats import Format, Plain
from lg.inference.runner import patterns_of
from lg.models.decoder import Decoder

LONGEST = 2**24
"""Tokens of the longest sequence that is thought of."""

SHARE = 0.8
"""Of free memory, what keys and values may take: what a step computes needs some as well."""


def room_bytes(
    decoder: Decoder,
    length: int,
    slots: int = 1,
    capacity: int | None = None,
    formats: tuple[Format, Format] | None = None,
) -> int:
    """Bytes that a `Runner`'s pages take.

    Args:
        decoder: the model.
        length: the most tokens that a sequence may grow to.
        slots: the most sequences that are open at once.
        capacity: room for so many tokens in all; by default for all slots at full length.
        formats: of keys and values; by default the decoder's own.
    """
    config, dtype = decoder.config, decoder.embedding.weight.dtype
    formats = formats or (Plain(dtype), Plain(dtype))
    # There, nothing is allocated.
    patterns, heads, width = patterns_of(decoder), config.num_kv_heads, config.head_width
    return Cache(patterns, heads, width, length, slots, capacity, formats, device="meta").room_bytes


def longest(decoder: Decoder, num_bytes: int, formats: tuple[Format, Format] | None = None) -> int:
    """Tokens of the longest sequence whose pages fit in some bytes, up to 16M; 0 if none does."""
    fits, above = 0, LONGEST + 1
    while above - fits > 1:
        # Lengths that are far too large are not tried: they take long.
        middle = min((fits + above) // 2, max(2 * fits, 1024))
        if room_bytes(decoder, middle, formats=formats) <= num_bytes:
            fits = middle
        else:
            above = middle
    return fits


def largest_batch(
    decoder: Decoder, length: int, formats: tuple[Format, Format] | None, num_bytes: int, most: int = 256
) -> int:
    """How many sequences of some length have room in so many bytes, up to ``most``; 0 if none has."""
    return bisect_right(range(1, most + 1), num_bytes, key=lambda n: room_bytes(decoder, length, n, formats=formats))


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device, about; what torch holds there and does not use is free."""
    from lg.models.running import host_memory

    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    try:
        told = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(told["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return host_memory()
    return min(free, host_memory())
