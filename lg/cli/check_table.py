"""The verdicts of ``lg check`` as a table, and as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from lg.attention.check import machine
from lg.attention.check.memory import folder_of
from lg.attention.check.sweep import Outcome, Row


def heading(title: str, rows: Sequence[Row]) -> str:
    """What stands above the verdicts."""
    device = rows[0].case.facts.device
    here = machine(device)
    versions = ", ".join(f"{name} {here[name]}" for name in ("torch", "triton", "flash-attn-4") if here[name])
    where = here["device"] if device.type == "cuda" else f"cpu ({here['device']}, {here['capability']})"
    return "\n".join(
        [
            title,
            f"{where}; {versions}",
            "error: the worst of output, dq, dk and dv, in that of dense attention in the same type; 2 are allowed",
            "",
            "  backend     pattern                 width  type      documents   error       s  verdict",
        ]
    )


def told(outcome: Outcome) -> str:
    """A row of the table."""
    (name, pattern, case), verdict = outcome.row, outcome.verdict
    figures = f"{verdict.worst:>7.2f} {verdict.seconds:>7.1f}" if verdict and verdict.errors else " " * 15
    documents = "packed" if case.facts.packed else "one"
    says = outcome.state
    if outcome.state == "no room":
        says = "not checked: memory ended"
    elif outcome.refusal or (verdict and verdict.failure):
        says = f"{outcome.state}: {outcome.refusal or (verdict and verdict.failure)}"
    if outcome.is_remembered:
        says += " (remembered)"
    dtype = str(case.facts.dtype).removeprefix("torch.")
    return f"  {name:<11} {pattern:<23} {case.facts.width:>5}  {dtype:<9} {documents:<9} {figures}  {says}"


def closing(outcomes: Sequence[Outcome], of_model: bool) -> str:
    """What stands below the verdicts.

    Args:
        outcomes: all of them.
        of_model: whether they are of a configuration, which needs one implementation for each case.
    """
    count = Counter(outcome.state for outcome in outcomes)
    lines = [
        "",
        ", ".join(f"{count[state]} {state}" for state in ("passed", "failed", "refused", "no room") if count[state]),
    ]
    if of_model:
        lines += [f"nothing here computes {what}" for what in without_any(outcomes)]
    if count["failed"]:
        lines.append("what failed is refused by `auto` from now on; --again checks anew")
    lines.append(f"remembered in {folder_of(outcomes[0].row.case.facts.device)}")
    return "\n".join(lines)


def without_any(outcomes: Iterable[Outcome]) -> list[str]:
    """The cases that no implementation has passed."""
    passed: dict[str, bool] = {}
    for outcome in outcomes:
        passed[str(outcome.row.case)] = passed.get(str(outcome.row.case), False) or outcome.state == "passed"
    return [case for case, any_passed in passed.items() if not any_passed]


def plain(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What a machine reads."""
    return {
        "machine": machine(outcomes[0].row.case.facts.device) if outcomes else {},
        "rows": [_plain_row(outcome) for outcome in outcomes],
    }


def _plain_row(outcome: Outcome) -> dict[str, Any]:
    (name, pattern, case), verdict = outcome.row, outcome.verdict
    facts = case.facts._asdict()
    return {
        "implementation": name,
        "pattern": pattern,
        "sees": case.pattern.text,
        **facts,
        "dtype": str(facts["dtype"]).removeprefix("torch."),
        "device": facts["device"].type,
        "verdict": outcome.state,
        "reason": outcome.refusal or (verdict and verdict.failure),
        "errors": verdict.errors if verdict else {},
        "repeats": verdict.repeats if verdict else (),
        "seconds": verdict.seconds if verdict else None,
        "remembered": outcome.is_remembered,
    }
