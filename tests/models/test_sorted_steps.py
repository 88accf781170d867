"""Sorting a step's micro-batches by cost changes how long a step takes, and neither its loss nor its gradient."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lg.attention import Causal, SinkWindow
from lg.data import BestFit, Document, Source, TextData
from lg.models.hybrid import HybridLM
from lg.models.learning_rate import Constant


@dataclass(frozen=True)
class Mixed(Source):
    """Documents of very different lengths, so that rows cost very different amounts, and have more or fewer targets."""

    def documents(self) -> Any:
        for n in range(120):
            yield Document(f"{n}", b"the quick brown fox jumps over the lazy dog; "[n % 7 :] * (8 if n % 5 == 0 else 1))


class Keep(pl.Callback):
    """The rows, loss and gradient of each step."""

    def __init__(self) -> None:
        self.order: list[list[list[int]]] = [[]]
        self.steps: list[tuple[float, torch.Tensor]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, _: int) -> None:
        self.order[-1] += batch["tokens"].tolist()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % 4 == 3:
            gradients = [p.grad.flatten() for p in pl_module.parameters() if p.grad is not None]
            self.steps.append((float(trainer.callback_metrics["train/loss_nats"]), torch.cat(gradients).double()))
            self.order.append([])


def trained(balance: bool, folder: Path) -> Keep:
    """Two steps of four micro-batches; at a rate too small to move them both begin with the same weights."""
    pl.seed_everything(0, verbose=False)
    shape = {"num_layers": 2, "width": 32, "num_heads": 4, "num_kv_heads": 2, "head_width": 8, "ffn_width": 48}
    model = HybridLM(
        patterns={"local": SinkWindow(window=16, sinks=2), "full": Causal()}, schedule="local, full",
        decoder=shape, learning_rate=1e-12, lr_schedule=Constant(warmup=0),
    )  # fmt: skip
    keep = Keep()
    trainer = pl.Trainer(
        max_steps=2, accumulate_grad_batches=4, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, default_root_dir=folder,
        callbacks=[keep],
    )  # fmt: skip
    trainer.fit(model, TextData(Mixed(), row_length=400, packing=BestFit(), balance=balance, align=1))
    return keep


def test_order_within_a_step_changes_neither_loss_nor_gradient(tmp_path: Path) -> None:
    plain, sorted_ = trained(False, tmp_path), trained(True, tmp_path)
    assert len(plain.steps) == len(sorted_.steps) == 2
    assert plain.order != sorted_.order
    assert [sorted(step) for step in plain.order] == [sorted(step) for step in sorted_.order]
    for (loss, gradient), (want_loss, want) in zip(sorted_.steps, plain.steps, strict=True):
        assert loss == pytest.approx(want_loss, rel=1e-6)
        assert torch.linalg.vector_norm(gradient - want) < 1e-5 * torch.linalg.vector_norm(want)
        assert torch.linalg.vector_norm(want) > 0
