"""Prompts laid end to end as one packed sequence, as training rows are, so that a model reads many at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lg.attention import Documents


@dataclass(frozen=True)
class PackedPrompts:
    """Prompts in one sequence.

    Attributes:
        tokens: int64 [1, N].
        documents: each prompt is one, and so is what fills the rest.
        starts: where each prompt begins, by its number.
    """

    tokens: Tensor
    documents: Documents
    starts: dict[int, int]


def pack(
    prompts: Sequence[Tensor], length: int, attributes: Collection[str] = (), padding: int = 0
) -> list[PackedPrompts]:
    """Lays prompts in as few sequences of one length as first-fit, the longest first, finds.

    One length for all, so that whatever is compiled for it is compiled once.

    Args:
        prompts: int64 [L] each, of 1 to ``length`` tokens.
        length: tokens of a sequence.
        attributes: what patterns ask of documents besides their length (``doc.prefix``); it is 0 everywhere, since a
            prompt tells nothing of the kind.
        padding: the token that fills what is left.
    """
    rooms: list[int] = []
    inside: list[list[int]] = []
    for number in sorted(range(len(prompts)), key=lambda number: -len(prompts[number])):
        needed = len(prompts[number])
        assert 1 <= needed <= length
        place = next((place for place, room in enumerate(rooms) if room >= needed), len(rooms))
        if place == len(rooms):
            rooms.append(length)
            inside.append([])
        rooms[place] -= needed
        inside[place].append(number)
    packed = []
    for room, numbers in zip(rooms, inside, strict=True):
        starts, at = {}, 0
        for number in numbers:
            starts[number] = at
            at += len(prompts[number])
        tokens = torch.cat([*(prompts[number] for number in numbers), torch.full((room,), padding)])
        bounds = [*starts.values(), *([at] if room else [])]
        documents = Documents(length, bounds, {name: [0] * len(bounds) for name in sorted(attributes)})
        packed.append(PackedPrompts(tokens[None], documents, starts))
    return packed
