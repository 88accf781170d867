"""What is done to a decoder from outside before it trains: activation checkpointing, compilation; in this order.

The model itself stays plain single-device code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from lg.models.config import DecoderConfig
from lg.models.cost import ModelCost
from lg.models.decoder import Decoder


def wrap(decoder: Decoder, checkpoint_activations: bool, compile: bool) -> None:
    """Changes the blocks of ``decoder`` in place.

    Args:
        decoder: the model.
        checkpoint_activations: recompute each block's two halves in the backward pass. Attention between them is kept:
            its inputs and output stay in memory, and it never runs twice.
        compile: compile each block's two halves with ``torch.compile``. One graph serves all layers.
    """
    for block in decoder.blocks:
        for half in ("pre", "post"):
            function: Callable[..., object] = getattr(block, half)
            if compile:
                function = torch.compile(function, fullgraph=True)
            if checkpoint_activations:
                function = partial(checkpoint, function, use_reentrant=False)
            setattr(block, half, function)


def recomputed_weights(config: DecoderConfig, checkpoint_activations: bool, compile: bool) -> int:
    """Weights that a token is multiplied with once more in the backward pass, for a decoder wrapped so."""
    if not checkpoint_activations:
        return 0
    # torch recomputes up to the last tensor that it needs, so the product that ends a block, the MLP's down projection,
    # is spared; a compiled half runs whole.
    spared = 0 if compile else config.num_layers * config.ffn_width * config.width
    return ModelCost(config, 1, ()).block_weights - spared
