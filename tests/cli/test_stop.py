"""Ctrl-C reaches every process of a run, its workers too: the step ends, is saved, and the run goes on from it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml


def start(folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "lg", "fit", "--config", "config.yaml", "--ckpt_path", "last"],
            cwd=folder, stdout=log, stderr=log, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip


@pytest.mark.slow
def test_ctrl_c_with_workers(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for n in range(40):
        (tmp_path / "text" / f"{n}.txt").write_text(f"{n} is a number. " * (n + 5))
    config = {
        "weights_only": True,
        "model": {
            "class_path": "HybridLM",
            "init_args": {
                "patterns": {"full": "Causal"},
                "schedule": "2*full",
                "decoder": {"num_layers": 2, "width": 16, "num_heads": 2, "num_kv_heads": 1},
            },
        },
        "data": {
            "class_path": "TextData",
            "init_args": {
                "source": {"class_path": "Folder", "init_args": {"path": "text"}},
                "row_length": 128,
                "num_workers": 2,
            },
        },
        "trainer": {
            "accelerator": "cpu", "max_steps": 100_000, "limit_val_batches": 0, "enable_model_summary": False,
            "enable_progress_bar": False, "callbacks": ["Checkpoints"],
            "logger": {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "logs", "name": "run"}},
        },
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    at = 0
    for _ in range(2):
        run = start(tmp_path)
        give_up = time.monotonic() + 120
        while f"begins training at step {at};" not in (tmp_path / "log").read_text():
            assert run.poll() is None and time.monotonic() < give_up, (tmp_path / "log").read_text()
            time.sleep(0.05)
        time.sleep(1)
        os.killpg(run.pid, signal.SIGINT)
        assert run.wait(60) == 130, (tmp_path / "log").read_text()
        (checkpoint,) = tmp_path.rglob("*.ckpt")
        assert int(checkpoint.stem.split("=")[1]) > at
        at = int(checkpoint.stem.split("=")[1])
