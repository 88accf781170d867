"""What ``lg probe`` does once the heavy imports are paid: measures, and writes what was found."""

from __future__ import annotations

import datetime
import io
import json
import math
import time
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lg.cli.bench import number
from lg.cli.probe_inputs import (
    Subject,
    decoder_of,
    devices_named,
    read_model,
    read_texts,
    read_tokenizer,
    seen_by,
    sizes,
)
from lg.cli.probe_kept import is_whole
from lg.cli.probe_plot import plot
from lg.cli.probe_told import OF_HEADS, heads, schedule, table
from lg.cli.progress import ProgressLine
from lg.cli.written import file_for, write
from lg.evaluation import Needles, haystack
from lg.evaluation.probe import (
    Adapted,
    Context,
    Crew,
    Gates,
    Greedy,
    Mass,
    Measure,
    Needle,
    Notebook,
    OneIn,
    OneOut,
    Probe,
    Task,
    Unmeasurable,
    candidates,
    rungs,
)
from lg.monitor.run_card import versions

_WAYS = ("one_out", "one_in", "greedy")
# What a word of --measures stands for.
_MEASURES = {
    "mass": ("mass",),
    "gates": ("gates",),
    **{task: tuple(f"{task}_{way}" for way in _WAYS) for task in ("needle", "context")},
    **{name: (name,) for name in (f"{task}_{way}" for task in ("needle", "context") for way in (*_WAYS, "adapted"))},
}
_ADAPTED = ("needle_adapted", "context_adapted")
_SEED = 0  # of random sets


def probed(options: Namespace, line: ProgressLine) -> None:
    """Measures, writes the files and prints.

    Args:
        options: those of the command, as words.
        line: where is told what is being done.

    Raises:
        ValueError: when the input is at fault, or nothing could be measured.
    """
    if not options.model:
        raise ValueError("--model: needed (see lg probe --help)")
    out = file_for(options.out, "--out", ".json")
    assert out is not None
    asked = options.measures.split(",")
    for word in asked:
        if word not in _MEASURES:
            raise ValueError(f"--measures: {word!r} is not known; allowed: {', '.join(_MEASURES)}")
    names = list(dict.fromkeys(name for word in asked for name in _MEASURES[word]))
    by_heads = options.full_heads is not None
    if by_heads and not set(OF_HEADS) & set(names):
        raise ValueError(f"--measures: {options.measures!r} tells nothing of heads; --full_heads needs gates or mass")
    line.show(f"reading {Path(options.model).name}")
    device, *others = devices_named(options.devices, options.device)
    decoder, longest = read_model(options.model, device)
    sees = seen_by(decoder)
    if by_heads and len(set(sees)) > 1:
        told = ", ".join(dict.fromkeys(map(str, sees)))
        raise ValueError(
            f"--full_heads: {options.full_heads} is not allowed; layers of the model see different keys ({told}), and "
            "full heads would all see the same"
        )
    learning_rate = _rate(options.adapt_rate)
    counts = _counts(options, decoder.config.num_layers, decoder.config.num_kv_heads)
    length, local = sizes(options, decoder, longest)
    tokenizer = read_tokenizer(options.tokenizer, options.model, decoder.config.vocab_size)
    line.show("reading texts")
    adapted = [name for name in names if name in _ADAPTED]
    rows = rungs(max(counts["sets"], 2), counts["adapt_steps"])[-1][1] if adapted else 0
    texts, rows_read = read_texts(options.data, tokenizer, length, counts["texts"], rows)
    subject = Subject(decoder, local, length, tokenizer, texts)
    settings = {"model": options.model, **subject.settings, "questions": counts["questions"]}
    kept = _Kept(out.with_suffix(".partial.json"), settings, line)
    tasks = _tasks(counts, subject)
    measures = _measures(counts, subject, *tasks)
    with Crew(others, partial(decoder_of, options.model), local) as crew:
        probe = Probe(decoder, local, kept.notebook, crew)
        found = _Found({}, {})
        for name in names:
            if name not in adapted:
                _find(found, measures[name], probe, length, line)
        if adapted:
            sets = _sets(found, counts, probe.num_layers)
            for task in tasks:
                measure = Adapted(task, sets, rows_read, counts["adapt_steps"], learning_rate)
                if measure.name in adapted:
                    _find(found, measure, probe, length, line)
    line.clear()
    for name, why in found.refused.items():
        print(f"{name}: {why}\n")
    if not found.measures:
        kept_in = (
            f"; to probe something else, remove {str(kept.path)!r}, which keeps what was measured, or write to another "
            "--out"
            if kept.path.exists()
            else ""
        )
        raise ValueError(
            f"--measures: {options.measures!r} ranks no layer of this model, for the reasons above{kept_in}"
        )
    content = {
        "lg_probe": 1, "num_layers": decoder.config.num_layers, "num_kv_heads": decoder.config.num_kv_heads,
        "local": str(local), "settings": settings, "measures": found.measures, "refused": found.refused,
        "made": {"date": datetime.date.today().isoformat(), **versions(torch.device(device))},
    }  # fmt: skip
    _draw(out.with_suffix(".png"), found.measures, f"{Path(options.model).name}, {length:,} tokens, {local}")
    write(out, f"{json.dumps(content, indent=1)}\n".encode(), "--out")
    kept.path.unlink(missing_ok=True)
    print(table(found.measures))
    print(f"\nwritten  {out}, {out.with_suffix('.png')}\n")
    if by_heads and set(OF_HEADS) & set(found.measures):
        print(heads(found.measures, counts["full_heads"], local, sees[0]))
    else:
        if by_heads:
            print(
                f"--full_heads: {counts['full_heads']} heads cannot be chosen, since neither gates nor mass could be "
                "measured; this is a schedule of layers\n"
            )
        print(schedule(found.measures, counts["full_layers"], out, local, sees))


