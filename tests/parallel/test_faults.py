"""What goes wrong on one rank of `lg fit` ends all of them, soon, in one message with the last good checkpoint."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lg.parallel.watch import Watch, is_late, is_lost

# A module that the run imports: something happens to a rank before its third step is done.
MODULE = """
import os, signal, time, torch
from lg.models.hybrid import HybridLM

class Faulty(HybridLM):
    def training_step(self, batch, batch_idx):
        rank, fault = os.environ["FAULT"].split(":")
        if self.global_step == 2 and rank in (str(self.global_rank), "all"):
            if fault == "OOM":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            if fault == "hang":
                while True:
                    time.sleep(1)
            if fault == "bug":
                raise KeyError("a bug")
            os.kill(os.getpid(), getattr(signal, fault))
        return super().training_step(batch, batch_idx)
"""
PATTERNS = {"full": "Causal"}
DECODER = {"num_layers": 2, "width": 16, "num_heads": 2, "num_kv_heads": 1}
# The one of step 2 may be half written when it happens.
LAST = r"the last good checkpoint is (\S+step=0000000[12]\.ckpt), and --ckpt_path=\1 goes on from it$"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for number in range(8):
        (tmp_path / "texts" / f"{number}.txt").write_text(f"{number}: the quick brown fox. " * 60)
    (tmp_path / "faulty.py").write_text(MODULE)
    strategy = {"class_path": "lg.parallel.HybridStrategy", "init_args": {"timeout_s": 30}}
    config: dict[str, Any] = {
        "weights_only": True,
        "model": {
            "class_path": "faulty.Faulty",
            "init_args": {"patterns": PATTERNS, "schedule": "2*full", "decoder": DECODER},
        },
        "data": {
            "class_path": "TextData",
            "init_args": {"source": {"class_path": "Folder", "init_args": {"path": "texts"}}, "row_length": 128},
        },
        "trainer": {
            "accelerator": "cpu", "devices": 2, "max_steps": 4, "limit_val_batches": 0, "strategy": strategy,
            "enable_model_summary": False, "enable_progress_bar": False, "log_every_n_steps": 1,
            "callbacks": [{"class_path": "Checkpoints", "init_args": {"every": 1}}, {"class_path": "Finite"}],
            "logger": {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "logs", "name": "run"}},
        },
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def fit(folder: Path, fault: str, *arguments: str) -> tuple[int, list[str], float]:
    """The code, the lines that were told, and the seconds since the last step that went well."""
    command = [sys.executable, "-m", "lg", "fit", "--config", "config.yaml", *arguments]
    environment = {**os.environ, "FAULT": fault, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=180, check=False, env=environment
    )
    lines = (done.stdout + done.stderr).splitlines()
    assert list(folder.rglob("step=*.ckpt")), lines
    return done.returncode, lines, time.time() - max(path.stat().st_mtime for path in folder.rglob("step=*.ckpt"))


def messages(lines: list[str]) -> list[str]:
    return [line for line in lines if re.match(r"lg( fit)?: ", line)]


def ended(folder: Path, fault: str) -> tuple[str, list[str]]:
    """The one message of a run that ends with it, soon; and all lines."""
    code, lines, seconds = fit(folder, fault)
    (told,) = messages(lines)
    assert code == 2 and seconds < 30
    return told, lines


@pytest.mark.slow
def test_a_rank_that_dies(folder: Path) -> None:
    told, lines = ended(folder, "1:SIGKILL")
    assert re.search(rf"rank 1 was ended by SIGKILL; {LAST}", told)
    assert not any("Traceback" in line for line in lines)


@pytest.mark.slow
def test_the_rank_that_dies_has_started_the_others(folder: Path) -> None:
    code, lines, seconds = fit(folder, "0:SIGKILL")
    (told,) = messages(lines)
    assert code == -9 and seconds < 30
    assert re.search(rf"rank 0, which had started rank 1, is gone; {LAST}", told)


@pytest.mark.slow
def test_a_rank_that_hangs(folder: Path) -> None:
    code, lines, seconds = fit(folder, "1:SIGSTOP")
    (told,) = messages(lines)
    assert code == 2 and 25 < seconds < 90
    assert re.search(rf"rank 0: rank 1 on \S+ is not heard of for 27 seconds, .*timeout_s.*; {LAST}", told)
    assert not any("Traceback" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_the_program_of_a_rank_hangs(folder: Path, rank: int) -> None:
    code, lines, seconds = fit(folder, f"{rank}:hang")
    (told,) = messages(lines)
    assert code == (2 if rank else -9) and 25 < seconds < 90
    where = r"line \d+ of \S+faulty\.py, in training_step"
    assert re.search(
        rf"rank {1 - rank}: rank {rank} on \S+ hangs at {where}: the others .* 27 seconds .*; {LAST}", told
    )


@pytest.mark.slow
def test_the_first_rank_hangs(folder: Path) -> None:
    code, lines, seconds = fit(folder, "0:SIGSTOP")
    (told,) = messages(lines)
    assert code == -9 and 25 < seconds < 90
    assert re.search(rf"rank 1: rank 0(?: on \S+)? is not heard of for 27 seconds, .*; {LAST}", told)


@pytest.mark.slow
def test_a_rank_whose_memory_is_full(folder: Path) -> None:
    told, _ = ended(folder, "1:OOM")
    assert re.search(rf"row_length.*Tried to allocate 2.*on rank 1 after step 2;.*init_args\.memory,.*{LAST}", told)


@pytest.mark.slow
def test_all_ranks_whose_memory_is_full_say_so_once(folder: Path) -> None:
    told, _ = ended(folder, "all:OOM")
    assert re.search(rf"row_length.*on rank [01] after step 2;.*init_args\.memory,.*{LAST}", told)


@pytest.mark.slow
def test_a_bug_on_one_rank_ends_all(folder: Path) -> None:
    told, lines = ended(folder, "1:bug")
    assert any("KeyError: 'a bug'" in line for line in lines)
    assert re.search(rf"rank 1 ended with code 1; {LAST}", told)


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on(folder: Path) -> None:
    code, lines, _ = fit(folder, "1:SIGTERM")
    assert code == 143 and messages(lines) == []
    assert sum("SIGTERM: stops when the step is done" in line for line in lines) == 1
    assert [path.name for path in folder.rglob("step=*.ckpt")] == ["step=00000003.ckpt"]
    code, lines, _ = fit(folder, "0:SIGKILL", "--ckpt_path=last")
    assert code == 0 and any("begins training at step 3;" in line for line in lines)
    assert [path.name for path in folder.rglob("step=*.ckpt")] == ["step=00000004.ckpt"]


@pytest.mark.slow
def test_time_that_is_up_saves_on_all_ranks(folder: Path) -> None:
    code, lines, _ = fit(folder, "9:none", "--trainer.max_time=00:00:00:02", "--trainer.max_steps=100000")
    assert code == 0 and messages(lines) == []
    (left,) = folder.rglob("*.ckpt")
    assert (left / "meta.pt").is_file()


def test_the_words_of_gloo_and_of_the_store_are_known() -> None:
    closed = RuntimeError("[/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:3470.")
    late = RuntimeError("[/x/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 15000ms for recv operation")
    assert is_lost(closed) and not is_late(closed)
    assert is_lost(late) and is_late(late)
    assert is_lost(RuntimeError("Application timeout caused pair closure"))
    assert not is_lost(RuntimeError("shapes do not match")) and not is_lost(ValueError(str(closed)))
    wrapped = OSError("a checkpoint cannot be written")
    wrapped.__cause__ = closed
    assert is_lost(wrapped)


def test_a_process_that_ends_by_itself_is_left_alone() -> None:
    told: list[str] = []
    patient = Watch(lambda: ("rank 1 is gone", 60.0), told.append)
    short = Watch(lambda: ("rank 1 is gone", 0.0), told.append)
    for watch in (patient, short):
        watch.start()
    short.join(10)
    assert told == ["rank 1 is gone"]
    patient.stop()
    patient.join(10)
    assert not patient.is_alive() and told == ["rank 1 is gone"]
