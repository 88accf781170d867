"""What is done to a decoder from outside before it trains: compilation, then what is computed again; in this order.

The model itself stays plain single-device code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lg.models.config import DecoderConfig
from lg.models.cost import ModelCost
from lg.models.decoder import Decoder
from lg.models.memory import Memory
from lg.models.offload import Offload


def wrap(decoder: Decoder, memory: Memory, compile: bool) -> None:
    """Changes the blocks of ``decoder`` in place.

    Args:
        decoder: the model.
        memory: what is kept for the backward pass, and what is computed again.
        compile: compile each block's two halves with ``torch.compile``. One graph serves all layers.
    """
    offload = Offload() if memory.offload else None
    for block in decoder.blocks:
        for half in ("pre", "post"):
            function: Callable[..., Any] = getattr(block, half)
            if compile:
                function = torch.compile(function, fullgraph=True)
            tile = memory.tile if half == "post" else None
            if tile is not None or memory.recompute == "halves":
                function = partial(checkpoint, function, use_reentrant=False)
            if tile is not None:
                # Each tile is computed again by itself, whatever is computed again around it.
                function = partial(_tiled, function, tile)
            if memory.recompute == "halves":
                function = _away(function, offload)
            setattr(block, half, function)
        if memory.recompute == "blocks":
            block.forward = _away(partial(checkpoint, block.forward, use_reentrant=False), offload)


def _away(function: Callable[..., Any], offload: Offload | None) -> Callable[..., Any]:
    """The function, what it keeps of the stream sent away."""
    if offload is None:
        return function

    def run(x: Tensor, *others: Any) -> Any:
        with offload.of(x):
            return function(x, *others)

    return run


def _tiled(post: Callable[[Tensor, Tensor], Tensor], size: int, x: Tensor, mixed: Tensor) -> Tensor:
    """``post`` [N, W], ``size`` tokens at a time."""
    begins = range(0, len(x), size)
    return torch.cat([post(x[begin : begin + size], mixed[begin : begin + size]) for begin in begins])


def recomputed_weights(config: DecoderConfig, memory: Memory, compile: bool) -> int:
    """Weights that a token is multiplied with once more in the backward pass, for a decoder wrapped so."""
    # torch recomputes up to the last tensor that it needs, so the product that ends a block, the MLP's down projection,
    # is spared; a compiled half runs whole.
    spared = 0 if compile else config.num_layers * config.ffn_width * config.width
    blocks = ModelCost(config, 1, ()).block_weights
    post = config.num_layers * config.width * (config.num_heads * config.head_width + 3 * config.ffn_width)
    if memory.recompute == "nothing":
        return 0 if memory.tile is None else post - spared
    # Of a block that is computed again tile by tile, the tiles are once more.
    twice = post if memory.recompute == "blocks" and memory.tile is not None else 0
    return blocks + twice - spared
