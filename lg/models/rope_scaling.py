"""How rotary positions are changed so that a model reads further than it was trained to.

A model meets, beyond the length it was trained on, angles that it has never seen. Each scaling turns pairs of features
more slowly, so that a longer context stays within the angles that are known: all pairs alike, or the slow ones only.
Raising ``rope_theta`` itself ("adjusted base frequency", Xiong et al. 2023, arXiv 2309.16039) needs none of them.

>>> from lg.models.rope import rotary_angles
>>> import torch
>>> cos, sin = rotary_angles(torch.arange(4), 8, 1e4, YaRN(factor=4.0, original_length=2048))
>>> cos.shape
torch.Size([4, 4])

Shapes: D head width; pair i of D / 2 turns by ``theta ** (-2 * i / D)`` radians a position where nothing is scaled.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

KEY = "model.init_args.rope_scaling"


class RopeScaling(ABC):
    """A change of rotary frequencies. Subclasses are frozen dataclasses: equal ones scale alike.

    Subclass it, name the class in YAML as ``model.init_args.rope_scaling``, and the model turns by it.

    Attributes:
        by_length: whether frequencies change with the length of the document. While a text is written such a scaling's
            keys are kept before they are rotated.
    """

    by_length: ClassVar[bool] = False

    @abstractmethod
    def frequencies(self, head_width: int, theta: float, length: int, device: torch.device) -> Tensor:
        """Radians a position by which each pair turns: float32 [D/2].

        Args:
            head_width: D.
            theta: base of the frequencies.
            length: positions of the longest document at hand.
            device: of the result.
        """

    @property
    def attention_factor(self) -> float:
        """What cosines and sines are multiplied by: its square scales the scores."""
        return 1.0


def plain(head_width: int, theta: float, device: torch.device) -> Tensor:
    """Frequencies without any scaling: float32 [D/2]."""
    # Only elementwise operations on float32 tensors: autocast lowers matrix products (einsum and
    # outer among them) and leaves these alone, and the default dtype has no say either.
    exponents = torch.arange(0, head_width, 2, dtype=torch.float32, device=device) / head_width
    return 1.0 / theta**exponents


@dataclass(frozen=True)
class Linear(RopeScaling):
    """Position interpolation: every pair turns ``factor`` times as slowly.

    Chen et al. 2023, arXiv 2306.15595.

    Attributes:
        factor: how many times as long the context becomes.

    Raises:
        ValueError: if it is below 1.
    """

    factor: float

    def __post_init__(self) -> None:
        _check_factor(self)

    def frequencies(self, head_width: int, theta: float, length: int, device: torch.device) -> Tensor:
        return plain(head_width, theta, device) / self.factor


@dataclass(frozen=True)
class NTK(RopeScaling):
    """A larger base, by which the slowest pair turns ``factor`` times as slowly and the fastest as before.

    bloc97 2023, "NTK-aware scaled RoPE". It is the base ``theta * factor ** (D / (D - 2))``.

    Attributes:
        factor: how many times as long the context becomes.

    Raises:
        ValueError: if it is below 1.
    """

    factor: float

    def __post_init__(self) -> None:
        _check_factor(self)

    def frequencies(self, head_width: int, theta: float, length: int, device: torch.device) -> Tensor:
        return plain(head_width, ntk_theta(theta, self.factor, head_width), device)


@dataclass(frozen=True)
class DynamicNTK(RopeScaling):
    """`NTK` by as much as the longest document at hand needs; within ``original_length`` nothing changes.

    emozilla 2023, as transformers has it: the base is ``theta * (factor * L / original_length - factor + 1) ** (D /
    (D - 2))``. Angles of a document change with those beside it in the batch.

    Attributes:
        factor: how much is scaled at a length; with 1, by ``L / original_length``.
        original_length: positions that the model was trained on.

    Raises:
        ValueError: if ``factor`` is below 1 or ``original_length`` is not positive.
    """

    by_length = True
    factor: float
    original_length: int

    def __post_init__(self) -> None:
        _check_factor(self)
        _check_length(self)

    def frequencies(self, head_width: int, theta: float, length: int, device: torch.device) -> Tensor:
        stretch = self.factor * max(length, self.original_length) / self.original_length - (self.factor - 1)
        return plain(head_width, ntk_theta(theta, stretch, head_width), device)


@dataclass(frozen=True)
class YaRN(RopeScaling):
    """Pairs that turn fast stay, slow ones are interpolated, those between by a ramp; scores are sharpened.

    Peng et al. 2023, arXiv 2309.00071, section 3.

    Attributes:
        factor: how many times as long the context becomes.
        original_length: positions that the model was trained on.
        beta_fast: pairs that turn more often than this over ``original_length`` stay as they are.
        beta_slow: pairs that turn less often are interpolated.
        scale: what cosines and sines are multiplied by; ``0.1 * ln(factor) + 1`` if null.
        truncate: whether the ramp begins and ends at whole pairs.

    Raises:
        ValueError: if a number is not positive, ``factor`` is below 1, or ``beta_fast`` is not above ``beta_slow``.
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    scale: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        _check_factor(self)
        _check_length(self)
        if not 0 < self.beta_slow < self.beta_fast:
            raise ValueError(
                f"{KEY}.beta_fast: {self.beta_fast} is not allowed; it must be above beta_slow, which is "
                f"{self.beta_slow}, and that above 0"
            )
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"{KEY}.scale: {self.scale} is not allowed; it must be above 0, or null")

    @property
    def attention_factor(self) -> float:
        return 0.1 * math.log(self.factor) + 1.0 if self.scale is None else self.scale

    def frequencies(self, head_width: int, theta: float, length: int, device: torch.device) -> Tensor:
        def pair(turns: float) -> float:
            """The pair, as a fraction, that turns so often over the original length."""
            return head_width * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

        first, last = pair(self.beta_fast), pair(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, head_width - 1)
        pairs = torch.arange(head_width // 2, dtype=torch.float32, device=device)
        # As transformers does: a ramp of no width is a step.
        ramp = ((pairs - first) / (last - first if last != first else 0.001)).clamp(0, 1)
        own = plain(head_width, theta, device)
        return own / self.factor * ramp + own * (1 - ramp)


@dataclass(frozen=True)
class Llama3(RopeScaling):
    """The scaling of Llama 3.1: pairs of long waves are interpolated, of short ones kept, a ramp between.

    As in the models' own code (meta-llama/llama-models, 2024).

    Attributes:
        factor: by which slow pairs are interpolated.
        original_length: positions that the model was trained on.
        low_freq_factor: waves longer than ``original_length / low_freq_factor`` are interpolated.
        high_freq_factor: waves shorter than ``original_length / high_freq_factor`` stay.

    Raises:
        ValueError: if a number is not positive, ``factor`` is below 1, or ``high_freq_factor`` is not above
            ``low_freq_factor``.
    """

    factor: float = 8.0
    original_length: int = 8192
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        _check_factor(self)
        _check_length(self)
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"{KEY}.high_freq_factor: {self.high_freq_factor} is not allowed; it must be above low_freq_factor, "
                f"which is {self.low_freq_factor}, and that above 0"
            )

    def frequencies(self, head_width: int, theta: float, length: int, device: torch.device) -> Tensor:
        own = plain(head_width, theta, device)
        # How often a pair turns over the original length.
        turns = self.original_length * own / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = kept.clamp(0, 1)
        return own / self.factor * (1 - kept) + own * kept


def ntk_theta(theta: float, factor: float, head_width: int) -> float:
    """The base by which the slowest pair turns ``factor`` times as slowly: ``theta * factor ** (D / (D - 2))``.

    bloc97 2023, "NTK-aware scaled RoPE". Where a model goes on training at ``factor`` times the length, twice that is
    what ProLong found best (Gao et al. 2024, arXiv 2410.02660, section 5).

    >>> round(ntk_theta(5e5, 8, 128) / 1e6, 2)  # Llama 3 from 8,192 to 65,536; ProLong trains with 8e6
    4.13
    """
    # With one pair there is no slowest one.
    return theta * math.pow(factor, head_width / max(head_width - 2, 1))


def _check_factor(scaling: Linear | NTK | DynamicNTK | YaRN | Llama3) -> None:
    if not (math.isfinite(scaling.factor) and scaling.factor >= 1):
        raise ValueError(f"{KEY}.factor: {scaling.factor} is not allowed; it must be a finite number of at least 1")


def _check_length(scaling: DynamicNTK | YaRN | Llama3) -> None:
    if scaling.original_length < 1:
        raise ValueError(
            f"{KEY}.original_length: {scaling.original_length} is not allowed; it must be at least 1, the positions "
            "that the model was trained on"
        )
