"""The yard-stick is scored on the rows that validation reads, and printed beside the model's own figure."""

from pathlib import Path

import pytest
from kept_run import fitted
from small_run import data, model

from lg.data import CountModel
from lg.monitor import CountBaseline


def test_it_is_scored_on_the_rows_that_validation_reads_and_printed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = data(batch_size=2)
    with caplog.at_level("INFO"):
        run = fitted(
            tmp_path, model(), [CountBaseline()], data=rows, max_steps=1, val_check_interval=2, limit_val_batches=1
        )
    want = CountModel(2).fit(rows.train_rows).bits_per_byte(rows.val_rows, 2)
    assert run.values("val/count_model_bits_per_byte")[1] == pytest.approx(want, rel=1e-5)
    told = next(message for message in caplog.messages if message.startswith("held-out bits per byte"))
    own, counted = (float(word) for word in told.replace(":", " ").split() if word[0].isdigit() and "." in word)
    assert 5.0 < own < 9.0
    assert counted == pytest.approx(want, abs=1e-3)
