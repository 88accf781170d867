"""Rows of random tokens without end: for measuring training, which needs no text."""

from __future__ import annotations

from collections.abc import Iterator

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from lg.data.rows import Batch
from lg.data.shards import data_axis


class RandomTokens(pl.LightningDataModule):
    """Each row is one document of tokens drawn evenly; ranks along the data axis draw others, and none ends.

    Args:
        row_length: tokens of a row.
        batch_size: rows of a batch, on each rank.
        vocab_size: how many tokens there are.
        seed: of the draw.

    Raises:
        ValueError: naming the value, what is allowed and the YAML key.
    """

    def __init__(self, row_length: int, batch_size: int = 1, vocab_size: int = 256, seed: int = 0) -> None:
        super().__init__()
        for name, value, least in (("row_length", row_length, 2), ("batch_size", batch_size, 1)):
            if value < least:
                raise ValueError(f"data.init_args.{name}: {value} is not allowed; it must be at least {least}")
        self.row_length, self.batch_size, self.vocab_size, self.seed = row_length, batch_size, vocab_size, seed

    def train_dataloader(self) -> DataLoader[Batch]:
        """This rank's batches."""
        _, shard = data_axis(self.trainer)
        rows = _Rows(self.row_length, self.batch_size, self.vocab_size, self.seed + shard)
        return DataLoader(rows, batch_size=None)


class _Rows(IterableDataset[Batch]):
    def __init__(self, length: int, count: int, vocab_size: int, seed: int) -> None:
        self.length, self.count, self.vocab_size, self.seed = length, count, vocab_size, seed

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            drawn = torch.randint(self.vocab_size, (self.count, self.length + 1), generator=generator)
            yield Batch(
                tokens=drawn[:, :-1],
                targets=drawn[:, 1:],
                document_starts=list(range(0, self.count * self.length, self.length)),
                document_attributes={},
                document_padding=[False] * self.count,
                num_padding=0,
                num_align=0,
            )
