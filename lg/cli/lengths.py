"""Lengths as people write them on a command line: 4096, 32K, 1M."""

from __future__ import annotations

import re

_UNITS = {"": 1, "K": 2**10, "M": 2**20}
# Some numbers are made for each token.
_LONGEST = 2**24


def tokens_in(word: str, key: str) -> int:
    """The tokens that a word stands for; K is 1,024 and M 1,048,576.

    Args:
        word: what the user wrote.
        key: the option that it was written for.

    Raises:
        ValueError: if it is no such number, or above 16M.

    >>> tokens_in("32K", "lengths")
    32768
    """
    match = re.fullmatch(r"(\d+)([KM]?)", word.strip())
    tokens = int(match[1]) * _UNITS[match[2]] if match else 0
    if not 1 <= tokens <= _LONGEST:
        raise ValueError(f"{key}: {word.strip()!r} is not allowed; write tokens from 1 to 16M, such as 4096, 32K or 1M")
    return tokens
