"""A run that was stopped goes on as if it never had been: the same losses, to the bit, for every kind of source."""

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from lg.attention import Causal, SinkWindow
from lg.data import (
    BestFit,
    Bytes,
    Document,
    Folder,
    HuggingFace,
    Jsonl,
    Mixture,
    Parquet,
    Repositories,
    Source,
    TextData,
)
from lg.models.hybrid import HybridLM
from lg.models.learning_rate import Cosine
from lg.monitor import Checkpoints

STEPS = 15
TEXTS = [f"document {n}: " + "abcdefgh "[n % 7 :] * (n % 11 + 2) for n in range(40)]


@dataclass(frozen=True)
class OfOnesOwn(Source):
    """A stream that a user wrote, which cannot begin anywhere but at its beginning."""

    streamed = True  # type: ignore[assignment]  # simpler than a property, and what a user would write

    def documents(self) -> Iterator[Document]:  # type: ignore[override]
        return (Document(f"d{n}", text.encode()) for n, text in enumerate(TEXTS))


def folder(path: Path) -> Source:
    for n, text in enumerate(TEXTS):
        (path / f"{n}.txt").write_text(text)
    return Folder(str(path))


def repositories(path: Path) -> Source:
    for n, text in enumerate(TEXTS):
        (path / f"repository{n // 2}").mkdir(exist_ok=True)
        (path / f"repository{n // 2}" / f"{n}.py").write_text(text)
    return Repositories(str(path))


def jsonl(path: Path, streaming: bool = False) -> Source:
    (path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return Jsonl(str(path / "texts.jsonl"), streaming=streaming)


def parquet(path: Path, streaming: bool = False) -> Source:
    import datasets

    datasets.Dataset.from_dict({"text": TEXTS}).to_parquet(str(path / "texts.parquet"))
    return Parquet(str(path / "texts.parquet"), streaming=streaming)


def hugging_face(path: Path, streaming: bool = False) -> Source:
    parquet(path)
    return HuggingFace("parquet", data_files=str(path / "texts.parquet"), streaming=streaming)


def mixture(path: Path, streaming: bool = False) -> Source:
    (path / "folder").mkdir()
    return Mixture({"files": folder(path / "folder"), "lines": jsonl(path, streaming)}, {"files": 1.0, "lines": 2.0})


SOURCES: dict[str, Callable[[Path], Source]] = {
    "folder": folder,
    "repositories": repositories,
    "jsonl": jsonl,
    "parquet": parquet,
    "hugging_face": hugging_face,
    "mixture": mixture,
    "jsonl_stream": lambda path: jsonl(path, streaming=True),
    "parquet_stream": lambda path: parquet(path, streaming=True),
    "hugging_face_stream": lambda path: hugging_face(path, streaming=True),
    "mixture_stream": lambda path: mixture(path, streaming=True),
    "own_stream": lambda path: OfOnesOwn(),
}


class Noted(pl.Callback):
    """Keeps each step's loss, and what random numbers would be drawn in it."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}
        self.drawn: dict[int, tuple[float, ...]] = {}
        self.held_out: dict[tuple[int, int], float] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *rest: Any) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        self.losses[trainer.global_step] = float(trainer.callback_metrics["train/loss_nats"])
        self.drawn[trainer.global_step] = random.random(), float(np.random.rand()), float(torch.rand(()))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        where = trainer.global_step, trainer.fit_loop.epoch_loop._batches_that_stepped
        assert where not in self.held_out
        self.held_out[where] = float(trainer.callback_metrics["val/loss_nats"])


class StopAt(pl.Callback):
    """Sends this process a SIGTERM in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: pl.Trainer, *rest: Any) -> None:
        if trainer.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def train(
    source: Source,
    where: Path,
    stop: int = 0,
    checkpoint: str | None = None,
    accumulate: int = 1,
    epochs: int = 0,
    **data: Any,
) -> Noted:
    pl.seed_everything(0, verbose=False)
    model = HybridLM(
        patterns={"local": SinkWindow(window=8), "full": Causal()},
        schedule="local, full",
        decoder={"num_layers": 2, "width": 16, "num_heads": 2, "num_kv_heads": 1},
        lr_schedule=Cosine(warmup=2),
    )
    noted = Noted()
    options: dict[str, Any] = {
        "max_steps": -1 if epochs else STEPS, "max_epochs": epochs or None, "accelerator": "cpu",
        "logger": False, "enable_progress_bar": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0, "val_check_interval": 5 * accumulate,
        "check_val_every_n_epoch": None, "limit_val_batches": 1, "accumulate_grad_batches": accumulate,
    }  # fmt: skip
    trainer = pl.Trainer(
        **options, callbacks=[noted, *([StopAt(stop)] if stop else []), Checkpoints(every=4, folder=str(where))]
    )
    module = TextData(
        source, Bytes(), **{"row_length": 48, "batch_size": 2, "held_out": 0.2, "held_out_rows": 4, "block": 8, **data}
    )
    if not stop:
        trainer.fit(model, module, ckpt_path=checkpoint, weights_only=True)
        return noted
    with pytest.raises(SystemExit) as ended:
        trainer.fit(model, module, ckpt_path=checkpoint, weights_only=True)
    assert ended.value.code == 143
    assert max(noted.losses) == stop
    return noted


