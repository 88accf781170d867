"""Padding is told as the share of the rows that it is."""

from pathlib import Path

import pytest
from kept_run import Run, fitted
from small_run import model

from lg.monitor import Checkpoints, Padding


def shares(run: Run, steps: list[int]) -> tuple[float, float]:
    """Per cent of the tokens of some steps that are padding, and that align, by looking at the rows."""
    padding = align = total = 0
    for batch in (batch for step in steps for batch in run.batches[step]):
        row_length = batch["tokens"].shape[1]
        ends = [*batch["document_starts"][1:], batch["tokens"].numel()]
        for begin, end, pad in zip(batch["document_starts"], ends, batch["document_padding"], strict=True):
            padding += pad * (end - begin)
            # Padding that goes to the end of a row is not there to align what follows.
            align += pad * (end - begin) * (end % row_length != 0)
        total += batch["tokens"].numel()
    return 100 * padding / total, 100 * align / total


def test_both_shares_are_those_of_the_rows(run: Run) -> None:
    padding, align = run.values("data/padding_percent"), run.values("data/align_percent")
    for step in (2, 4, 6, 8, 10):
        want = shares(run, [step - 1, step])
        assert (padding[step], align[step]) == pytest.approx(want, rel=1e-5)
        assert want[0] > want[1]
    assert max(align.values()) > 0


def test_a_resumed_run_counts_the_steps_before_it(tmp_path: Path) -> None:
    save = Checkpoints(every=3, folder=str(tmp_path))
    first = fitted(tmp_path / "first", model(), [Padding(every=5), save], max_steps=3, enable_checkpointing=True)
    callbacks = [Padding(every=5), Checkpoints(folder=str(tmp_path))]
    again = fitted(
        tmp_path / "again", model(), callbacks, max_steps=5, ckpt_path=save.last_model_path, enable_checkpointing=True
    )
    again.batches.update(first.batches)
    assert again.values("data/padding_percent")[5] == pytest.approx(shares(again, [1, 2, 3, 4, 5])[0], rel=1e-5)


def test_a_figure_takes_at_least_one_step() -> None:
    with pytest.raises(ValueError, match=r"trainer\.callbacks\.Padding\.every: -1 is not allowed"):
        Padding(every=-1)
