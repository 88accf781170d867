"""Two processes: what each trains on is counted once, whether they share the data or read the same."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What both ranks of `two_ranks` tell."""
    folder = tmp_path_factory.mktemp("ranks")
    script = Path(__file__).with_name("two_ranks.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, script, folder], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


@pytest.mark.slow
def test_ranks_that_share_the_data_are_added_up(ranks: list[dict[str, Any]]) -> None:
    one, other = (rank["DDPStrategy"] for rank in ranks)
    assert one["first"] != other["first"]
    num_text = [one["num_text"][step] + other["num_text"][step] for step in ("1", "2", "3")]
    assert one["logged"]["data/tokens"] == sum(num_text)
    measured = one["logged"]["speed/tokens_per_s"] * one["logged"]["speed/step_s"] * 2
    assert measured == pytest.approx(num_text[1] + num_text[2], rel=1e-5)
    padding = 1 - sum(num_text) / (one["num_tokens"] + other["num_tokens"])
    assert one["logged"]["data/padding_percent"] == pytest.approx(100 * padding, rel=1e-5)


@pytest.mark.slow
def test_ranks_that_read_the_same_are_counted_once(ranks: list[dict[str, Any]]) -> None:
    one, other = (rank["OneShard"] for rank in ranks)
    assert one["first"] == other["first"]
    assert one["num_text"] == other["num_text"]
    assert one["logged"]["data/tokens"] == sum(one["num_text"].values())
    padding = 1 - sum(one["num_text"].values()) / one["num_tokens"]
    assert one["logged"]["data/padding_percent"] == pytest.approx(100 * padding, rel=1e-5)


@pytest.mark.slow
def test_work_is_that_of_one_device(ranks: list[dict[str, Any]]) -> None:
    # Both ranks did what the one-rank run of the same batches does; where they share a batch, each did half of it.
    done = {}
    for kind in ("DDPStrategy", "OneShard"):
        one, other = (rank[kind] for rank in ranks)
        seconds = (one["seconds"] + other["seconds"]) / 2
        num_text = sum(rank["num_text"][step] for rank in (one, other) for step in ("2", "3"))
        # Work goes with the text, but for attention, which is little here.
        done[kind] = one["logged"]["work/visible_TFLOP_per_s"] * 1e12 * seconds / num_text
    assert done["DDPStrategy"] == pytest.approx(2 * done["OneShard"], rel=0.3)


@pytest.mark.slow
def test_gradient_norms_are_those_of_all_ranks(ranks: list[dict[str, Any]]) -> None:
    for kind in ("DDPStrategy", "OneShard"):
        logged = ranks[0][kind]["logged"]
        parts = [norm for tag, norm in logged.items() if tag.startswith("grad_norm/")]
        assert math.hypot(*parts) == pytest.approx(logged["train/grad_norm"], rel=1e-5)
    for rank in ranks:
        assert rank["sharded"] == pytest.approx(rank["whole"], rel=1e-5)
