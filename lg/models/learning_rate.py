"""How the learning rate runs over the steps of a training: a factor between 0 and 1 for each step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

_KEY = "model.init_args.lr_schedule.init_args"


@dataclass(frozen=True)
class LRSchedule(ABC):
    """A linear warm-up of ``warmup`` steps, then what the subclass says.

    Attributes:
        warmup: steps until the full learning rate is reached.
    """

    warmup: int = 100

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ValueError(f"{_KEY}.warmup: {self.warmup} is not allowed; it must be at least 0")

    def factor(self, step: int, num_steps: int) -> float:
        """What the learning rate is multiplied by at ``step`` (from 0) of ``num_steps``."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return self.after_warmup(step - self.warmup, max(num_steps - self.warmup, 1))

    @abstractmethod
    def after_warmup(self, step: int, num_steps: int) -> float:
        """The same, counted from the end of the warm-up."""


@dataclass(frozen=True)
class Constant(LRSchedule):
    """The full learning rate to the end."""

    def after_warmup(self, step: int, num_steps: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Cosine(LRSchedule):
    """Half a cosine down to ``floor`` (Loshchilov and Hutter 2016, arXiv 1608.03983)."""

    floor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _fraction("floor", self.floor)

    def after_warmup(self, step: int, num_steps: int) -> float:
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(step / num_steps, 1.0)))


@dataclass(frozen=True)
class WSD(LRSchedule):
    """Warm-up, stable, decay: full until the last ``decay`` of all steps, then linearly to ``floor``
    (Hu et al. 2024, MiniCPM, arXiv 2404.06395, section 4).
    """

    decay: float = 0.2
    floor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _fraction("decay", self.decay)
        _fraction("floor", self.floor)

    def after_warmup(self, step: int, num_steps: int) -> float:
        left = (num_steps - step) / max(self.decay * num_steps, 1e-9)
        return self.floor + (1 - self.floor) * min(max(left, 0.0), 1.0)


def _fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{_KEY}.{name}: {value} is not allowed; it must be between 0 and 1")
