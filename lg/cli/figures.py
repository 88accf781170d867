"""Numbers as tables and pages show them: as many digits as count, never an exponent."""

from __future__ import annotations


def figure(value: float) -> str:
    """Three digits that count, and every digit before the point.

    >>> figure(288_231.4), figure(12.345), figure(0.05149)
    ('288,231', '12.3', '0.0515')
    """
    return f"{value:,.0f}" if value >= 1000 else f"{value:.{max(0, 2 - _magnitude(value, 3))}f}"


def percent(share: float) -> str:
    """One decimal; of a small share, as many as show two digits that count.

    >>> percent(0.722), percent(0.031), percent(0.00027)
    ('72.2%', '3.1%', '0.027%')
    """
    return f"{100 * share:.{max(1, 1 - _magnitude(100 * share, 2))}f}%"


def _magnitude(value: float, digits: int) -> int:
    """The power of ten of the first digit, once the value is rounded to so many digits."""
    return int(f"{value:.{digits - 1}e}".partition("e")[2]) if value else 0
