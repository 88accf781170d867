"""Only a checkpoint that is whole is gone on from: every byte of it is held against its checksums."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from lg.cli.last import damage_of, newest_checkpoint


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return saved(tmp_path / "step=1.ckpt", {"global_step": 1, "state_dict": {"weight": torch.ones(1000)}})


def test_a_whole_one_is_not_damaged(whole: Path) -> None:
    assert damage_of(whole) is None


def test_one_bit_of_a_weight(whole: Path) -> None:
    content = whole.read_bytes()
    at = content.index(torch.ones(100).numpy().tobytes()) + 200
    whole.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert "is damaged in" in (damage_of(whole) or "")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_cut(whole: Path, share: float) -> None:
    whole.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    assert damage_of(whole) == "is not whole, or no checkpoint"


@pytest.mark.parametrize("content", [None, [], torch.zeros(3), {"state_dict": {}}, {"global_step": "three"}])
def test_something_else(tmp_path: Path, content: object) -> None:
    assert "at which step" in (damage_of(saved(tmp_path / "x.ckpt", content)) or "")


def test_a_sharded_one(tmp_path: Path) -> None:
    folder = tmp_path / "x.ckpt"
    folder.mkdir()
    saved(folder / "meta.pt", {"global_step": 1})
    assert "has no .metadata" in (damage_of(folder) or "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one process saves alone
        dcp.save({"weight": torch.ones(3)}, checkpoint_id=folder, no_dist=True)
    assert damage_of(folder) is None
    os.truncate(folder / "__0_0.distcp", 10)
    assert "__0_0.distcp is missing or too short" in (damage_of(folder) or "")
    (folder / ".metadata").write_bytes(b"")
    assert "cannot be read" in (damage_of(folder) or "")


def test_the_newest_that_is_whole(whole: Path) -> None:
    newer = whole.with_name("step=2.ckpt")
    newer.write_bytes(whole.read_bytes()[:-30])
    assert newest_checkpoint(whole.parent) == whole
    whole.unlink()
    assert newest_checkpoint(whole.parent) is None
