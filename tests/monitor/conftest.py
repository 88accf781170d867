"""Lets the tests of this folder import the run that they share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from kept_run import Run, measured_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Ten optimizer steps of two micro-batches, under all that counts and measures."""
    return measured_run(tmp_path_factory.mktemp("logs"))
