"""Whether the far tokens of a document are learnt: the held-out loss by the position of the token that predicts."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL.Image import Image
from torch import Tensor

from lg.attention import Documents
from lg.monitor.board import board, logged_step
from lg.monitor.chart import Axis, Line, lines, ramp, tokens
from lg.monitor.tally import num_tokens

_MOST_LINES = 8


class LossByPosition(pl.Callback):
    """Logs the held-out loss in nats by position in the document, and draws how it changes over training.

    At each validation ``loss_by_position/00128-00255_nats`` and its like are the means over the targets that tokens 128
    to 255 of their documents predict, counted from 0; every bucket is as wide as all before it. A bucket without a
    target is left out. ``loss_by_position/over_training`` draws the validations so far, and
    ``loss_by_position/difference_over_training`` how each differs from its first bucket. All ranks are summed, exactly;
    no forward pass is added, since `HybridLM.validation_step` tells the loss of each token.

    Args:
        first: tokens in the first bucket.

    Raises:
        ValueError: ``first`` is below 1.
    """

    def __init__(self, first: int = 128) -> None:
        if first < 1:
            raise ValueError(f"trainer.callbacks.LossByPosition.first: {first} is not allowed; it must be at least 1")
        self.first = first
        self._sums = torch.zeros(2, 0, dtype=torch.float64)
        self._history: dict[int, list[float]] = {}

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts from nothing."""
        # Losses and targets by bucket: 64 buckets hold any length.
        self._sums = torch.zeros(2, 64, dtype=torch.float64)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Adds a batch."""
        if not isinstance(outputs, dict) or not outputs.keys() >= {"losses", "counted"}:
            rank_zero_warn("LossByPosition stays away: validation_step does not return what HybridLM's does")
            return
        positions = Documents(num_tokens(batch), batch["document_starts"]).positions
        held = batch.get("held")
        if held is not None:
            positions = positions[held.tokens]
        self._sums += bucket_sums(outputs["losses"].flatten(), outputs["counted"].flatten(), positions, self.first)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs each bucket's mean, and draws."""
        total = self._sums
        if trainer.world_size > 1:
            reduced = trainer.strategy.reduce(total.to(pl_module.device), reduce_op="sum")
            assert isinstance(reduced, Tensor)
            total = reduced
        sums, counts = total.tolist()
        used = [bucket for bucket, count in enumerate(counts) if count]
        if trainer.sanity_checking or not used:
            return
        means = [sums[n] / counts[n] if counts[n] else math.nan for n in range(used[-1] + 1)]
        pl_module.log_dict({tag(bucket, self.first): means[bucket] for bucket in used}, sync_dist=True)
        self._history[trainer.global_step] = means
        writer = board(trainer)
        if writer is not None:
            for name, image in drawings(self._history, self.first).items():
                writer.add_image(name, np.asarray(image), logged_step(trainer), dataformats="HWC")

    def state_dict(self) -> dict[str, Any]:
        """The validations so far, so that a resumed run draws them too."""
        return {"first": self.first, "history": {step: list(means) for step, means in self._history.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint; means of other buckets say nothing of these, and are let go."""
        if state_dict["first"] == self.first:
            self._history = {int(step): list(means) for step, means in state_dict["history"].items()}


def bucket_sums(losses: Tensor, counted: Tensor, positions: Tensor, first: int) -> Tensor:
    """Summed loss in nats, and targets, by bucket of position: float64 [2, 64], on the host.

    Args:
        losses: of each of the N tokens' targets.
        counted: bool [N], which are targets.
        positions: of each token in its document.
        first: tokens in the first bucket; bucket n > 0 begins at ``first * 2 ** (n - 1)``.
    """
    edges = torch.tensor([start for n in range(1, 64) if (start := _start(n, first)) <= int(positions.max())])
    bucket = torch.bucketize(positions.long(), edges, right=True)
    counted = counted.cpu()
    weights = torch.stack([losses.cpu().double() * counted, counted.double()])
    return torch.stack([torch.bincount(bucket, weight, minlength=64) for weight in weights])


def tag(bucket: int, first: int) -> str:
    """What a bucket is called: names of at most 100,000 tokens sort as they follow one another."""
    return f"loss_by_position/{_start(bucket, first):05}-{_start(bucket + 1, first) - 1:05}_nats"


def drawings(history: dict[int, list[float]], first: int) -> dict[str, Image]:
    """Charts over position, a line for each of some validations, by tag: the loss, and how it differs from the start's.

    Args:
        history: the means by bucket, not a number where there is none, by optimizer step; at least one.
        first: tokens in the first bucket.
    """
    steps = sorted(history)
    shown = sorted({steps[round(n * (len(steps) - 1) / (_MOST_LINES - 1))] for n in range(_MOST_LINES)})
    whole = {step: history[step] for step in shown}
    less = {step: [mean - means[0] for mean in means] for step, means in whole.items()}
    return {
        "loss_by_position/over_training": _chart(whole, first, "Held-out loss by position"),
        "loss_by_position/difference_over_training": _chart(less, first, "Difference to the first bucket's loss"),
    }


def _chart(means: dict[int, list[float]], first: int, title: str) -> Image:
    buckets = max(len(own) for own in means.values())
    starts = [(n, tokens(_start(n, first))) for n in range(buckets)]
    drawn = [
        Line(
            f"step {step:,}", [(n, mean) for n, mean in enumerate(own) if math.isfinite(mean)], ramp(number, len(means))
        )
        for number, (step, own) in enumerate(means.items())
    ]
    return lines(drawn, Axis("tokens into the document (start of bucket)", starts), "nats", title)


def _start(bucket: int, first: int) -> int:
    return first * 2 ** (bucket - 1) if bucket else 0
