"""What a step is handed, and what validation tells those who look on."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor

from lg.attention.part import Held


class Batch(TypedDict):
    """What a data module hands over: B rows of L tokens that are one packed sequence of B * L.

    ``document_starts`` stays on the host, since tile tables are built there; so does what patterns ask of documents,
    ``document_attributes``, by name, which may be left out.

    ``positions``, of any number type and the shape of tokens, are what rotary angles are computed from; where they are
    left out, it is places in the documents.

    Where ranks share the sequence, ``held`` tells which of it this one has: tokens, targets and positions are then
    [1, n], those that are held, and documents begin in the whole sequence. Else it is left out.
    """

    tokens: Tensor
    targets: Tensor
    document_starts: list[int]
    document_attributes: dict[str, list[int]]
    positions: Tensor
    held: Held


class HeldOut(TypedDict):
    """What validation tells callbacks of a batch: the cross-entropy ``losses`` [B, L] of its targets, in nats.

    ``counted`` [B, L] tells which are targets: the others' loss is 0.
    """

    losses: Tensor
    counted: Tensor
