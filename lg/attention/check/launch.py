"""Runs an implementation forward and backward in memory that is full of NaN, so that what it leaves unwritten shows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from lg.attention.check.case import Problem
from lg.attention.impl import Implementation

RESULTS = ("output", "dq", "dk", "dv")
"""What a launch gives, in order."""

# Tensors of each size that a kernel may ask for.
_BLOCKS = 4


def launch(implementation: Implementation, given: Problem) -> list[Tensor]:
    """Output and dq [B, H, Lq, D], dk and dv [B, G, L, D]."""
    q, k, v = (x.detach().requires_grad_() for x in (given.q, given.k, given.v))
    with _filled(given):
        out = implementation.run(q, k, v, given.tiles, given.scale)
    with _filled(given):
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), given.grad)]


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Gradients are taken, and nothing is cast, whatever the caller is in the middle of."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def _filled(given: Problem) -> Iterator[None]:
    if given.q.device.type != "cpu":
        _fill_freed(given)
        yield
        return
    # A CPU's free memory comes from the operating system, as zeros: torch itself must fill what it hands out.
    switch = cast(Any, torch.utils.deterministic)
    fill, mode = switch.fill_uninitialized_memory, torch.get_deterministic_debug_mode()
    with warnings.catch_warnings():
        # Operations that are not deterministic say so in this mode; here that is no matter.
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        switch.fill_uninitialized_memory = True
        try:
            yield
        finally:
            switch.fill_uninitialized_memory = fill
            torch.set_deterministic_debug_mode(mode)


def _fill_freed(given: Problem) -> None:
    """Fills blocks such as the kernels will ask for, and hands them back: torch's allocator gives them out again."""
    sizes = {
        size
        for x in (given.q, given.k)
        # In its own type and in float32, and one float32 a query.
        for size in (x.nbytes, 4 * x.numel(), 4 * x.numel() // x.shape[3])
    }
    blocks = [
        torch.full((-(-size // 4),), float("nan"), device=given.q.device) for size in sizes for _ in range(_BLOCKS)
    ]
    del blocks
