"""How keys and values lie in pages: as they are, or in fewer bits.

>>> import torch
>>> Plain(torch.bfloat16).num_bytes(128), Int8().num_bytes(128), Int4().num_bytes(128)
(256, 132, 68)

Shapes: C layers, U pages of one head, P tokens of a page (64), D head width, n tokens or pages at hand.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lg.inference.lifetime import PAGE


class Format(ABC):
    """What one token's key, or value, of one head is kept as."""

    @abstractmethod
    def num_bytes(self, width: int) -> int:
        """Bytes of one vector of ``width`` features."""

    @abstractmethod
    def empty(self, layers: int, pages: int, width: int, device: torch.device) -> tuple[Tensor, ...]:
        """Room for vectors, each tensor [C, U, P, ...]."""

    @abstractmethod
    def write(self, room: tuple[Tensor, ...], layer: int, page: Tensor, place: Tensor, x: Tensor) -> None:
        """Keeps vectors ``x`` [n, D], each in its page and at its place in it, both int64 [n]."""

    @abstractmethod
    def read(self, room: tuple[Tensor, ...], layer: int, page: Tensor, dtype: torch.dtype) -> Tensor:
        """The vectors of whole pages, int64 [n]: [n, P, D]."""


@dataclass(frozen=True)
class Plain(Format):
    """Vectors as they are.

    Attributes:
        dtype: float32, bfloat16 or float16.
    """

    dtype: torch.dtype

    def num_bytes(self, width: int) -> int:
        return width * self.dtype.itemsize

    def empty(self, layers: int, pages: int, width: int, device: torch.device) -> tuple[Tensor, ...]:
        return (torch.zeros(layers, pages, PAGE, width, dtype=self.dtype, device=device),)

    def write(self, room: tuple[Tensor, ...], layer: int, page: Tensor, place: Tensor, x: Tensor) -> None:
        room[0][layer, page, place] = x.to(self.dtype)

    def read(self, room: tuple[Tensor, ...], layer: int, page: Tensor, dtype: torch.dtype) -> Tensor:
        return room[0][layer, page].to(dtype)


class Codes(Format):
    """Vectors as whole numbers of few bits, each vector with a step and a least of its own, asymmetric: KV8 and KV4 of
    QServe (Lin et al. 2024, arXiv 2405.04532) and LServe (Yang et al. 2025, arXiv 2502.14866, section 3).

    A feature is ``code * step + least``, where ``least`` is the vector's least feature and ``step`` its range over the
    greatest code. Both are kept in float16, and codes are chosen for them as they are kept.

    Attributes:
        bits: of a code.
    """

    bits: int

    def num_bytes(self, width: int) -> int:
        return width * self.bits // 8 + 2 * torch.float16.itemsize

    def empty(self, layers: int, pages: int, width: int, device: torch.device) -> tuple[Tensor, ...]:
        if width * self.bits % 8:
            raise ValueError(f"{self} is not allowed for head width {width}; it must be even")
        codes = torch.zeros(layers, pages, PAGE, width * self.bits // 8, dtype=torch.uint8, device=device)
        return codes, torch.zeros(layers, pages, PAGE, 2, dtype=torch.float16, device=device)

    def write(self, room: tuple[Tensor, ...], layer: int, page: Tensor, place: Tensor, x: Tensor) -> None:
        x = x.float()
        kept_least = x.amin(-1, keepdim=True).half()
        least = kept_least.float()
        kept_step = ((x.amax(-1, keepdim=True) - least).clamp(min=0) / self._levels).half()
        step = kept_step.float()
        # The kernels round so, to the last bit; a vector of equal features has no step.
        codes = torch.where(step > 0, ((x - least) / step.where(step > 0, 1.0) + 0.5).floor(), 0.0)
        room[0][layer, page, place] = self._packed(codes.clamp(0, self._levels).to(torch.uint8))
        room[1][layer, page, place] = torch.cat((kept_step, kept_least), -1)

    def read(self, room: tuple[Tensor, ...], layer: int, page: Tensor, dtype: torch.dtype) -> Tensor:
        step, least = room[1][layer, page].float().chunk(2, -1)
        return (self._unpacked(room[0][layer, page]) * step + least).to(dtype)

    @property
    def _levels(self) -> float:
        return float(2**self.bits - 1)

    def _packed(self, codes: Tensor) -> Tensor:
        return codes

    def _unpacked(self, room: Tensor) -> Tensor:
        return room


@dataclass(frozen=True)
class Int8(Codes):
    """KV8: a byte a feature."""

    bits = 8


@dataclass(frozen=True)
class Int4(Codes):
    """KV4: two features a byte, of the first half of the vector in the lower bits and of the second in the upper."""

    bits = 4

    def _packed(self, codes: Tensor) -> Tensor:
        low, high = codes.chunk(2, -1)
        return low | (high << 4)

    def _unpacked(self, room: Tensor) -> Tensor:
        return torch.cat((room & 15, room >> 4), -1)
