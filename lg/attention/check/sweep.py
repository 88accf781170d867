"""Goes through many cases: those that a model would meet on this machine, or every kind that there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from typing import NamedTuple

import torch

from lg.attention.attend import candidates
from lg.attention.check.budget import Yardstick
from lg.attention.check.case import Case, Facts, inquiry
from lg.attention.check.examine import Verdict
from lg.attention.check.launch import undisturbed
from lg.attention.check.memory import checked, recall
from lg.attention.compose import PerHead
from lg.attention.impl import Implementation
from lg.attention.pattern import Pattern
from lg.attention.patterns import (
    Causal,
    Chunked,
    Dilated,
    GlobalTokens,
    PrefixLM,
    ShiftedGroups,
    SinkWindow,
    Strided,
    Window,
)
from lg.attention.routed import Routed

PATTERNS: Mapping[str, Pattern] = {
    "Causal": Causal(),
    "Window(1)": Window(1),
    "Window": Window(300),
    "SinkWindow": SinkWindow(window=250, sinks=70),
    "Strided": Strided(block=64, local_blocks=2, stride=4),
    "Dilated": Dilated(window=100, dilation=3),
    "Chunked": Chunked(300),
    "ShiftedGroups": ShiftedGroups(300, num_kv_heads=2),
    "PrefixLM": PrefixLM(),
    "GlobalTokens": GlobalTokens(70),
    "PerHead": PerHead((Causal(), SinkWindow(window=200, sinks=5)), heads=(0, 1)),
    "Window | GlobalTokens": Window(200) | GlobalTokens(20),
    "Window | Dilated": Window(100) | Dilated(window=8, dilation=100),
    "Chunked | Strided": Chunked(128) | Strided(block=32, local_blocks=1, stride=4, head_step=0, offset=1),
    "Causal & ~Window": Causal() & ~Window(300),
}
"""Every pattern that comes with lg and ways to join them, at sizes whose edges lie within a short problem."""

WIDTHS = (64, 80, 96, 128, 256)
"""Head widths that models have."""

_GROUPS = 2


class Row(NamedTuple):
    """One implementation in one case.

    Attributes:
        implementation: its name.
        pattern: what the pattern is called.
        case: with that pattern.
    """

    implementation: str
    pattern: str
    case: Case


class Outcome(NamedTuple):
    """What there is to say of a row.

    Attributes:
        row: which.
        refusal: why the implementation does not take the case, if it says so itself.
        verdict: of the check, if there is one.
        is_remembered: whether it is of an earlier run.
    """

    row: Row
    refusal: str | None
    verdict: Verdict | None
    is_remembered: bool

    @property
    def state(self) -> str:
        """In a word: "passed", "failed", "refused", or "no room" where memory ended."""
        if self.refusal:
            return "refused"
        if self.verdict is None:
            return "no room"
        return "failed" if self.verdict.failure else "passed"


def of_model(
    patterns: Mapping[str, Pattern],
    heads: tuple[int, int],
    width: int,
    dtypes: Iterable[torch.dtype],
    device: torch.device,
    packings: Iterable[bool],
    names: Callable[[Pattern], Iterable[str]],
) -> list[Row]:
    """What a model would ask for.

    Args:
        patterns: of its layers.
        heads: query heads and KV heads.
        width: of a head.
        dtypes: that it computes in.
        device: where.
        packings: whether documents are packed, or both.
        names: the implementations that may be taken for a pattern.
    """
    heads_q, heads_kv = heads
    return [
        Row(name, called, Case(pattern, Facts(kept, heads_q // heads_kv, width, dtype, device, packed, False)))
        for called, pattern in patterns.items()
        for kept in [heads_kv if pattern.heads_differ or pattern.made_for else 2]
        for dtype in dtypes
        for packed in packings
        for name in names(pattern)
    ]


def of_all(
    patterns: Mapping[str, Pattern],
    widths: Iterable[int],
    dtypes: Iterable[torch.dtype],
    device: torch.device,
    names: Iterable[str],
) -> list[Row]:
    """Every pattern in every implementation, at every width and type, packed and not."""
    return [
        Row(name, called, Case(pattern, Facts(pattern.made_for or 2, _GROUPS, width, dtype, device, packed, False)))
        for dtype in dtypes
        for width in widths
        for called, pattern in patterns.items()
        for packed in (False, True)
        for name in names
    ]


def swept(
    rows: Iterable[Row], implementations: Mapping[str, Implementation], again: bool, tell: Callable[[Row], None]
) -> Iterator[Outcome]:
    """The outcome of each row; what is checked is remembered at once.

    Args:
        rows: what to look at; those of one case in a row share the work of the oracle.
        implementations: by name, without proofs.
        again: whether to check what is remembered, too.
        tell: is told of a row before it is checked.

    Raises:
        Unwritable: verdicts cannot be kept.
        BrokenDevice: a kernel has ended the device's context.
    """
    for case, together in groupby(rows, key=lambda row: row.case):
        yardstick = None
        for row in together:
            name, implementation = row.implementation, implementations[row.implementation]
            refusal = _refusal(name, implementation, case)
            known = None if refusal or again else recall(name, case)
            if refusal or known:
                yield Outcome(row, refusal, known, known is not None)
                continue
            tell(row)
            try:
                yardstick = yardstick or Yardstick.of(case)
                yield Outcome(row, None, checked(name, implementation, case, yardstick), False)
            except torch.OutOfMemoryError:
                yield Outcome(row, None, None, False)


def _refusal(name: str, implementation: Implementation, case: Case) -> str | None:
    """The implementation's own, or that of `attend`."""
    able = candidates(case.facts.device.type, case.pattern)
    if isinstance(case.pattern, Routed) and name not in able:
        return f"it is chosen by content, which only {' and '.join(able)} compute"
    given = inquiry(case)
    with undisturbed(case.facts.device):
        q, k, v = (x.requires_grad_() for x in (given.q, given.k, given.v))
        return implementation.refusal(q, k, v, given.tiles)
