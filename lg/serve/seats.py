"""Threads for what takes a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

# Bytes or characters; a few hundredths of a second.
_SMALL = 2**15


class Seats:
    """Two threads: what is small does not queue behind what is large."""

    def __init__(self) -> None:
        self._small, self._large = (ThreadPoolExecutor(1, f"lg-{size}") for size in ("small", "large"))

    async def run(self, size: int, work: Callable[[], T]) -> T:
        """What some work gives; if the caller is cancelled before its turn, it is not done.

        Args:
            size: how many bytes or characters are worked on.
            work: blocks.
        """
        seat = self._small if size <= _SMALL else self._large
        return await asyncio.get_running_loop().run_in_executor(seat, work)
