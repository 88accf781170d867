"""The summary tells what the run's logs tell, however the run ended."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from PIL import Image
from small_run import SHAPE, data, logged, model, trainer

from lg.monitor import LossByPosition, Needle, PatternSheet, Summary, Throughput
from lg.monitor.logged import Logged
from lg.monitor.summary import loss_curve


def page(run: pl.Trainer) -> str:
    return Path(str(run.log_dir), "summary.md").read_text()


def told(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\| (.+?) \| (.+) \|$", text, re.MULTILINE))


def test_a_finished_run_is_summarised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    needle = Needle(lengths=(128,), depths=(0.0, 1.0))
    run = trainer(tmp_path, [PatternSheet(), Throughput(), LossByPosition(), needle, Summary()])
    module = model()
    with caplog.at_level("INFO"):
        run.fit(module, data())
    text, events = page(run), logged(run)
    rows = told(text)
    assert rows["run"].startswith("finished after 4 steps")
    assert rows["schedule"] == "local, full"
    assert rows["step"] == "1 rows of 256 tokens, 1 micro-batches, 1 data ranks: 256 tokens"
    assert rows["parameters"] == f"{sum(p.numel() for p in module.parameters()):,}"
    losses = [event.value for event in events.Scalars("val/loss_nats")]
    after = 2 * (1 + losses.index(min(losses)))
    assert rows["held-out loss"] == f"{losses[-1]:.4f} nats at the end; least {min(losses):.4f} after {after} steps"
    assert rows["needle, gain"] == f"{events.Scalars('needle/gain_nats')[-1].value:.4f} nats a token"
    assert rows["tokens"] == f"{events.Scalars('data/tokens')[-1].value:,.0f}"
    assert len(text.splitlines()) < 60
    shown = re.findall(r"!\[.+\]\((.+)\)", text)
    assert len(shown) == 5
    for name in shown:
        with Image.open(Path(str(run.log_dir), name)) as image:
            assert image.format == "PNG"
    assert f"summary: {Path(str(run.log_dir), 'summary.md')}" in caplog.messages
    assert not list(Path(str(run.log_dir)).glob("*.part"))


class Stop(pl.Callback):
    """Ends the run at its third step."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            raise self.error


@pytest.mark.parametrize(
    ("error", "raised"), [(KeyboardInterrupt(), SystemExit), (SystemExit(143), SystemExit), (OSError(), OSError)]
)
def test_a_run_that_is_cut_short_is_summarised_too(
    error: BaseException, raised: type[BaseException], tmp_path: Path
) -> None:
    run = trainer(tmp_path, [Stop(error), Summary()])
    with pytest.raises(raised):
        run.fit(model(), data())
    rows = told(page(run))
    assert rows["run"].startswith(f"cut short ({type(error).__name__}) after 3 steps")
    assert "held-out loss" in rows


def test_a_run_that_went_on_in_its_folder_is_summarised_as_a_whole(tmp_path: Path) -> None:
    run = trainer(tmp_path, [Summary()])
    run.fit(model(), data())
    run.save_checkpoint(tmp_path / "last.ckpt")
    logger = pl.loggers.TensorBoardLogger(str(tmp_path), version=0, default_hp_metric=False, purge_step=4)
    again = trainer(tmp_path, [Summary()], max_steps=6, logger=logger)
    again.fit(model(), data(), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True)
    steps = [step for step, _ in Logged(Path(str(again.log_dir))).points("val/loss_nats")]
    assert steps[:2] == [1, 3] and len(steps) == 3
    assert told(page(again))["run"].startswith("finished after 6 steps")


def test_a_summary_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    run = trainer(tmp_path, [Summary()])
    Path(str(run.log_dir), "summary.md", "in the way").mkdir(parents=True)
    with pytest.warns(UserWarning, match="cannot be written"):
        run.fit(model(), data())
    assert run.state.finished
    assert not list(Path(str(run.log_dir)).glob("*.part"))


def test_without_a_board_there_is_nothing_to_tell(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Summary stays away"):
        trainer(tmp_path, [Summary()], logger=False, max_steps=1).fit(model(), data())


def test_a_run_that_never_trained_leaves_no_summary(tmp_path: Path) -> None:
    run = trainer(tmp_path, [Summary()])
    with pytest.raises(ValueError, match="vocab_size"):
        run.fit(model(decoder={**SHAPE, "vocab_size": 100}), data())
    assert not list(tmp_path.rglob("summary.md"))


def test_a_long_curve_is_thinned_out_and_an_empty_one_left_out() -> None:
    assert loss_curve([], []) is None
    points = [(step, 3.0 - step / 1e5) for step in range(100_000)]
    curve = loss_curve(points, points[::1000])
    assert curve is not None and curve.size == (336, 215)
