"""A run of seconds, on documents of different lengths, for tests that read back what callbacks made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lg.attention import Causal, SinkWindow
from lg.data import BestFit, Document, Source, TextData
from lg.models.hybrid import HybridLM
from lg.models.learning_rate import Constant

SHAPE: dict[str, int | float | bool] = {
    "num_layers": 2,
    "width": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "ffn_width": 32,
}


@dataclass(frozen=True)
class Poems(Source):
    """Sixty documents of 50 to 600 bytes."""

    def documents(self) -> Iterator[Document]:
        for n in range(60):
            yield Document(f"poem {n}", b"%d: the quick brown fox jumps over the lazy dog; " % n * (n % 12 + 1))


def model(**changes: Any) -> HybridLM:
    pl.seed_everything(0, verbose=False)
    arguments: dict[str, Any] = {
        "patterns": {"local": SinkWindow(window=32), "full": Causal()},
        "schedule": "local, full",
        "decoder": SHAPE,
        "lr_schedule": Constant(warmup=0),
    }
    return HybridLM(**{**arguments, **changes})


def data(**changes: Any) -> TextData:
    return TextData(**{"source": Poems(), "row_length": 256, "held_out": 0.3, "packing": BestFit(), **changes})


def trainer(folder: Path, callbacks: Sequence[pl.Callback], **changes: Any) -> pl.Trainer:
    options: dict[str, Any] = {
        "max_steps": 4, "accelerator": "cpu", "val_check_interval": 2, "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "log_every_n_steps": 1, "default_root_dir": folder,
        "logger": TensorBoardLogger(str(folder), default_hp_metric=False), "callbacks": list(callbacks),
    }  # fmt: skip
    return pl.Trainer(**{**options, **changes})


def logged(trainer: pl.Trainer) -> EventAccumulator:
    events = EventAccumulator(str(trainer.log_dir), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    events.Reload()
    return events


def text(events: EventAccumulator, tag: str) -> list[str]:
    return [e.tensor_proto.string_val[0].decode() for e in events.Tensors(f"{tag}/text_summary")]
