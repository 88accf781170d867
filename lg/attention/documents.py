"""Where documents lie in a packed sequence: lg lets no token see another document, whatever the pattern."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """Documents laid end to end in a sequence of ``length`` tokens.

    Attributes:
        length: tokens in the whole sequence.
        starts: index of each document's first token, ascending; the first is 0. Kept on the host, since tile tables
            are built there.
        attributes: integers of each document, by name, for predicates that ask for them (``doc.prefix``). Every
            document has ``doc.length`` without being told.

    Raises:
        ValueError: if the starts do not ascend from 0 to below ``length``, or an attribute has not one integer for
            each document.

    >>> Documents(10, (0, 4)).positions.tolist()
    [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    """

    length: int
    starts: Sequence[int] = (0,)
    attributes: Mapping[str, Sequence[int]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "starts", tuple(int(s) for s in self.starts))
        if self.length < 1:
            raise ValueError(f"a sequence of {self.length} tokens is not allowed; length must be at least 1")
        ends = (*self.starts[1:], self.length)
        if self.starts[:1] != (0,) or any(s >= e for s, e in zip(self.starts, ends, strict=True)):
            raise ValueError(
                f"document starts {self.starts} are not allowed; they must ascend from 0 to below {self.length}"
            )
        object.__setattr__(self, "attributes", {name: tuple(values) for name, values in self.attributes.items()})
        for name, values in self.attributes.items():
            whole = all(isinstance(value, int) and value >= 0 for value in values)
            if len(values) != len(self.starts) or not whole or name == "length":
                raise ValueError(
                    f"document attribute {name}={values} is not allowed; it must be one integer of at least 0 for each "
                    f"of {len(self.starts)} documents, and not be called length"
                )

    @cached_property
    def bounds(self) -> Tensor:
        """First token and end (exclusive) of each document: int64 [2, documents]."""
        edges = torch.tensor((*self.starts, self.length))
        return torch.stack((edges[:-1], edges[1:]))

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest document."""
        start, end = self.bounds
        return int((end - start).max())

    @cached_property
    def of_token(self) -> Tensor:
        """For each token, the number of its document: int32 [L], on the host."""
        start, end = self.bounds
        return torch.repeat_interleave(torch.arange(len(self.starts), dtype=torch.int32), end - start)

    @cached_property
    def start_of_token(self) -> Tensor:
        """For each token, the index of its document's first token: int32 [L], on the host."""
        start, end = self.bounds
        return torch.repeat_interleave(start.int(), end - start)

    @cached_property
    def positions(self) -> Tensor:
        """For each token, its index counted from the start of its document: int32 [L], on the host."""
        return torch.arange(self.length, dtype=torch.int32) - self.start_of_token

    def doc(self, names: Collection[str], document: Tensor) -> SimpleNamespace:
        """What a predicate that asks for ``doc`` is handed: the named attributes of each ``document``.

        Args:
            names: attributes, such as "length".
            document: numbers of documents, of any shape.

        Raises:
            ValueError: naming an attribute that these documents do not have.
        """
        return SimpleNamespace(**{name: self.attribute(name)[document] for name in names})

    def attribute(self, name: str) -> Tensor:
        """One integer of each document: int64 [documents].

        Raises:
            ValueError: if these documents do not have it.
        """
        if name == "length":
            return self.bounds[1] - self.bounds[0]
        if name not in self.attributes:
            has = ", ".join(f"doc.{known}" for known in ("length", *self.attributes))
            raise ValueError(
                f"a pattern asks for doc.{name}, but these documents have only {has}; "
                f"hand it over as Documents(length, starts, {{{name!r}: [...]}})"
            )
        return torch.tensor(self.attributes[name])
