"""Two processes that share the held-out rows tell what one tells that has them all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_two_ranks_tell_what_one_tells(tmp_path: Path) -> None:
    script = Path(__file__).with_name("two_ranks_look.py")
    told = []
    for ranks in (1, 2):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        done = subprocess.run(
            [*launch, script, tmp_path, str(ranks)],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        told.append(json.loads((tmp_path / f"{ranks}.json").read_text(encoding="utf-8")))
    assert told[0] == pytest.approx(told[1], rel=1e-5, abs=1e-6)
    assert len([name for name in told[0] if name.startswith("loss_by_position")]) == 5
