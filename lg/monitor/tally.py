"""Counts over all ranks that are exact: each batch once, also where several ranks share one."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
import torch

from lg.attention.part import Held
from lg.data import data_axis


class Tally:
    """Whole numbers added up over micro-batches and ranks.

    Args:
        size: how many numbers.

    Attributes:
        totals: their sums over all ranks, up to the last `settle`.
    """

    def __init__(self, size: int) -> None:
        self.totals = [0] * size
        self._own = [0] * size

    def add(self, *numbers: int) -> None:
        """Adds what this rank has counted in a micro-batch."""
        self._own = [have + more for have, more in zip(self._own, numbers, strict=True)]

    def settle(self, trainer: pl.Trainer) -> None:
        """Brings what the ranks have added since the last time into the totals; to be called by all of them."""
        added, self._own = self._own, [0] * len(self._own)
        if trainer.world_size > 1:
            numbers = torch.tensor(added, device=trainer.strategy.root_device)
            counted: list[int] = trainer.strategy.reduce(numbers, reduce_op="sum").tolist()
            added = [number // copies(trainer) for number in counted]
        self.totals = [have + more for have, more in zip(self.totals, added, strict=True)]


def copies(trainer: pl.Trainer) -> int:
    """How many ranks read the same batch: those that differ in another axis than the data's."""
    return trainer.world_size // data_axis(trainer)[0]


def num_tokens(batch: Mapping[str, object]) -> int:
    """Tokens of a batch, on all ranks that share its sequence."""
    held = batch.get("held")
    if isinstance(held, Held):
        return held.split.length
    tokens = batch["tokens"]
    assert isinstance(tokens, torch.Tensor)
    return tokens.numel()


def text_tokens(batch: Mapping[str, object]) -> int:
    """Those of them that are text; all, if it does not tell how much is padding."""
    num_padding = batch.get("num_padding", 0)
    assert isinstance(num_padding, int)
    return num_tokens(batch) - num_padding
