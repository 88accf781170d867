"""What a layer remembers of the tokens before: pages of keys and values are one kind, a recurrent state another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Made = TypeVar("Made")


@dataclass(frozen=True)
class Piece:
    """Some tokens of one sequence, which all layers read in one step.

    Attributes:
        slot: the sequence.
        first: the first of them, counted in the sequence.
        count: how many.
    """

    slot: int
    first: int
    count: int

    @property
    def end(self) -> int:
        """Tokens of the sequence after them."""
        return self.first + self.count


@dataclass(frozen=True)
class Step:
    """What all layers share in one step: pieces of sequences, laid end to end.

    Attributes:
        pieces: whose tokens these are.
        angles: from positions [n] and the length of their sequence to cosine and sine [n, D/2].
    """

    pieces: Sequence[Piece]
    angles: Callable[[Tensor, int], tuple[Tensor, Tensor]]
    _made: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What the first layer that asked has made; layers that ask by one key share it."""
        if key not in self._made:
            self._made[key] = make()
        return cast("Made", self._made[key])


class State(ABC):
    """What the mixer of one layer keeps of each open sequence.

    Attributes:
        rotated: whether `mix` is handed queries and keys that are rotated already.
    """

    rotated = True

    @abstractmethod
    def mix(self, inputs: tuple[Tensor, ...], step: Step) -> Tensor:
        """What each token gathers from those before it; keeps what later ones need.

        Args:
            inputs: what the mixer's ``project`` gives for the N tokens of the step.
            step: whose they are.

        Returns:
            [N, features], as the mixer's ``mix``.
        """


def moved(x: Tensor, device: torch.device) -> Tensor:
    """What is on the host, on the device; waits for nothing that the device still does."""
    return x.to(device) if device.type != "cuda" else x.pin_memory().to(device, non_blocking=True)
