"""Compiles what a decoder computes besides attention: one token alone then reads the weights at the memory's speed.

With one token a product with a matrix takes as long as the matrix takes to be read. In graphs for a token alone it is
computed by a kernel that is made for that (`lg.inference.matvec`); with more tokens, and on other devices than CUDA's,
by the library.

Graphs are compiled when they are first needed, which takes tens of seconds in all where the compiler's cache has none
of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lg.models.decoder import Decoder

_LIMIT = 4096


def compiled(decoder: Decoder) -> Decoder:
    """Changes ``decoder`` in place, to be read by a `Runner`: both halves of its blocks, its last norm and its head.

    One graph of a half serves all layers, and all decoders of the same shape: one for a token alone, one for any other
    number of them.

    Returns:
        The decoder.
    """
    # It brings torch's compiler along.
    from lg.inference.matvec import Matvecs

    one: dict[str, Any] = {"joint_custom_pre_pass": Matvecs()}
    halves = [(block, half) for block in decoder.blocks for half in ("pre", "post")]
    for module, name in [*halves, (decoder.norm, "forward"), (decoder.head, "forward")]:
        setattr(module, name, _by_count(getattr(module, name), one))
    return decoder


def _by_count(function: Callable[..., Any], for_one: dict[str, Any]) -> Callable[..., Any]:
    """The function of rows [N, ...], compiled for one row, with these options, and for several."""
    one = torch.compile(function, fullgraph=True, dynamic=False, options=for_one)
    several = torch.compile(function, fullgraph=True)

    def run(x: Tensor, *others: Tensor) -> Any:
        # Decoders of all shapes and types share the code of a function, and dynamo's limit of graphs is for one code.
        with torch._dynamo.config.patch(recompile_limit=_LIMIT, accumulated_recompile_limit=_LIMIT):
            return (one if len(x) == 1 else several)(x, *others)

    return run
