"""A run's predictions are those of the plan, logged beside what is measured."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from kept_run import fitted
from small_run import model

from lg.models.devices import DEVICES
from lg.models.memory import Memory
from lg.models.planned import Planned, Training, plannable
from lg.monitor import Predicted, predicted


def test_a_processor_is_not_predicted(tmp_path: Path) -> None:
    run = fitted(tmp_path, model(), [Predicted()], max_steps=2)
    assert not [tag for tag in run.tags("") if "predicted" in tag]


def test_it_is_what_the_plan_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on = replace(DEVICES["H200"], memory=2**30)
    monkeypatch.setattr(predicted, "own_device", lambda trainer, unknown: on)
    module = model(memory=Memory("blocks"))
    run = fitted(tmp_path, module, [Predicted()], max_steps=2, accumulate_grad_batches=2)
    layers = plannable(module.schedule, module.patterns)
    training = Training(1, 1, 1, "32-true", 2, sharded=False)
    choice = Planned(module.decoder_config, layers, False, training, 2, 256, None, on).choice(Memory("blocks"))
    assert run.values("speed/predicted_step_s")[2] == pytest.approx(choice.time.total)
    assert run.values("memory/predicted_peak_GiB")[2] == pytest.approx(choice.footprint.peak / 2**30)


def test_what_cannot_be_planned_stays_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicted, "own_device", lambda trainer, unknown: DEVICES["H100"])
    run = fitted(tmp_path, model(), [Predicted()], max_steps=1, precision="bf16-mixed")
    assert not [tag for tag in run.tags("") if "predicted" in tag]
