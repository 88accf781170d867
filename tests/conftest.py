"""What every test shares: one thread, a cache of its own, and where there is no GPU no GPU tests, but its kernels."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

# Triton's interpreter runs kernels on a CPU, if it is asked for before anything imports Triton; Lightning does.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Lightning's log keeps the stderr that it finds when first imported: not that of a single test.
import lightning.pytorch  # noqa: F401


def pytest_configure(config: pytest.Config) -> None:
    # Tensors are small here: threads cost more than they bring.
    torch.set_num_threads(1)
    # A shell starts what it runs in the background deaf to Ctrl-C, and its children inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tokens are kept for this session of tests, its child processes included, and not in the user's own cache."""
    os.environ["LG_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return Path(__file__).parents[1]
