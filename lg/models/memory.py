"""What training keeps between the forward and the backward pass, and what it computes again instead."""

from __future__ import annotations

from dataclasses import dataclass

RECOMPUTE = ("nothing", "halves", "blocks")


@dataclass(frozen=True)
class Memory:
    """How activations are kept. Results stay the same; memory is traded for work.

    In a layer of width W with H query and G KV heads of width D each token keeps, in elements: W, the stream, with
    "blocks"; with "halves" also attention's queries, keys, values and output, 2 (H + G) D; with "nothing" also all that
    the MLP and the norms compute.

    Attributes:
        recompute: "nothing"; "halves": what comes before and after attention in each block, so that attention never
            runs twice; "blocks": all of each block.
        offload: whether the stream that blocks are computed again from waits in the host's memory.
        tile: the MLP takes so many tokens at a time, and again in the backward pass, so that its wide activations never
            exist for all of them; null for all at once.

    Raises:
        ValueError: naming the value and what is allowed.
    """

    recompute: str = "nothing"
    offload: bool = False
    tile: int | None = None

    def __post_init__(self) -> None:
        if self.recompute not in RECOMPUTE:
            raise ValueError(
                f"model.init_args.memory.recompute: {self.recompute!r} is unknown; allowed are {', '.join(RECOMPUTE)}"
            )
        if self.offload and self.recompute == "nothing":
            raise ValueError(
                "model.init_args.memory.offload: true is not allowed where nothing is computed again; "
                "model.init_args.memory.recompute must be halves or blocks"
            )
        if self.tile is not None and self.tile < 1:
            raise ValueError(f"model.init_args.memory.tile: {self.tile} is not allowed; it must be at least 1, or null")
