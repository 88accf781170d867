"""Every layer's pattern is drawn."""

from pathlib import Path

import pytest
from kept_run import fitted
from small_run import model

from lg.monitor import PatternSheet


def test_every_layer_is_drawn(tmp_path: Path) -> None:
    run = fitted(tmp_path, model(), [PatternSheet()], max_steps=1)
    (image,) = run.board.Images("model/patterns")
    assert image.width > 2 * 128
    assert len(image.encoded_image_string) > 1000


def test_a_length_is_at_least_one() -> None:
    with pytest.raises(ValueError, match=r"PatternSheet\.length: 0"):
        PatternSheet(length=0)