def _counts(options: Namespace, num_layers: int, num_kv_heads: int) -> dict[str, int]:
    """The options that are numbers.

    Raises:
        ValueError: if one is none, or more is asked for than the model has.
    """
    layers_told, full_told = bool(options.layers), bool(options.full_layers)
    options.layers = options.layers or str(min(8, num_layers))
    options.full_layers = options.full_layers or str(min(4, num_layers))
    options.full_heads = options.full_heads or "1"
    most = {"layers": num_layers, "full_layers": num_layers, "full_heads": num_layers * num_kv_heads}
    names = ("texts", "questions", "candidates", "steps", "sets", "adapt_steps", *most)
    counts = {name: number(getattr(options, name), name, 1 << 20) for name in names}
    for name, there in most.items():
        if counts[name] > there:
            what = "KV heads" if name == "full_heads" else "layers"
            raise ValueError(f"--{name}: {counts[name]} is not allowed; the model has {there} {what}")
    if full_told and counts["full_layers"] > counts["layers"]:
        if layers_told:
            raise ValueError(
                f"--full_layers: {counts['full_layers']} is not allowed with --layers {counts['layers']}, up to which "
                "greedy goes"
            )
        # What is printed must have been looked for.
        counts["layers"] = counts["full_layers"]
    return counts


def _rate(told: str) -> float:
    try:
        rate = float(told)
    except ValueError:
        rate = math.nan
    if not 0 < rate <= 1:
        raise ValueError(f"--adapt_rate: {told!r} is not allowed; it must be a number above 0 and at most 1")
    return rate


def _tasks(counts: Mapping[str, int], subject: Subject) -> tuple[Needle, Context]:
    filler = torch.cat(list(subject.texts))
    needles = Needles((subject.length,), subject.depths(counts["questions"]))
    needle = Needle(haystack(needles, subject.tokenizer, filler[filler != subject.tokenizer.end]))
    targets = min(subject.local.window, subject.length // 4)
    return needle, Context(subject.texts, targets, short=min(subject.local.window, subject.length - targets))


def _measures(counts: Mapping[str, int], subject: Subject, needle: Needle, context: Context) -> dict[str, Measure]:
    """Every measure that needs no other, by its name."""
    measures: list[Measure] = [Mass(subject.texts), Gates(needle.hay, counts["steps"])]
    tasks: tuple[Task, ...] = needle, context
    for task in tasks:
        measures += [OneOut(task), OneIn(task), Greedy(task, counts["layers"], counts["candidates"])]
    return {measure.name: measure for measure in measures}


@dataclass(frozen=True)
class _Found:
    """What each measure found, or why it would rank noise."""

    measures: dict[str, dict[str, Any]]
    refused: dict[str, str]


def _find(found: _Found, measure: Measure, probe: Probe, length: int, line: ProgressLine) -> None:
    passes = measure.passes(probe.num_layers)
    line.show(f"{measure.name}, up to {passes:,.0f} passes, {passes * length:,.0f} tokens")
    began = time.monotonic()
    try:
        finding = measure.run(probe)
    except Unmeasurable as error:
        found.refused[measure.name] = str(error)
        return
    told = {"source": measure.source, "passes": round(passes, 1), "seconds": round(time.monotonic() - began, 1)}
    found.measures[measure.name] = {**told, **finding.plain()}


def _sets(found: _Found, counts: Mapping[str, int], num_layers: int) -> list[list[int]]:
    """Those that are trained: what the other measures propose, and random ones."""
    size = counts["full_layers"]
    proposed = [each["sets"][size - 1] for each in found.measures.values() if len(each["sets"]) >= size]
    return candidates(proposed, num_layers, size, counts["sets"], _SEED)


class _Kept:
    """The notebook, kept in a file.

    Args:
        path: the file.
        settings: what it is for.
        line: where units are told as they are measured.

    Raises:
        ValueError: if the file is damaged, or has units of other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], line: ProgressLine) -> None:
        self.path = path
        self._settings = settings
        known = {}
        if path.is_file():
            try:
                told = json.loads(path.read_text(encoding="utf-8"))
                before, known = told["settings"], told["units"]
                if not (isinstance(before, dict) and isinstance(known, dict)):
                    raise TypeError(type(before), type(known))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ValueError(_damaged(path)) from error
            other = [name for name in settings if before.get(name) != settings[name]]
            if other:
                raise ValueError(
                    f"--out: {str(path)!r} is of a probe that was stopped, of another {', '.join(other)}; remove it, "
                    "or write to another file"
                )
            if not all(is_whole(name, value, settings) for name, value in known.items()):
                raise ValueError(_damaged(path))
        self.notebook = Notebook(known, self._write, line.show)

    def _write(self, units: Mapping[str, Any]) -> None:
        content = json.dumps({"settings": self._settings, "units": units})
        write(self.path, content.encode(), "--out")


def _damaged(path: Path) -> str:
    return f"--out: {str(path)!r} cannot be read as a probe that was stopped, since it is damaged; remove it"


def _draw(path: Path, measures: Mapping[str, Mapping[str, Any]], title: str) -> None:
    image = io.BytesIO()
    plot(measures, title).save(image, "PNG")
    write(path, image.getvalue(), "--out")
