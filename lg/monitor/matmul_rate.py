"""What a device can do: the rate of a large matrix product, measured here and now, which utilisation is a part of."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

# Products of the best sizes for a GPU take milliseconds; a processor gets smaller ones.
_SMALLEST, _LARGEST = 1024, 8192
_ROUNDS = 5
_ROUND_S = 0.1


@dataclass(frozen=True)
class MatmulRate:
    """The rate of a product of two square matrices.

    Attributes:
        tflop_per_s: 10^12 floating-point operations a second; a multiplication and an addition are two.
        size: rows and columns of the matrices.
        dtype: of the matrices and the product.
    """

    tflop_per_s: float
    size: int
    dtype: torch.dtype

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"{self.tflop_per_s:.3g} TFLOP/s ({name}, {self.size} x {self.size} matrices)"


def measured(device: torch.device, dtype: torch.dtype) -> MatmulRate:
    """Measures for about half a second, and takes the best of five rounds: a ceiling, not what training could reach.

    The size is 8192 on a GPU; where that takes long, as on a processor, the largest power of two of which a round holds
    eight products. Values are drawn at random, since a GPU computes zeros faster, from a generator of their own.
    """
    generator = torch.Generator(device).manual_seed(0)
    size = _SMALLEST
    while True:
        one, other = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
        product = one @ other
        seconds = _time(one, other, product, 1)
        if size == _LARGEST or 8 * 8 * seconds > _ROUND_S:
            break
        size *= 2
    times = max(int(_ROUND_S / seconds), 1)
    best = min(_time(one, other, product, times) for _ in range(_ROUNDS)) / times
    return MatmulRate(2 * size**3 / best / 1e12, size, dtype)


@torch.no_grad()
def _time(one: torch.Tensor, other: torch.Tensor, product: torch.Tensor, times: int) -> float:
    """Seconds that a product takes so many times over."""
    _finish(one.device)
    since = time.perf_counter()
    for _ in range(times):
        torch.mm(one, other, out=product)
    _finish(one.device)
    return time.perf_counter() - since


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
