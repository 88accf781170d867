"""Marks functions whose answers are constants of a compiled graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_Function = TypeVar("_Function", bound=Callable[..., object])


def constant_in_graphs(function: _Function) -> _Function:
    """Has torch's compiler call a function while it traces, and take the answer as a constant, not look inside.

    What `torch.compiler.assume_constant_result` does, whose import takes the whole compiler, and seconds.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
