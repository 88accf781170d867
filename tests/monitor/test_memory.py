"""Memory is what the process takes, and on a GPU what torch has taken."""

import resource
from pathlib import Path

import pytest
import torch
from kept_run import Run, fitted
from small_run import model

from lg.monitor import Memory
from lg.monitor.memory import resident_bytes


def test_resident_memory_is_that_of_this_process(run: Run) -> None:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30
    for told in run.values("memory/resident_GiB").values():
        assert 0.1 * most < told <= 1.01 * most


def test_what_is_allocated_is_told() -> None:
    before = resident_bytes()
    block = bytearray(b"x" * (64 << 20))
    after = resident_bytes()
    assert before is not None and after is not None
    assert 60 << 20 <= after - before <= 140 << 20
    assert block


def test_a_processor_has_no_peak(run: Run) -> None:
    assert run.tags("memory/") == {"memory/resident_GiB"}


@pytest.mark.gpu
def test_a_gpu_tells_its_peak_since_the_first_batch(tmp_path: Path) -> None:
    torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    run = fitted(tmp_path, model(), [Memory()], max_steps=2, accelerator="gpu", devices=1)
    peak, reserved = run.values("memory/peak_GiB")[2], run.values("memory/reserved_GiB")[2]
    assert 0 < peak < 1
    assert peak <= torch.cuda.max_memory_allocated() / 2**30
    assert reserved >= peak
