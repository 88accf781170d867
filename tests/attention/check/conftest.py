"""What the tests of checks share: a cache folder of their own, and problems that a CPU solves in moments."""

import sys
from pathlib import Path

import pytest

from lg.attention.check import case

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case, "_LENGTH", 333)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("LG_CACHE", str(folder))
    return folder
