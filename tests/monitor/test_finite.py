"""A loss or a gradient that is no number stops training, and no checkpoint holds what it has made of the weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import SHAPE, data, trainer
from torch import Tensor

from lg.attention import Causal
from lg.models.hybrid import HybridLM
from lg.monitor import Checkpoints, Finite
from lg.monitor.finite import NotFinite
from lg.parallel import HybridStrategy
from lg.testing import run_ranks

DEVICES = ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)]


class Ruined(HybridLM):
    """Its loss in step 4 is what it should not be, on one rank."""

    factor = math.nan
    rank = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.global_step == 3 and self.global_rank == self.rank:
            self._step_loss *= self.factor
            return loss * self.factor
        return loss


class SteepOnly(HybridLM):
    """Its loss in step 4 is a number, and the gradient is infinite."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.global_step == 3:
            weight = next(self.parameters())
            return loss + (weight - weight.detach()).abs().sqrt().sum()
        return loss


def built(kind: type[HybridLM]) -> HybridLM:
    return kind({"full": Causal()}, "2*full", decoder=SHAPE)


def fit(kind: type[HybridLM], folder: Path, **changes: Any) -> None:
    options = {"max_steps": 8, "enable_checkpointing": True, "val_check_interval": 100, **changes}
    checkpoints = Checkpoints(every=2, keep=9, folder=str(folder / "kept"))
    trainer(folder, [Finite(), checkpoints], **options).fit(built(kind), data())


def saved(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "kept").iterdir())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_no_number(factor: float, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ruined, "factor", factor)
    with pytest.raises(NotFinite, match=rf"the loss of step 4 is {factor}, so training stops before it is saved; a lo"):
        fit(Ruined, tmp_path, accelerator=device)
    assert saved(tmp_path) == ["step=00000002.ckpt"]


@pytest.mark.parametrize("device", DEVICES)
def test_a_gradient_that_is_no_number(device: str, tmp_path: Path) -> None:
    with pytest.raises(NotFinite, match=r"the gradient's norm of step 4 is (nan|inf)"):
        fit(SteepOnly, tmp_path, accelerator=device)
    assert saved(tmp_path) == ["step=00000002.ckpt"]


def test_the_last_step_is_looked_at_and_so_are_micro_batches(tmp_path: Path) -> None:
    with pytest.raises(NotFinite, match="the loss of step 4 is nan"):
        fit(Ruined, tmp_path, max_steps=4, accumulate_grad_batches=2)
    assert saved(tmp_path) == ["step=00000002.ckpt"]


def test_a_sound_run_is_left_alone(tmp_path: Path) -> None:
    fit(HybridLM, tmp_path, max_steps=3)
    assert saved(tmp_path) == ["step=00000002.ckpt", "step=00000003.ckpt"]


def ruined_on_rank_1(rank: int, folder: Path) -> tuple[str, list[str]]:
    Ruined.rank = 1
    try:
        fit(Ruined, folder, devices=2, strategy=HybridStrategy(), use_distributed_sampler=False)
    except NotFinite as error:
        torch.distributed.barrier()
        return str(error), saved(folder)
    raise AssertionError("nobody has noticed")


def test_the_rank_whose_loss_it_was_is_named(tmp_path: Path) -> None:
    for told, names in run_ranks(ruined_on_rank_1, 2, tmp_path):
        assert "the loss of step 4 is nan, so training stops before it is saved; it comes from rank 1;" in told
        assert names == ["step=00000002.ckpt"]
