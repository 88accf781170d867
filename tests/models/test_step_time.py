"""A step's parts are the work over the rates, and grow with what is computed again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lg.attention import Causal, SinkWindow, Window
from lg.attention.cost import AttentionCost
from lg.models.devices import DEVICES, device
from lg.models.footprint import PRECISIONS, Setup
from lg.models.memory import Memory
from lg.models.presets import preset
from lg.models.step_time import StepTime, Travel, Work, attention_seconds, step_time

SETUP = Setup(preset("llama-3-8b"), Memory(), PRECISIONS["bf16-true"], 16384, num_shards=4)
WORK = Work(attention=0.3, exchanged=(), compile=False)
H100 = DEVICES["H100"]


def test_what_was_measured_is_told() -> None:
    # lg/attention/rates: the fastest of full causal attention, and of a window, at 131,072 tokens on an H100.
    for pattern, ms in ((Causal(), 792.077), (Window(4096), 55.314), (SinkWindow(window=1984, sinks=64), 38.683)):
        cost = AttentionCost(pattern, 131072, 32, 8, 128)
        assert attention_seconds(cost, H100, 2) == pytest.approx(ms / 1000)


def test_attention_of_another_shape_and_device() -> None:
    one, double = (AttentionCost(Causal(), 131072, heads, 8, 128) for heads in (32, 64))
    assert attention_seconds(double, H100, 2) == pytest.approx(2 * attention_seconds(one, H100, 2))
    slower = attention_seconds(one, DEVICES["A100"], 2) / attention_seconds(one, H100, 2)
    assert slower == pytest.approx(989 / 312)
    # A window of another size is as efficient, tile by tile, as one that was measured.
    wide, narrow = (AttentionCost(Window(window), 131072, 32, 8, 128) for window in (8192, 512))
    share = attention_seconds(narrow, H100, 2) / attention_seconds(wide, H100, 2)
    assert share == pytest.approx(narrow.executed / wide.executed)


def test_what_is_computed_again_takes_time() -> None:
    times = [step_time(replace(SETUP, memory=Memory(name)), WORK, H100) for name in ("nothing", "halves", "blocks")]
    assert times[0].again == 0 < times[1].again
    assert times[2].again - times[1].again == pytest.approx(0.3 * 4 / 14)
    assert len({time.linear for time in times}) == 1


def test_a_step_of_many_batches_has_one_optimizer_step() -> None:
    one, four = (step_time(replace(SETUP, num_batches=batches), WORK, H100) for batches in (1, 4))
    assert four.optimizer == one.optimizer
    assert four.total - four.optimizer == pytest.approx(4 * (one.total - one.optimizer))


def test_what_does_not_hide_is_waited_for() -> None:
    def waiting(num_tokens: int, memory: Memory) -> float:
        return step_time(replace(SETUP, num_tokens=num_tokens, memory=memory), WORK, H100).waiting

    assert waiting(16384, Memory()) == 0
    assert step_time(replace(SETUP, num_tokens=128), replace(WORK, attention=0.0), H100).waiting > 0
    # The more tokens, the more there is to send, but also to compute.
    assert waiting(65536, Memory("blocks", offload=True)) == 0
    # Before all heads have come nothing computes, however long attention takes.
    exchanged = replace(WORK, exchanged=[Travel(10**9, 1.0, 0.3)])
    assert step_time(SETUP, exchanged, H100).exchange == pytest.approx(3e9 / (0.7 * 450e9))


@pytest.mark.parametrize(("attention", "left"), [(0.3, 0.25), (0.004, 1 - 0.003 / 0.01), (0.0, 1.0)])
def test_by_groups_all_but_the_first_travel_while_others_compute(attention: float, left: float) -> None:
    whole = int(0.01 * 0.7 * 450e9 / 3)
    by_groups, together = Travel(whole, 1 / 4, attention), Travel(whole, 1.0, attention)
    # Not behind other layers' attention.
    work = replace(WORK, exchanged=[by_groups], attention=attention + 1)
    assert step_time(SETUP, work, H100).exchange == pytest.approx(0.01 * left)
    both = replace(work, exchanged=[by_groups, together])
    assert step_time(SETUP, both, H100).exchange == pytest.approx(0.01 * (left + 1))


def test_the_total_is_the_sum() -> None:
    assert StepTime(1, 2, 3, 4, 5, 6, 7).total == 28


def test_an_unknown_device_is_refused() -> None:
    assert device("h200") is DEVICES["H200"]
    with pytest.raises(ValueError, match="device: 'V100' is not known; allowed: H100, H200, A100"):
        device("V100")
