"""Where documents lie in a packed sequence: lg lets no token see another document, whatever the pattern."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """Documents laid end to end in a sequence of ``length`` tokens.

    Attributes:
        length: tokens in the whole sequence.
        starts: index of each document's first token, ascending; the first is 0. Kept on the host, since tile tables
            are built there.

    Raises:
        ValueError: if the starts do not ascend from 0 to below ``length``.

    >>> Documents(10, (0, 4)).positions.tolist()
    [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    """

    length: int
    starts: Sequence[int] = (0,)

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", tuple(int(s) for s in self.starts))
        if self.length < 1:
            raise ValueError(f"a sequence of {self.length} tokens is not allowed; length must be at least 1")
        ends = (*self.starts[1:], self.length)
        if self.starts[:1] != (0,) or any(s >= e for s, e in zip(self.starts, ends, strict=True)):
            raise ValueError(
                f"document starts {self.starts} are not allowed; they must ascend from 0 to below {self.length}"
            )

    @cached_property
    def bounds(self) -> Tensor:
        """First token and end (exclusive) of each document: int64 [2, documents]."""
        edges = torch.tensor((*self.starts, self.length))
        return torch.stack((edges[:-1], edges[1:]))

    @cached_property
    def start_of_token(self) -> Tensor:
        """For each token, the index of its document's first token: int32 [L], on the host."""
        start, end = self.bounds
        return torch.repeat_interleave(start.int(), end - start)

    @cached_property
    def positions(self) -> Tensor:
        """For each token, its index counted from the start of its document: int32 [L], on the host."""
        return torch.arange(self.length, dtype=torch.int32) - self.start_of_token
