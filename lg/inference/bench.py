"""How long a decoder reads a prompt and writes a token, in how much memory: what `lg bench prefill` and `decode` tell.

>>> from lg.attention import SinkWindow
>>> from lg.models.presets import preset
>>> layers = [SinkWindow(window=64)] * 6
>>> runner = Runner(random_decoder(preset("tiny"), layers, torch.device("cpu"), torch.float32), max_length=200)
>>> _, bound = decode(runner, length=150, batch=1, steps=1, warm_up=0)
>>> prefill(runner, length=150, batch=1, chunk=64).kv_bytes == bound.kv_bytes
True

Shapes: B sequences, L tokens of each.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lg.attention import Pattern
from lg.inference.lifetime import PAGE
from lg.inference.runner import Runner
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder


@dataclass(frozen=True)
class Prefill:
    """What reading prompts takes.

    Attributes:
        seconds: until the first token after the last of them is there, run by run.
        kv_bytes: of the pages that are held then.
        kv_share: of what full attention in every layer would hold.
    """

    seconds: list[float]
    kv_bytes: int
    kv_share: float


@dataclass(frozen=True)
class Bound:
    """What a step that gives each sequence a token must read at least.

    Attributes:
        weight_bytes: of all weights; of an embedding only where it is the head too.
        kv_bytes: of the pages that are listed.
        kv_share: of what full attention in every layer would hold.
    """

    weight_bytes: int
    kv_bytes: int
    kv_share: float


def random_decoder(
    config: DecoderConfig, patterns: Sequence[Pattern], device: torch.device, dtype: torch.dtype
) -> Decoder:
    """A decoder with weights drawn where they lie, the same ones each time, in eval mode."""
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return Decoder(config, patterns).eval()
    finally:
        torch.set_default_dtype(before)


def prefill(runner: Runner, length: int, batch: int, chunk: int, repeats: int = 1) -> Prefill:
    """Reads random prompts, one after another, and forgets them.

    Args:
        runner: with room for more than them: what no later token sees is not held.
        length: tokens of each.
        batch: how many.
        chunk: tokens that are read at once.
        repeats: how often; the first run compiles what it needs.

    Raises:
        ValueError: if more tokens than a chunk must be read at once.
    """
    least, pattern = runner.least(length)
    if least > chunk:
        raise ValueError(f"{pattern} sees forward among the first {least:,} tokens, and a chunk has {chunk:,}")
    device, vocabulary = runner.decoder.embedding.weight.device, runner.decoder.config.vocab_size
    tokens = torch.randint(vocabulary, (batch, length), device=device)
    seconds, held = [], Bound(0, 0, 0.0)
    for _ in range(repeats):
        slots = [_opened(runner) for _ in range(batch)]
        _wait(device)
        begun = time.perf_counter()
        for slot, row in zip(slots, tokens, strict=True):
            for piece in row.split(chunk):
                runner.likeliest(piece, [(slot, len(piece))])
        _wait(device)
        seconds.append(time.perf_counter() - begun)
        held = _bound(runner)
        for slot in slots:
            runner.cache.close(slot)
    return Prefill(seconds, held.kv_bytes, held.kv_share)


def decode(runner: Runner, length: int, batch: int, steps: int, warm_up: int = 3) -> tuple[float, Bound]:
    """Seconds of a step that gives each sequence a token, and what it must read at least.

    The prompts are not read: their pages are taken, as if they had been, and filled with random keys and values.

    Args:
        runner: with room for ``length + warm_up + steps`` tokens of each.
        length: tokens that each sequence has before the steps that count.
        batch: how many there are.
        steps: that count.
        warm_up: that come before; they record what is recorded.
    """
    device = runner.decoder.embedding.weight.device
    slots = _taken(runner, length, batch)
    _fill(runner)
    tokens = torch.zeros(batch, dtype=torch.int64, device=device)
    counts = [(slot, 1) for slot in slots]
    for _ in range(warm_up):
        tokens = runner.likeliest(tokens, counts)
    bound = _bound(runner)
    _wait(device)
    begun = time.perf_counter()
    for _ in range(steps):
        tokens = runner.likeliest(tokens, counts)
    _wait(device)
    seconds = (time.perf_counter() - begun) / steps
    for slot in slots:
        runner.cache.close(slot)
    return seconds, bound


def _taken(runner: Runner, length: int, batch: int) -> list[int]:
    """Sequences that have the pages which they would have, had they been read."""
    slots = [_opened(runner) for _ in range(batch)]
    runner.cache.end(runner.cache.begin([(slot, length) for slot in slots]))
    return slots


def _fill(runner: Runner) -> None:
    """Random keys and values in all pages."""
    for kind in runner.cache.kinds:
        for room in (kind.keys, kind.values):
            codes, *steps = room
            if codes.dtype == torch.uint8:
                codes.random_(0, 256)
            else:
                codes.normal_()
            # What codes are multiplied by, and what is added.
            for one in steps:
                one.fill_(0.01)


def _opened(runner: Runner) -> int:
    slot = runner.open(runner.cache.max_length)
    assert slot is not None
    return slot


def _bound(runner: Runner) -> Bound:
    decoder, cache = runner.decoder, runner.cache
    of_page = sum(
        len(kind.layers) * len(group.heads) * kind.page_bytes for kind in cache.kinds for group in kind.groups
    )
    pages = sum(-(-length // PAGE) for length in cache.lengths.values())
    # Of an embedding a few rows are looked up.
    looked_up = 0 if decoder.config.tied_embeddings else decoder.embedding.weight.nbytes
    return Bound(
        sum(x.nbytes for x in decoder.parameters()) - looked_up, cache.num_bytes, cache.num_bytes / (of_page * pages)
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
