"""Tokens are counted once, padding never, and a resumed training goes on counting."""

from pathlib import Path

import pytest
from kept_run import Run, fitted
from small_run import model

from lg.monitor import Checkpoints, Throughput


def test_the_total_is_the_text_of_all_batches(run: Run) -> None:
    totals = run.values("data/tokens")
    assert list(totals) == list(range(1, 11))
    for step, total in totals.items():
        assert total == run.num_text(range(1, step + 1))
    # Some of the rows is padding, so counting it would show.
    assert totals[10] < sum(batch["tokens"].numel() for batches in run.batches.values() for batch in batches)


def test_speed_is_the_text_of_the_steps_measured_over_their_time(run: Run) -> None:
    tokens_per_s, step_s = run.values("speed/tokens_per_s"), run.values("speed/step_s")
    # The first step begins the first measurement; validation after the fifth step drops one, and the sixth begins anew.
    for step, measured in {2: [2], 4: [3, 4], 8: [7, 8], 10: [9, 10]}.items():
        assert tokens_per_s[step] * step_s[step] * len(measured) == pytest.approx(run.num_text(measured), rel=1e-5)
    assert tokens_per_s[6] == tokens_per_s[4]


def test_a_measurement_takes_as_many_steps_as_lie_between_two_lines_of_the_log(tmp_path: Path) -> None:
    run = fitted(tmp_path, model(), [Throughput()], max_steps=6, log_every_n_steps=3)
    tokens_per_s, step_s = run.values("speed/tokens_per_s"), run.values("speed/step_s")
    assert list(tokens_per_s) == [3, 6]
    for step, measured in {3: [2, 3], 6: [4, 5, 6]}.items():
        assert tokens_per_s[step] * step_s[step] * len(measured) == pytest.approx(run.num_text(measured), rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_resumed_training_goes_on_counting(accumulate: int, tmp_path: Path) -> None:
    arguments = {"accumulate_grad_batches": accumulate, "enable_checkpointing": True}
    save = Checkpoints(every=3, folder=str(tmp_path))
    first = fitted(tmp_path / "first", model(), [Throughput(), save], max_steps=3, **arguments)
    callbacks = [Throughput(), Checkpoints(folder=str(tmp_path))]
    again = fitted(tmp_path / "again", model(), callbacks, max_steps=5, ckpt_path=save.last_model_path, **arguments)
    assert again.values("data/tokens")[5] == first.num_text([1, 2, 3]) + again.num_text([4, 5])


def test_a_measurement_takes_at_least_one_step() -> None:
    with pytest.raises(ValueError, match=r"trainer\.callbacks\.Throughput\.every: 0 is not allowed"):
        Throughput(every=0)
