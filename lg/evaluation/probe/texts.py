"""Texts of one length to measure on: from as many documents as there are, and only then more from the same ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lg.data import Source, Tokenizer

_BYTES_A_TOKEN = 8  # so many are tokenised for each token that is needed: more than nearly any text has


def pieces(sources: Sequence[Source], tokenizer: Tokenizer, length: int, count: int) -> list[Tensor]:
    """Pieces of documents, int64 [length] each, drawn from the sources in turn; fewer where there are no more.

    Args:
        sources: documents; one that is shorter than ``length`` tokens is passed over.
        tokenizer: the model's.
        length: tokens of a piece.
        count: pieces.

    Raises:
        ValueError: as the sources do.
    """
    found: list[Tensor] = []
    waiting = [_of(source, tokenizer, length) for source in sources]
    while waiting and len(found) < count:
        texts = waiting.pop(0)
        if (text := next(texts, None)) is not None:
            found.append(text)
            waiting.append(texts)
    return found


def _of(source: Source, tokenizer: Tokenizer, length: int) -> Iterator[Tensor]:
    """The first piece of each document, then the second of each, and so on."""
    step = length * _BYTES_A_TOKEN
    for round_ in itertools.count():
        found = False
        for document in source.read():
            text = document.text[round_ * step : (round_ + 1) * step]
            # No token has less than a byte.
            if len(text) < length:
                continue
            ids = torch.from_numpy(tokenizer.encode(text).astype("int64"))
            if len(ids) >= length:
                found = True
                yield ids[:length]
        if not found:
            return
