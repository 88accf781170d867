"""What measured_schedule.py has come to: a table, which measure foretells it, and the frontier as a picture.

`readme.py` writes the page and draws the picture from results/measured_schedule.json, results/probe.json and any
results/probe_*.json, which are scores of `lg probe` on other texts or at other lengths.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torchmetrics.functional import spearman_corrcoef

_Row = dict[str, Any]
_Scores = Mapping[str, Any]


def by_name(rows: Sequence[_Row]) -> dict[str, list[_Row]]:
    """Trainings of one name, of all seeds; those with fewer full layers last."""
    names = sorted({row["name"] for row in rows if "error" not in row}, key=lambda name: (-full(name, rows), name))
    return {name: [row for row in rows if row["name"] == name and "error" not in row] for name in names}


def full(name: str, rows: Sequence[_Row]) -> float:
    """Full layers of a case, by its schedule; of heads, as many as their KV heads would be."""
    if told := re.search(r", (\d+)$", name):
        return float(told[1])
    return float(len(layers(next(row["schedule"] for row in rows if row["name"] == name))))


def layers(schedule: str) -> list[int]:
    """Which layers are full.

    >>> layers("2*local, full, 3*local, 2*full")
    [2, 6, 7]
    """
    found, at = [], 0
    for part in schedule.split(", "):
        count, _, name = part.rpartition("*")
        if name == "full":
            found += range(at, at + int(count or 1))
        at += int(count or 1)
    return found


def foretold(rows: Sequence[_Row], scores: _Scores, outcome: Callable[[_Row], float]) -> dict[str, tuple[float, int]]:
    """For each measure, Spearman's rank correlation over trained sets of layers, and how many they are.

    A measure foretells of a set the sum of its layers' scores, those below 0 counted as 0, as `lg probe` counts shares.
    Sets of one size and of several are ranked together; all layers and none are left out.
    """
    sets: dict[tuple[int, ...], list[float]] = {}
    for row in rows:
        one = tuple(layers(row["schedule"]))
        if "error" not in row and not row["name"].startswith("heads") and 0 < len(one) < scores["num_layers"]:
            sets.setdefault(one, []).append(outcome(row))
    true = torch.tensor([statistics.mean(told) for told in sets.values()])
    found = {}
    for name, measure in scores["measures"].items():
        each = [max(score or 0.0, 0.0) for score in measure["layers"]]
        guess = torch.tensor([sum(each[layer] for layer in one) for one in sets])
        found[name] = (float(spearman_corrcoef(guess, true)), len(sets))
    return found


def alike(one: _Scores, other: _Scores, count: int = 4) -> dict[str, tuple[float, int]]:
    """For each measure of both, the rank correlation of the layers' scores, and how many of the best are the same."""
    found = {}
    for name in one["measures"].keys() & other["measures"].keys():
        pair = [one["measures"][name]["layers"], other["measures"][name]["layers"]]
        both = [(a, b) for a, b in zip(*pair, strict=True) if a is not None and b is not None]
        rank = float(spearman_corrcoef(*map(torch.tensor, zip(*both, strict=True))))
        best = [[*told["measures"][name]["sets"], *[None] * count][count - 1] for told in (one, other)]
        found[name] = (rank, len({*(best[0] or ())} & {*(best[1] or ())}))
    return found


def needle(row: _Row) -> float:
    """Exact needles, a mean over lengths."""
    return statistics.mean(row["needle_exact"].values())


def gain(row: _Row) -> float:
    """What the longer context is worth, in nats a token."""
    return float(row["context_gain_nats"]["mean"])


def ranged(values: Sequence[float], digits: int) -> str:
    """Their mean, and how far they are apart where there are several; empty of none."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def outcomes(rows: Sequence[_Row], table: Callable[[list[str], list[list[str]]], str]) -> str:
    """A line a case, and another of RULER's tasks."""
    lengths, named = list(rows[0]["needle_exact"]), by_name(rows)
    lines = [
        [
            name,
            str(len(same)),
            *(ranged([row["needle_exact"][n] for row in same], 2) for n in lengths),
            ranged([gain(row) for row in same], 3),
        ]
        for name, same in named.items()
    ]
    head = ["full layers", "seeds", *(f"needle, {int(n) // 1024}K" for n in lengths), "31K of context gain, nats"]
    told = table(head, lines)
    tasks = sorted({task for row in rows for task in row.get("ruler", ())}, key=_by_length)
    if not tasks:
        return told
    answered = [
        [name, *(ranged([row["ruler"][task] for row in same if task in row.get("ruler", ())], 2) for task in tasks)]
        for name, same in named.items()
    ]
    said = (
        "RULER's tasks, the share of an answer's words that are written: one needle, one of four keys, chains of "
        "variables (vt)\nand the most common words (cwe)."
    )
    return f"{told}\n{said}\n\n{table(['full layers', *map(_titled, tasks)], answered)}"


