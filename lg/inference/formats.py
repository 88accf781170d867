"""How keys and values lie in pages: as they are, or in fewer bits.

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
