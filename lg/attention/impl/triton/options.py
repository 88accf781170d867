"""Tile sizes, warps and stages of each kernel, by device, type and head width."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Launch(NamedTuple):
    """How one kernel is launched.

    Attributes:
        q, k: tokens in a block of queries and of keys.
        num_warps, num_stages: Triton's.
        tma: 1 if the blocks that a program goes through come by the tensor memory accelerator, where their memory can
            be described to it; it takes fewer registers (Hopper and later).
    """

    q: int
    k: int
    num_warps: int
    num_stages: int
    tma: int = 0


class Options(NamedTuple):
    """The three kernels' launches: the forward pass, and the gradients of queries and of keys and values."""

    forward: Launch
    query: Launch
    key: Launch

    def at(self, q: int, k: int) -> Options:
        """The same at one tile size."""
        return Options(*(launch._replace(q=q, k=k) for launch in self))


_ByWidth = dict[int, Options]

# In float32 products are exact to the last bit, on the general cores, and the tiles are held in registers: larger ones
# spill.
_FLOAT32: _ByWidth = {
    64: Options(Launch(64, 32, 8, 2), Launch(64, 32, 8, 2), Launch(32, 32, 8, 2)),
    128: Options(Launch(32, 16, 8, 2), Launch(64, 32, 8, 2), Launch(32, 32, 8, 2)),
    256: Options(Launch(32, 16, 8, 2), Launch(32, 16, 8, 2), Launch(16, 32, 8, 1)),
}
# In bfloat16 and float16, the largest tiles that fit: Ampere's 163 KiB of shared memory;
_AMPERE: _ByWidth = {
    64: Options(Launch(128, 64, 4, 3), Launch(128, 64, 8, 3), Launch(32, 128, 8, 2)),
    128: Options(Launch(128, 64, 8, 3), Launch(64, 64, 8, 2), Launch(64, 64, 8, 2)),
    256: Options(Launch(64, 64, 8, 2), Launch(64, 32, 8, 2), Launch(32, 32, 8, 2)),
}
# the 99 KiB of its smaller devices, and of those that came after them;
_SMALL: _ByWidth = {
    64: Options(Launch(128, 64, 4, 3), Launch(128, 64, 8, 3), Launch(32, 128, 8, 2)),
    128: Options(Launch(128, 64, 8, 2), Launch(64, 64, 8, 2), Launch(64, 64, 8, 2)),
    256: Options(Launch(64, 32, 8, 2), Launch(32, 32, 8, 2), Launch(32, 32, 8, 2)),
}
# and the 227 KiB of Hopper and of large Blackwell devices, which have a tensor memory accelerator. At widths 64 and 128
# Hopper's were the fastest, or nearly, on an H100 (benchmarks/results/launches.json).
_HOPPER: _ByWidth = {
    64: Options(Launch(128, 64, 4, 3, 1), Launch(128, 64, 4, 3, 1), Launch(64, 64, 4, 3, 1)),
    128: Options(Launch(64, 64, 4, 3, 1), Launch(64, 64, 4, 2, 1), Launch(64, 64, 4, 2, 1)),
    256: Options(Launch(128, 32, 8, 2, 1), Launch(64, 32, 8, 2, 1), Launch(32, 64, 8, 2, 1)),
}
_BLACKWELL: _ByWidth = {
    **_HOPPER,
    64: Options(Launch(128, 64, 8, 3, 1), Launch(128, 64, 8, 3, 1), Launch(64, 128, 8, 2, 1)),
}
_OF_DEVICE = {(8, 0): _AMPERE, (8, 7): _AMPERE, (9, 0): _HOPPER, (10, 0): _BLACKWELL, (10, 3): _BLACKWELL}
# To Triton's interpreter a large tile is as quick as a small one.
_INTERPRETED = Options(Launch(64, 64, 4, 1), Launch(64, 64, 4, 1), Launch(64, 64, 4, 1))


def options(dtype: torch.dtype, width: int, capability: tuple[int, int] | None) -> Options:
    """What the kernels are launched with.

    Args:
        dtype: of queries, keys and values.
        width: of a head.
        capability: the device's compute capability; None of Triton's interpreter.
    """
    if capability is None:
        return _INTERPRETED
    of_width = _FLOAT32 if dtype == torch.float32 else _OF_DEVICE.get(capability, _SMALL)
    return next(launches for most, launches in of_width.items() if width <= most)
