"""Rotary positions, exact enough for long contexts: whatever the model's dtype, angles are float32.

bfloat16 has no whole numbers between 256 and 258, so angles that pass through it merge positions.
Shapes: N positions, D head width.
"""

import torch
from torch import Tensor

from lg.models.rope_scaling import RopeScaling, plain


def rotary_angles(
    positions_N: Tensor, head_width: int, theta: float, scaling: RopeScaling | None = None, length: int = 0
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each position's angles, both float32 ``[N, D/2]``.

    Pair ``i`` of a head turns by ``theta ** (-2 * i / head_width)`` radians a position. Positions
    are exact up to 2**24. An angle of ``a`` radians is good to a few times ``a * 2**-24``: at a
    million positions the fastest pairs are off by up to 0.1 radian, as they are in every model
    whose angles are float32.

    Su et al. 2021, "RoFormer", section 3.2.2, https://arxiv.org/abs/2104.09864.

    Args:
        positions_N: integer or float positions, any values, on the device of the result.
        head_width: D, even.
        theta: base of the frequencies.
        scaling: how frequencies change so that longer contexts are read; not at all by default.
        length: positions of the longest document at hand, for a scaling that asks for it.
    """
    assert head_width % 2 == 0
    device = positions_N.device
    if scaling is None:
        frequencies, factor = plain(head_width, theta, device), 1.0
    else:
        frequencies, factor = scaling.frequencies(head_width, theta, length, device), scaling.attention_factor
    angles = positions_N.to(torch.float32)[:, None] * frequencies
    return angles.cos() * factor, angles.sin() * factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of features ``(i, i + D/2)`` of ``x [..., N, D]`` by its position's angle.

    The pairs are those of transformers' Llama (first half with second half), so its weights load
    unchanged; the original release pairs neighbours instead.

    Args:
        x: queries or keys.
        cos: ``[N, D/2]``, or any shape that broadcasts with half of ``x``.
        sin: like ``cos``.

    Returns:
        The shape and dtype of ``x``, computed in float32 (float64 stays float64).
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    first, second = x.to(exact).chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype)
