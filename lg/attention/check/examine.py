"""Examines one implementation in one case: what it computes is held to float64, and probed."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch

from lg.attention.check.budget import BUDGET, Yardstick
from lg.attention.check.launch import RESULTS, launch, undisturbed
from lg.attention.check.probes import Sound, failures
from lg.attention.impl import Implementation

# FlashAttention-4's gradients have been wrong in one of 100 to 1,000 launches (flash-attention issue 2756).
_LAUNCHES = 8
# Characters of an error that are told.
_TOLD = 300


class Verdict(NamedTuple):
    """What was found of an implementation in one case.

    Attributes:
        failure: what is wrong, to follow the implementation's name and a colon; None if it passed.
        is_wrong: whether it gave wrong results, rather than an error.
        errors: of "output", "dq", "dk" and "dv", in those of dense attention in the same type: the worst of heads and
            launches; None where it is not finite. Empty if it ended in an error.
        repeats: those that were the same to the bit in every launch.
        seconds: that the check took, compilation included.
    """

    failure: str | None
    is_wrong: bool
    errors: dict[str, float | None]
    repeats: tuple[str, ...]
    seconds: float

    @property
    def worst(self) -> float:
        """The greatest error; 0 if there is none."""
        return max((float("inf") if error is None else error for error in self.errors.values()), default=0.0)

    @property
    def told(self) -> str:
        """The greatest error in words."""
        name = max(self.errors, key=lambda name: self.errors[name] or 0.0)
        return f"{self.worst:.2f} times the error of dense attention, in its {name}"


class _Held(NamedTuple):
    """Errors by result, which results repeat, and what is wrong."""

    errors: dict[str, float]
    repeats: list[bool]
    failure: str | None


class BrokenDevice(ValueError):
    """A kernel has ended the device's context: this process can compute nothing more on it."""

    def __init__(self, verdict: Verdict, what: str = "attention") -> None:
        super().__init__(f"{what}: {verdict.failure}; the device is lost to this process: begin again, without it")
        self.verdict = verdict


def examined(implementation: Implementation, yardstick: Yardstick) -> Verdict:
    """The verdict on an implementation that does not refuse the yardstick's case.

    Eight launches, forward and backward, on one document or on packed ones of odd lengths, must be within the error
    budget and agree with each other within it; memory is filled with NaN beforehand. Then come the probes.

    Raises:
        torch.OutOfMemoryError: there is no room; nothing is said of the implementation.
        BrokenDevice: nothing more can be computed on the device.
    """
    began, device = time.monotonic(), yardstick.given.q.device
    held, is_wrong = _Held({}, [False] * len(RESULTS), None), True
    try:
        with undisturbed(device):
            held = _held(implementation, yardstick)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        said = f"the check of its gradients ended in {type(error).__name__}: {' '.join(str(error).split())[:_TOLD]}"
        if not _is_alive(device):
            raise BrokenDevice(Verdict(said, False, {}, (), time.monotonic() - began)) from error
        held, is_wrong = held._replace(failure=said), False
    errors = {name: error if error < float("inf") else None for name, error in held.errors.items()}
    repeats = tuple(name for name, repeated in zip(RESULTS, held.repeats, strict=True) if repeated)
    return Verdict(held.failure, held.failure is not None and is_wrong, errors, repeats, time.monotonic() - began)


def _held(implementation: Implementation, yardstick: Yardstick) -> _Held:
    """Launches, then probes if nothing is wrong yet."""
    given = yardstick.given
    first = launch(implementation, given)
    errors = {name: yardstick.error(n, first[n]) for n, name in enumerate(RESULTS)}
    repeats = [True] * len(RESULTS)
    for _ in range(_LAUNCHES - 1):
        results = launch(implementation, given)
        for n, name in enumerate(RESULTS):
            off, apart = yardstick.error(n, results[n]), yardstick.apart(n, results[n], first[n])
            errors[name] = max(errors[name], off, apart)
            repeats[n] &= torch.equal(results[n], first[n])
    worst = max(errors, key=lambda name: errors[name])
    failure = None
    if errors[worst] == float("inf"):
        failure = f"its gradients on this device: its {worst} is not finite, where memory holds NaN until it is written"
    elif errors[worst] > BUDGET:
        failure = (
            f"its gradients on this device: {errors[worst]:.2f} times the error of dense attention, in its {worst}, "
            f"where {BUDGET:g} are allowed"
        )
    else:
        failure = next(failures(Sound(implementation, yardstick, first, repeats)), None)
    return _Held(errors, repeats, failure and f"it failed the check of {failure}")


def _is_alive(device: torch.device) -> bool:
    """Whether the device still computes: an error of a kernel's may be its last."""
    try:
        torch.ones(1, device=device).item()
    except RuntimeError:
        return False
    return True
