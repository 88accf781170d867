"""Draws what a pattern costs against the length of a document: two lines, as SVG in the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 640, 300, 60, 16, 170, 40
_INKS = ("#0072b2", "#d55e00")
_LEAST, _MOST = 1e-3, 2.0


def svg(lengths: Sequence[int], shares: Mapping[str, Sequence[float]]) -> str:
    """Both axes in powers: tokens to the right, shares of full attention upward.

    Args:
        lengths: tokens, ascending powers of two.
        shares: a share for each length, by what it is a share of; at most two lines.
    """
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" style="max-width: {_WIDTH}px; width: 100%" '
        'xmlns="http://www.w3.org/2000/svg" font-size="12" fill="currentColor">'
    ]
    for share, label in ((1.0, "100%"), (0.1, "10%"), (0.01, "1%"), (0.001, "0.1%")):
        y = _y(share)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}" stroke="currentColor" stroke-opacity="0.2"/>'
            f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{label}</text>'
        )
    for length in lengths:
        x = _x(length, lengths)
        parts.append(f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{length // 1024}K</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">tokens of the document</text>')
    lowest = _HEIGHT
    for (name, line), ink in zip(shares.items(), _INKS, strict=False):
        points = " ".join(f"{_x(n, lengths)},{_y(share)}" for n, share in zip(lengths, line, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{ink}" stroke-width="2"/>')
        # Labels stand where lines end, but not on one another.
        y = _y(line[-1]) + 4
        y = y if abs(y - lowest) > 14 else lowest + math.copysign(14, y - lowest)
        lowest = y
        parts.append(f'<text x="{_WIDTH - _RIGHT + 6}" y="{y}" fill="{ink}">{name}</text>')
    return "".join([*parts, "</svg>"])


def _x(length: int, lengths: Sequence[int]) -> float:
    share = math.log(length / lengths[0]) / math.log(lengths[-1] / lengths[0])
    return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)


def _y(share: float) -> float:
    height = math.log(min(max(share, _LEAST), _MOST) / _LEAST) / math.log(_MOST / _LEAST)
    return round(_HEIGHT - _BOTTOM - height * (_HEIGHT - _TOP - _BOTTOM), 1)
