"""`memory: auto` in a run: what it takes of the trainer, that ranks agree, and what it says."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import pytest
import torch

from lg.attention import Causal, Documents, PrefixLM, SinkWindow
from lg.data import RandomTokens
from lg.models import auto_memory
from lg.models.devices import DEVICES, FILLED, Device
from lg.models.hybrid import HybridLM
from lg.models.memory import Memory
from lg.models.planned import Planned, Training
from lg.models.running import host_memory, planned_run
from lg.parallel import HybridStrategy
from lg.parallel.share import share
from lg.testing import run_ranks

SHAPE: dict[str, Any] = {"num_layers": 2, "width": 32, "num_heads": 4, "num_kv_heads": 2, "ffn_width": 64}
PATTERNS: dict[str, Any] = {"local": SinkWindow(window=32), "full": Causal()}
LAYERS = [PATTERNS["local"], PATTERNS["full"]]
H100 = DEVICES["H100"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
]


def model(**changes: Any) -> HybridLM:
    arguments = {"patterns": PATTERNS, "schedule": "local, full", "decoder": SHAPE, "memory": "auto"}
    return HybridLM(**{**arguments, **changes})


def trainer(folder: Path, **changes: Any) -> pl.Trainer:
    options: dict[str, Any] = {
        "max_steps": 1, "accelerator": "cpu", "devices": 1, "enable_checkpointing": False, "logger": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder,
    }  # fmt: skip
    return pl.Trainer(**{**options, **changes})


def is_a_gpu(memory: int) -> Callable[[pl.Trainer, Device | None], Device]:
    """Takes the processor for an H100 of so many bytes: there is none to ask."""
    return lambda trainer, unknown: replace(H100, memory=memory)


def holds(memory: Memory, planned: Planned) -> int:
    """Bytes of a device that this way just fits."""
    return int(planned.choice(memory).footprint.peak / FILLED) + 2


class Lines(logging.Handler):
    """What is logged, but for what only a debugger sees."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    caplog.set_level(logging.DEBUG, auto_memory.log.name)
    handler = Lines()
    auto_memory.log.addHandler(handler)
    yield handler.lines
    auto_memory.log.removeHandler(handler)


def test_a_cpu_keeps_everything_and_says_nothing(tmp_path: Path, told: list[str]) -> None:
    module = model()
    trainer(tmp_path).fit(module, datamodule=RandomTokens(256))
    assert module.memory == Memory() and module.config["memory"] == "auto"
    assert not told


def test_without_a_trainer_everything_is_kept() -> None:
    module = model()
    module.configure_model()
    assert module.memory == Memory()
    assert model(memory=None).asked_memory == Memory() == model(memory=Memory()).asked_memory


def test_a_device_of_little_memory(tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = Training(1, 1, 1, "32-true", 3, sharded=False)
    planned = Planned(model().decoder_config, LAYERS, False, run, 2, 512, None, H100)
    monkeypatch.setattr(auto_memory, "own_device", is_a_gpu(holds(Memory("halves"), planned)))
    module = model()
    trainer(tmp_path, accumulate_grad_batches=3).fit(module, datamodule=RandomTokens(512, batch_size=2))
    assert module.memory == Memory("halves")
    (line,) = told
    begin = "model.init_args.memory: auto takes {recompute: halves, offload: false, tile: null}: predicted peak 0.0 of"
    assert line.startswith(begin)


REASONS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "precision": ({}, {"precision": "bf16-mixed"}, "trainer.precision: 'bf16-mixed' cannot be planned here"),
    "strategy": ({}, {"strategy": "ddp"}, "trainer.strategy: DDPStrategy cannot be planned"),
    "pattern": ({"patterns": {**PATTERNS, "local": PrefixLM()}}, {}, "asks for doc.prefix"),
}


@pytest.mark.parametrize("name", REASONS)
def test_where_no_plan_can_be_made_it_says_why(
    name: str, tmp_path: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_model, of_trainer, reason = REASONS[name]
    monkeypatch.setattr(auto_memory, "own_device", is_a_gpu(1))
    runs, module = trainer(tmp_path, **of_trainer), model(**of_model)
    runs.state.fn, runs.training = pl.trainer.states.TrainerFn.FITTING, True
    config = module.decoder_config
    memory = auto_memory.auto_memory(runs, config, module.schedule, module.patterns, compile=False)
    assert memory == Memory()
    (line,) = told
    assert "auto keeps all activations, since no plan can be made: " in line
    assert reason in line


def test_data_that_tell_no_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^data: a data module must tell batch_size, in rows, and row_length"):
        planned_run(trainer(tmp_path), model().decoder_config, LAYERS, False, H100)


def test_the_host_has_memory() -> None:
    assert 2**28 < host_memory() < 2**50


SHARED = Training(2, 2, 1, "bf16-mixed", 1, sharded=True)


def trained(rank: int, memory: int, folder: Path) -> Memory:
    """One step on a rank whose device holds ``memory`` bytes, of the other twice that."""
    torch.set_num_threads(1)
    module = model()
    strategy = HybridStrategy(context_parallel_size=2)
    with patch.object(auto_memory, "own_device", is_a_gpu(memory * (2 - rank))):
        runs = trainer(folder, devices=2, strategy=strategy, precision="bf16-mixed")
        runs.fit(module, datamodule=RandomTokens(1000))
    return module.memory


@pytest.mark.slow
def test_ranks_take_the_same_of_the_least_memory(tmp_path: Path) -> None:
    config = model().decoder_config
    part = share(Documents(1000), LAYERS, config.num_kv_heads, 2)
    assert part.num_tokens == 512
    planned = Planned(config, LAYERS, False, SHARED, 1, 1000, part, H100)
    memory = holds(Memory("halves"), planned)
    assert run_ranks(trained, 2, memory, tmp_path) == [Memory("halves"), Memory("halves")]
