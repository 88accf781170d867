"""Sharded checkpoints: written while training goes on, found only when whole, whatever ends a rank meanwhile."""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.distributed.tensor import DTensor

from lg.attention import Causal, SinkWindow
from lg.cli.last import newest_checkpoint
from lg.data import Document, Source, TextData
from lg.models.hybrid import HybridLM
from lg.models.learning_rate import Constant
from lg.monitor import Checkpoints
from lg.parallel import HybridStrategy
from lg.parallel.consolidate import consolidated
from lg.testing import RankFailed, run_ranks

SECOND, FOURTH = "step=00000002.ckpt", "step=00000004.ckpt"


class Poems(Source):
    """Forty short documents of different lengths."""

    def documents(self) -> Any:
        for n in range(40):
            yield Document(f"poem {n}", b"the quick brown fox jumps over the lazy dog; " * (n % 5 + 1))


class Watched(pl.Callback):
    """Remembers which checkpoints there are, and the weights, at the end of each step."""

    def __init__(self, folder: Path, after: dict[int, Callable[[], None]]) -> None:
        self.folder = folder
        self.after = after
        self.there: list[list[str]] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        trainer.strategy.barrier()
        self.there.append(sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else [])
        self.weights.append({name: whole(p) for name, p in pl_module.named_parameters()})
        trainer.strategy.barrier()
        self.after.get(trainer.global_step, lambda: None)()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.full_tensor().detach().clone()


def fit(folder: Path, max_steps: int, after: dict[int, Callable[[], None]], last: Path | None = None) -> Watched:
    """Two ranks train, and save every other step."""
    watched = Watched(folder / "checkpoints", after)
    saver = Checkpoints(every=2, keep=2)
    torch.manual_seed(0)
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy=HybridStrategy(), max_steps=max_steps, logger=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, default_root_dir=folder,
        # The one that watches sees a step's end before it is saved.
        callbacks=[watched, saver],
    )  # fmt: skip
    module = HybridLM(
        {"local": SinkWindow(window=20, sinks=2), "full": Causal()}, "local, full",
        decoder={"vocab_size": 257, "num_layers": 2, "width": 32, "num_heads": 4, "num_kv_heads": 2, "head_width": 8,
                 "ffn_width": 48},
        lr_schedule=Constant(warmup=0),
    )  # fmt: skip
    trainer.fit(module, datamodule=TextData(Poems(), row_length=64), ckpt_path=last, weights_only=True)
    return watched


@contextmanager
def on_disk(rank: int, does: Callable[[int], None]) -> Iterator[None]:
    """What rank 1 meets when it has written its file, and makes sure that it is on the disk."""
    with pytest.MonkeyPatch.context() as patch:
        real = os.fsync

        def fsync(number: int) -> None:
            if threading.current_thread() is not threading.main_thread():  # which writes the data's cache
                does(number)
            real(number)

        if rank == 1:
            patch.setattr(os, "fsync", fsync)
        yield


def slow_and_full(rank: int, folder: Path) -> tuple[list[list[str]], list[dict[str, torch.Tensor]], str]:
    """A disk that is slow until training has gone on, then one that is full from the second save on.

    What was there after each step and the weights, with the one, and what was told, with the other.
    """
    go = folder / "go"

    def waits(number: int) -> None:
        end = time.monotonic() + 30
        while not go.exists() and time.monotonic() < end:
            time.sleep(0.01)

    with on_disk(rank, waits):
        watched = fit(folder / "slow", 4, {4: go.touch})

    saves = []

    def full(number: int) -> None:
        saves.append(number)
        if len(saves) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with on_disk(rank, full):
        try:
            fit(folder / "full", 6, {})
        except ValueError as error:
            return watched.there, watched.weights, str(error)
    return watched.there, watched.weights, ""


def killed(rank: int, folder: Path) -> None:
    saves = []

    def dies(number: int) -> None:
        saves.append(number)
        if len(saves) > 1:
            os.kill(os.getpid(), signal.SIGKILL)

    with on_disk(rank, dies):
        fit(folder, 6, {})


def goes_on(rank: int, folder: Path, last: Path) -> list[str]:
    """What is told meanwhile."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addHandler(handler)
    fit(folder, 4, {}, last)
    return told


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    ranks = run_ranks(slow_and_full, 2, tmp_path, timeout_s=60)
    aside = f".{SECOND}.part"
    for there, _, told in ranks:
        assert there == [[], [], [aside], [aside]], "the folder has no name before all have written"
        assert "trainer.callbacks.Checkpoints.folder:" in told
        assert f"{FOURTH}' cannot be written: rank 1: [Errno 28] No space left on device" in told
    slow = tmp_path / "slow" / "checkpoints"
    assert sorted(path.name for path in slow.iterdir()) == [SECOND, FOURTH]
    for step, name in ((2, SECOND), (4, FOURTH)):
        saved = consolidated(slow / name)
        assert saved["global_step"] == step
        assert saved["optimizer_states"][0]["state"][0]["step"] == step
        # Those of that step, though training went on.
        weights = ranks[0][1][step - 1]
        for name in weights:
            torch.testing.assert_close(saved["state_dict"][name], weights[name], rtol=0, atol=0)
    assert [path.name for path in (tmp_path / "full" / "checkpoints").iterdir()] == [SECOND]


def test_a_rank_killed_as_it_writes_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match="rank"):
        run_ranks(killed, 2, tmp_path)
    checkpoints = tmp_path / "checkpoints"
    aside = f".{FOURTH}.part"
    assert sorted(path.name for path in checkpoints.iterdir()) == [aside, SECOND]
    assert list((checkpoints / aside).iterdir())
    last = newest_checkpoint(tmp_path)
    assert last == checkpoints / SECOND
    told = run_ranks(goes_on, 2, tmp_path, last)
    assert f"{checkpoints / aside} was not finished when a run ended, and is removed" in told[0]
    assert sorted(path.name for path in checkpoints.iterdir()) == [SECOND, FOURTH]
    assert consolidated(checkpoints / FOURTH)["global_step"] == 4