def assert_goes_on(before: Noted, after: Noted, whole: Noted, stop: int) -> None:
    assert list(before.losses) == list(range(1, stop + 1))
    assert list(after.losses) == list(range(stop + 1, STEPS + 1))
    assert before.losses | after.losses == whole.losses
    assert before.drawn | after.drawn == whole.drawn
    assert not before.held_out.keys() & after.held_out.keys()
    assert before.held_out | after.held_out == whole.held_out


@pytest.mark.parametrize("kind", SOURCES)
def test_sigterm_and_resume_to_the_bit(kind: str, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    source = SOURCES[kind](tmp_path / "text")
    whole = train(source, tmp_path / "whole")
    assert len(set(whole.losses.values())) == STEPS
    stop = random.Random(kind).randrange(2, STEPS - 1)
    before = train(source, tmp_path / "stopped", stop)
    after = train(source, tmp_path / "stopped", checkpoint=str(tmp_path / "stopped" / f"step={stop:08d}.ckpt"))
    assert_goes_on(before, after, whole, stop)


@pytest.mark.parametrize("kind", ["folder", "mixture_stream"])
@pytest.mark.parametrize(("workers", "others"), [(2, 0), (0, 1), (1, 2)])
def test_another_number_of_workers(kind: str, workers: int, others: int, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    source = SOURCES[kind](tmp_path / "text")
    whole = train(source, tmp_path / "whole")
    before = train(source, tmp_path / "stopped", 7, num_workers=workers)
    checkpoint = str(tmp_path / "stopped" / "step=00000007.ckpt")
    after = train(source, tmp_path / "stopped", checkpoint=checkpoint, num_workers=others)
    assert_goes_on(before, after, whole, 7)


@pytest.mark.parametrize("kind", ["folder", "jsonl_stream"])
@pytest.mark.parametrize("stop", [5, 6, 11])
def test_inside_accumulated_steps_and_where_validation_is_due(kind: str, stop: int, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    source = SOURCES[kind](tmp_path / "text")
    options: dict[str, Any] = {"accumulate": 3, "batch_size": 1, "packing": BestFit(), "align": 8}
    whole = train(source, tmp_path / "whole", **options)
    before = train(source, tmp_path / "stopped", stop, **options)
    checkpoint = str(tmp_path / "stopped" / f"step={stop:08d}.ckpt")
    after = train(source, tmp_path / "stopped", checkpoint=checkpoint, **options)
    assert_goes_on(before, after, whole, stop)


def test_stopped_twice(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    source = jsonl(tmp_path / "text", streaming=True)
    whole = train(source, tmp_path / "whole")
    noted = [
        train(source, tmp_path / "a", 3),
        train(source, tmp_path / "a", 9, str(tmp_path / "a" / "step=00000003.ckpt")),
        train(source, tmp_path / "a", checkpoint=str(tmp_path / "a" / "step=00000009.ckpt")),
    ]
    assert {step: loss for run in noted for step, loss in run.losses.items()} == whole.losses
    assert sum(len(run.losses) for run in noted) == STEPS


def steps_of_epochs(source: Source, where: Path, accumulate: int, **data: Any) -> tuple[Noted, int]:
    whole = train(source, where, accumulate=accumulate, epochs=3, **data)
    assert len(whole.losses) % 3 == 0
    return whole, len(whole.losses) // 3


@pytest.mark.parametrize("kind", ["folder", "mixture"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_at_and_around_the_end_of_an_epoch(kind: str, accumulate: int, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    source = SOURCES[kind](tmp_path / "text")
    # Shares that are mixed make epochs of the data differ.
    options: dict[str, Any] = {"row_length": 160, "accumulate": accumulate}
    whole, of_epoch = steps_of_epochs(source, tmp_path / "whole", **options)
    for stop in (of_epoch - 1, of_epoch, of_epoch + 1, 2 * of_epoch):
        where = tmp_path / f"stopped{stop}"
        before = train(source, where, stop, epochs=3, **options)
        after = train(source, where, checkpoint=str(where / f"step={stop:08d}.ckpt"), epochs=3, **options)
        assert before.losses | after.losses == whole.losses, stop
        assert len(before.losses) + len(after.losses) == len(whole.losses), stop
        assert before.held_out | after.held_out == whole.held_out, stop


def test_another_run_s_checkpoint_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    source = folder(tmp_path / "text")
    train(source, tmp_path / "a", 5)
    train(source, tmp_path / "b", checkpoint=str(tmp_path / "a" / "step=00000005.ckpt"))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["step=00000005.ckpt"]
    assert [path.name for path in (tmp_path / "b").iterdir()] == [f"step={STEPS:08d}.ckpt"]
