"""What is done to a decoder from outside before it trains: activation checkpointing, compilation; in this order.

The model itself stays plain single-device code.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

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
