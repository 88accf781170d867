"""Tensors that wait for the backward pass in the host's memory, copied while the device computes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class Offload:
    """Sends one tensor of each call away, and brings it back a call ahead of when it is needed.

    On a CPU nothing is sent.

    >>> offload, x = Offload(), torch.ones(3, requires_grad=True)
    >>> y = x * 2
    >>> with offload.of(y):
    ...     z = y * y
    >>> torch.autograd.grad(z.sum(), x)[0].tolist()
    [8.0, 8.0, 8.0]
    """

    def __init__(self) -> None:
        # Only what autograd keeps is alive: when that is used up, the copies go.
        self._last: Callable[[], _Away | None] = _none
        self._of: Callable[[], Tensor | None] = _none

    def of(self, x: Tensor) -> saved_tensors_hooks:
        """Where autograd saves ``x`` or a part of it inside this context, it is sent away; all else is kept as usual.

        Args:
            x: contiguous.
        """
        assert x.is_contiguous()
        storage, first = x.untyped_storage().data_ptr(), int(x.storage_offset())
        # Autograd keeps ``pack`` for as long as what it packed, so it must not keep ``x``.
        of = weakref.ref(x)

        def pack(saved: Tensor) -> Tensor | _View:
            if saved.device.type != "cuda" or saved.untyped_storage().data_ptr() != storage:
                return saved
            x = of()
            assert x is not None
            return _View(self._sent(x), saved.shape, saved.stride(), int(saved.storage_offset()) - first)

        return saved_tensors_hooks(pack, _back)

    def _sent(self, x: Tensor) -> _Away:
        last = self._last()
        # Both halves of a block keep the same stream.
        if last is None or self._of() is not x:
            last = _Away(x, self._last)
            self._last, self._of = weakref.ref(last), weakref.ref(x)
        return last


class _Away:
    """A tensor in pinned memory of the host.

    Args:
        x: what is sent.
        before: what was sent before it, which the backward pass needs after it.
    """

    def __init__(self, x: Tensor, before: Callable[[], _Away | None]) -> None:
        self._before = before
        self._device, self._stream = x.device, _stream(x.device)
        self._host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        self._here: Tensor | None = None
        self._stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(self._stream):
            self._host.copy_(x.detach(), non_blocking=True)
        # Its memory is not given to others before it is copied.
        x.record_stream(self._stream)

    def fetch(self) -> Tensor:
        """Begins to bring it back, if that has not begun."""
        if self._here is None:
            with torch.cuda.stream(self._stream):
                self._here = self._host.to(self._device, non_blocking=True)
        return self._here

    def returned(self) -> Tensor:
        """The tensor, on its device."""
        here, current = self.fetch(), torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        here.record_stream(current)
        before = self._before()
        if before is not None:
            before.fetch()
        return here


class _View(NamedTuple):
    """A part of what was sent."""

    away: _Away
    shape: torch.Size
    stride: tuple[int, ...]
    begin: int


_streams: dict[torch.device, torch.cuda.Stream] = {}


def _stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _streams:
        _streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _streams[device]


def _none() -> None:
    return None


def _back(saved: Any) -> Tensor:
    if not isinstance(saved, _View):
        return cast(Tensor, saved)
    return saved.away.returned().as_strided(saved.shape, saved.stride, saved.begin)
