"""What torch compiles is counted."""

from pathlib import Path

from kept_run import fitted
from small_run import model

from lg.monitor import Compilation


def test_nothing_compiles_on_a_cpu(tmp_path: Path) -> None:
    run = fitted(tmp_path, model(), [Compilation()], max_steps=2)
    assert set(run.values("compile/graphs").values()) == {0.0}
