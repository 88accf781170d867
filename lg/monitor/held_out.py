"""The held-out text of a run, for callbacks that let the model read some of it."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor

from lg.data import TextData


def held_out_text(data: TextData, count: int) -> Tensor:
    """The first ``count`` tokens of the held-out rows, or as many as there are: int64, ends and padding left out."""
    pieces, found = list[Tensor](), 0
    for number in range(len(data.val_rows)):
        row = data.val_rows[number]["tokens"]
        # Padding is written with the end of a document, too.
        pieces.append(row[row != data.tokenizer.end])
        found += len(pieces[-1])
        if found >= count:
            break
    return torch.cat(pieces)[:count]


def longest_document(data: TextData, rows: int = 16) -> Tensor:
    """The longest stretch of one document in the first few held-out rows: int64, its end left out."""
    longest = torch.empty(0, dtype=torch.int64)
    for number in range(min(rows, len(data.val_rows))):
        row = data.val_rows[number]
        for piece in row["tokens"].tensor_split(row["document_starts"][1:]):
            text = piece[piece != data.tokenizer.end]
            if len(text) > len(longest):
                longest = text
    return longest


def text_data(trainer: pl.Trainer) -> TextData | None:
    """The run's `TextData`; None if its data are of another kind."""
    data = getattr(trainer, "datamodule", None)
    return data if isinstance(data, TextData) else None
