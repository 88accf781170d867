"""`lg fit` with the strategy in its YAML: by Lightning's own launcher and by torchrun; resumed on other sizes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

CONFIG = {
    "data": {
        "init_args": {"source": {"class_path": "Folder", "init_args": {"path": "texts"}}, "row_length": 512},
    },
    "trainer": {
        "accelerator": "cpu",
        "devices": 2,
        "max_steps": 2,
        "val_check_interval": 1,
        "limit_val_batches": 1,
        "log_every_n_steps": 1,
        "strategy": {"class_path": "lg.parallel.HybridStrategy", "init_args": {"context_parallel_size": 2}},
    },
}


@pytest.mark.slow
def test_lg_fit_trains_and_goes_on_with_other_sizes(root: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(8):
        (texts / f"{number}.txt").write_text(f"{number}: the quick brown fox. " * 60)
    config = {"base": str(root / "configs" / "hybrid.yaml"), **CONFIG}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(config))

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    fit = ["lg", "fit", "--config", "two.yaml"]
    assert "what to type next:" in run(*fit)
    folder = tmp_path / "logs" / "hybrid" / "version_0" / "checkpoints"
    assert sorted(path.name for path in (folder / "step=00000002.ckpt").iterdir()) == [
        ".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt",
    ]  # fmt: skip

    more = ["--ckpt_path=last", "--trainer.max_steps=3", "--trainer.strategy.init_args.context_parallel_size=1"]
    told = run("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", *fit, *more)
    assert "Restored all states from the checkpoint" in told
    assert [path.name for path in folder.iterdir()] == ["step=00000003.ckpt"]
