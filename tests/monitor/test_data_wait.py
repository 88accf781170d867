"""Time spent waiting for data is told as it is."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kept_run import Run, TimedWait, fitted
from small_run import Poems, data, model
from torch.utils.data import DataLoader

from lg.data import TextData, collate
from lg.monitor import DataWait


class Slow(TextData):
    """Each batch takes a twentieth of a second."""

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        batches = loader.feed.batches

        def slow(state: Any) -> Iterator[Any]:
            for batch in batches(state):
                time.sleep(0.05)
                yield batch

        loader.feed.batches = slow
        return loader


def test_waiting_is_what_the_loader_takes(tmp_path: Path) -> None:
    slow = Slow(source=Poems(), row_length=256)
    run = fitted(tmp_path, model(), [DataWait(every=4)], max_steps=8, data=slow, log_every_n_steps=4)
    wait_ms, percent = run.values("data/wait_ms"), run.values("data/wait_percent")
    for step in (4, 8):
        # Two batches a step.
        assert 100 <= wait_ms[step] < 500
        assert 0 < percent[step] < 100
    assert sum(wait_ms.values()) > 100


def test_the_share_is_that_of_the_time_measured(run: Run) -> None:
    wait_ms, percent = run.values("data/wait_ms"), run.values("data/wait_percent")
    callback = run.callbacks["TimedWait"]
    assert isinstance(callback, TimedWait)
    assert list(callback.seconds) == [2, 4, 8, 10]
    for step, step_s in callback.seconds.items():
        assert percent[step] == pytest.approx(100 * wait_ms[step] / 1000 / step_s, rel=1e-5)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_it_stays_away_from_another_loader(tmp_path: Path) -> None:
    rows = data()
    rows.setup()
    loader = DataLoader([rows.train_rows[n] for n in range(4)], collate_fn=collate)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="DataWait stays away: DataLoader does not tell"):
        run = fitted(tmp_path, model(), [DataWait()], max_steps=2, data=loader)
    assert not run.tags("data/")