def _by_length(task: str) -> tuple[int, str]:
    name, length = task.rsplit("-", 1)
    return int(length), name


def _titled(task: str) -> str:
    name, length = task.rsplit("-", 1)
    return f"{name}, {int(length) // 1024}K"


def proposals(scores: _Scores, table: Callable[[list[str], list[list[str]]], str]) -> str:
    """A line a measure: the sets that it proposes, before any training."""
    sizes = (1, 2, 3, 4, 6, 8)

    def told(sets: Sequence[Sequence[int] | None], size: int) -> str:
        one = sets[size - 1] if size <= len(sets) else None
        return ", ".join(map(str, one)) if one else "not asked for"

    lines = [
        [name, f"{measure['seconds']:.0f} s", *(told(measure["sets"], size) for size in sizes)]
        for name, measure in scores["measures"].items()
    ]
    made, settings = scores["made"], scores["settings"]
    versions = ", ".join(f"{name} {made[name]}" for name in ("torch", "triton", "python"))
    return (
        f"SmolLM2 135M as it was pretrained, {scores['num_layers']} layers, read {settings['length']:,} tokens long, "
        f"against {scores['local']}:\nthe layers that each measure would keep full.\n\n"
        + table(["", "took", *(f"{size} full" for size in sizes)], lines)
        + f"\n{made['device']}; {versions}; {made['date']}; `lg probe`, `benchmarks/results/probe.json`.\n"
    )


def layers_picture(scores: _Scores, path: Path) -> None:
    """What `lg probe` draws, in few colours."""
    from lg.cli.probe_plot import plot

    title = f"SmolLM2 135M, {scores['settings']['length']:,} tokens, {scores['local']}"
    plot(scores["measures"], title).quantize(64).save(path, optimize=True)


def page(results: Mapping[str, Any], table: Callable[[list[str], list[list[str]]], str], source: str) -> str:
    """What the docs say of it."""
    rows, scores = results["measured_schedule"]["rows"], results["probe"]
    rows = [row for row in rows if "error" not in row]
    needles, gains = foretold(rows, scores, needle), foretold(rows, scores, gain)
    others = {name: told for name, told in results.items() if name.startswith("probe_")}
    again = {name: alike(scores, told) for name, told in sorted(others.items())}
    head = ["measure", "needles", "context", "seconds", *(f"on {name.removeprefix('probe_')}" for name in again)]
    lines = [
        [
            name,
            f"{needles[name][0]:+.2f}",
            f"{gains[name][0]:+.2f}",
            f"{scores['measures'][name]['seconds']:.0f}",
            *(f"{told[name][0]:+.2f}, {told[name][1]} of 4" if name in told else "" for told in again.values()),
        ]
        for name in sorted(needles, key=lambda name: -needles[name][0])
    ]
    count = next(iter(needles.values()))[1]
    said = (
        "\nHow well each measure, before any training, foretells the trained outcome: the rank correlation over "
        f"{count} sets of\nlayers of the sum of a set's scores with its exact needles and with what context is worth"
    )
    if again:
        said += (
            "; and how the scores themselves\nagree with those on other texts, with how many of the best four layers"
        )
    head_line = "Trained at equal data and tokens, 11M, to 32,768 positions: means over seeds, and their range."
    return f"{head_line}\n\n{outcomes(rows, table)}{said}.\n\n{table(head, lines)}\n{source}"


def picture(result: Mapping[str, Any], path: Path, best: str = "needle_greedy") -> None:
    """Quality over the number of full layers: proposed sets, random ones, and none."""
    from lg.monitor.chart import BLUE, GREEN, ORANGE, Axis, Line, lines

    rows = [row for row in result["rows"] if "error" not in row]
    told = {name: statistics.mean(map(needle, same)) for name, same in by_name(rows).items()}
    none = [(0.0, told["sparse only"])] if "sparse only" in told else []

    def points(prefix: str) -> list[tuple[float, float]]:
        found = [(full(name, rows), value) for name, value in told.items() if name.startswith(f"{prefix}, ")]
        return none + sorted(found)

    drawn = [Line("proposed", points(best), BLUE), Line("random", points("random"), ORANGE)]
    fixed = [(full(name, rows), told[name]) for name in ("middle 12", "full") if name in told]
    drawn += [Line("middle 12, all", fixed, GREEN)] if fixed else []
    ticks = [(float(n), str(n)) for n in (0, 2, 4, 6, 12, 30)]
    lines(
        [one for one in drawn if one.points], Axis("full layers of 30", ticks), "needles, exact", "the frontier"
    ).save(path)
