"""The figures of one implementation on one case, as tables show them and files keep them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One implementation on one case. What was not measured is None: times, where it was refused or failed.

    Attributes:
        case: the name of the case.
        impl: the name of the implementation.
        length: tokens of the sequence.
        kv_heads, heads, width, dtype: the shape.
        documents: how many the sequence is packed of.
        queries: tokens that ask.
        sees: the pattern's text.
        fwd_ms, bwd_ms: medians; the forward pass is one that will be differentiated.
        fwd_spread_ms, bwd_spread_ms: the quickest and the slowest call.
        fwd_tflops, bwd_tflops: useful work a second: 4 D operations forward for each pair seen and query head, and
            10 D backward, as FlashAttention counts it.
        fwd_executed_tflops, bwd_executed_tflops: the same of the pairs that were computed, seen or not; backward 8 D
            where the implementation does not compute the scores again.
        peak_MiB: memory beyond the inputs and their gradient's at the peak of a forward and a backward pass, tile
            tables included; None where the device does not tell.
        errors: relative errors of "output", "dq", "dk" and "dv" against another implementation's, as norms.
        against: which.
        auto: whether it is what `attend` picks by itself.
        date: when it was measured.
        refused: why the implementation does not take the case.
        failed: how it ended.
    """

    case: str
    impl: str
    length: int
    kv_heads: int
    heads: int
    width: int
    dtype: str
    documents: int
    queries: int
    sees: str
    date: str
    fwd_ms: float | None = None
    bwd_ms: float | None = None
    fwd_tflops: float | None = None
    bwd_tflops: float | None = None
    fwd_executed_tflops: float | None = None
    bwd_executed_tflops: float | None = None
    fwd_spread_ms: tuple[float, float] | None = None
    bwd_spread_ms: tuple[float, float] | None = None
    peak_MiB: float | None = None
    errors: Mapping[str, float] | None = None
    against: str | None = None
    auto: bool = False
    refused: str | None = None
    failed: str | None = None

    @property
    def both_ms(self) -> float | None:
        """Forward and backward together."""
        return None if self.fwd_ms is None or self.bwd_ms is None else self.fwd_ms + self.bwd_ms

    def plain(self) -> dict[str, Any]:
        """For JSON: what there is, None left out."""
        return {key: value for key, value in asdict(self).items() if value is not None}
