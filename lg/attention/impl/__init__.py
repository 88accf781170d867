"""Ways to compute attention under a pattern: each is a module, or an object of one, that fits `Implementation`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from lg.attention.tiles import Tiles

_T = TypeVar("_T")


def kept_of(tiles: Tiles, key: object, tensors: tuple[Tensor, ...], build: Callable[[], _T]) -> _T:
    """What ``build`` says of tensors of this form on these tiles: asked once, not for every layer that uses them.

    Args:
        tiles: what keeps it.
        key: names what it is.
        tensors: only shape, layout, type, device, and whether gradients are wanted, decide what it is.
        build: makes it.
    """
    if torch.compiler.is_compiling():
        return build()
    forms = tuple((x.shape, x.stride(), x.dtype, x.device, x.requires_grad) for x in tensors)
    return tiles.kept((key, forms, torch.is_grad_enabled()), build)


class Executed(NamedTuple):
    """What an implementation computes, whether it is seen or not.

    Attributes:
        pairs: of query and key, in each of the tiles' heads: int64 [tiles.heads], on the host.
        scores_again: whether its backward pass computes the scores a second time, as FlashAttention does.
    """

    pairs: Tensor
    scores_again: bool


class Implementation(Protocol):
    """One way to compute attention.

    Shapes: q [B, H, Lq, D], k and v [B, G, L, D].
    """

    def refusal(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> str | None:
        """Why it cannot compute this, or None if it can."""

    def run(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
        """Attention: [B, H, Lq, D]."""

    def executed(self, tiles: Tiles) -> Executed:
        """The work that `run` does on these tiles."""
