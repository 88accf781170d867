"""What ranks that share a sequence fetch from each other, told by layer, and how evenly they were dealt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from small_run import data, model

from lg.attention import Documents
from lg.attention.part import Part
from lg.monitor import Exchange
from lg.parallel import HybridStrategy
from lg.parallel.plan import plan_of
from lg.testing import run_ranks


class Noted(pl.Callback):
    """What was logged, and what each batch must fetch: tokens by layer."""

    def __init__(self) -> None:
        self.logged: dict[str, float] = {}
        self.tokens: dict[str, int] = {"local": 0, "full": 0}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        held = batch["held"]
        on = Documents(held.split.length, batch["document_starts"])
        for name in self.tokens:
            whole = pl_module.patterns[name].tiles(on, pl_module.decoder_config.num_kv_heads)
            self.tokens[name] += sum(plan_of(Part(whole, held.ranges, whole.key_ranges, held)).received)
        self.logged.update({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("exchange")})


def trained(rank: int, folder: Path) -> tuple[dict[str, float], dict[str, int]]:
    """Two steps of two micro-batches: what was logged, and tokens by layer that this rank had to fetch."""
    noted = Noted()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=HybridStrategy(context_parallel_size=2),
        max_steps=2,
        accumulate_grad_batches=2,
        limit_val_batches=0,
        log_every_n_steps=2,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        callbacks=[Exchange(every=2), noted],
        default_root_dir=folder,
    )
    trainer.fit(model(), data(row_length=1024))
    return noted.logged, noted.tokens


def test_what_is_told_is_what_the_pattern_needs(tmp_path: Path) -> None:
    ranks = run_ranks(trained, 2, tmp_path)
    logged, _ = ranks[0]
    config = model().decoder_config
    # Keys and values, forward; once more, and their gradients, backward.
    a_token = 2 * config.num_kv_heads * config.head_width * 4
    for name in ("local", "full"):
        fetched = sum(tokens[name] for _, tokens in ranks) / 2 / 2
        told = logged[f"exchange/{name}_GiB"] * 2**30
        assert fetched > 0 and told == pytest.approx(3 * a_token * fetched, rel=1e-5)
    assert logged["exchange/local_GiB"] < logged["exchange/full_GiB"]
    assert 1.0 <= logged["exchange/imbalance"] < 1.5
