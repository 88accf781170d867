"""``lg bench attention``: how fast each implementation of attention is here, as a table, a picture and a file."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lg.cli.lengths import tokens_in
from lg.cli.written import file_for, write

if TYPE_CHECKING:
    import torch

    from lg.attention import Pattern
    from lg.attention.bench import Case, Row
    from lg.attention.impl import Implementation

HELP = """usage: lg bench attention [--OPTION=VALUE ...]
       lg bench train --config FILE [--key=value ...] [--OPTION=VALUE ...]      (see lg bench train --help)
       lg bench prefill [--OPTION=VALUE ...]                                    (see lg bench prefill --help)
       lg bench decode [--OPTION=VALUE ...]                                     (see lg bench decode --help)

Times forward and backward passes of attention and says what each costs: milliseconds, useful and executed TFLOP/s, peak
memory, and how many times as fast as the best full causal attention of the same shape. Outputs and gradients are held
against those of the first implementation that runs.

  lg bench attention                                           lg's own patterns, at 32K and 128K tokens on a GPU
  lg bench attention --patterns=SinkWindow --impls=flex,sdpa   any pattern of `lg patterns`, at its size to train with
  lg bench attention --update                                  and from now on `auto` picks by these figures

options, with what they are on a GPU and on a CPU:
  --patterns A,B   causal,window_4k,sink_window_2k,strided_2k
  --impls A,B      all but dense, whose memory grows with the square of the length; on a GPU all but gather too
  --lengths A,B    32K,128K; 2K
  --documents N    1; how many documents of mixed lengths a sequence is packed of
  --heads N        32; 4
  --kv_heads N     8; 2
  --width N        128; 64: features of a head
  --dtype NAME     bfloat16; float32: or float16
  --device NAME    cuda if there is one, else cpu
  --seconds X      0.7: how long each pass is timed, about
  --out FILE       a .png to draw into
  --json FILE      a .json for the figures
  --update         keep the figures in lg's cache folder for `auto`
"""

_DTYPES = ("bfloat16", "float16", "float32")
_ON_GPU = {"lengths": "32K,128K", "heads": "32", "kv_heads": "8", "width": "128", "dtype": "bfloat16"}
_ON_CPU = {"lengths": "2K", "heads": "4", "kv_heads": "2", "width": "64", "dtype": "float32"}


def run(args: list[str]) -> None:
    """Measures, and prints row by row.

    Args:
        args: "bench", and the words after it.

    Raises:
        ValueError: when the input is at fault.
    """
    words = args[1:]
    if words[:1] == ["train"]:
        from lg.cli import bench_train

        bench_train.run(words[1:])
        return
    if words[:1] in (["prefill"], ["decode"]):
        from lg.cli import bench_inference

        bench_inference.run(words[0], words[1:])
        return
    if not words or {"-h", "--help"} & set(words):
        print(HELP, end="")
        return
    if words[0] != "attention":
        raise ValueError(
            f"{words[0]!r} is not a benchmark; allowed: attention, train, prefill, decode (see lg bench --help)"
        )
    options = _options(words[1:])
    picture, figures = file_for(options.out, "--out", ".png"), file_for(options.json, "--json", ".json")

    from lg.attention.bench import measured
    from lg.cli.bench_table import heading, label, line, unit_of

    device = device_named(options.device)
    for name, value in (_ON_GPU if device.type == "cuda" else _ON_CPU).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    cases, implementations = list(_cases(options, device)), _implementations(options.impls, device)
    seconds = _seconds(options.seconds)
    print(heading(cases[0]), flush=True)
    rows: list[Row] = []
    try:
        for case in cases:
            print(f"\n{label(case)}", flush=True)
            for row in measured(case, implementations, seconds):
                rows.append(row)
                print(line(row, _causal(rows, row), unit_of(device)), flush=True)
                if figures:
                    # What is measured is kept, whatever ends the command.
                    text = json.dumps([each.plain() for each in rows], indent=1)
                    write(figures, f"{text}\n".encode(), "--json")
    except KeyboardInterrupt:
        print("lg bench: interrupted; a file of figures has what was measured", file=sys.stderr)
        raise SystemExit(130) from None
    if figures:
        print(f"\nwritten  {figures}")
    if picture:
        _draw(picture, rows, device)
    if options.update:
        _update(device, rows)


def _causal(rows: Sequence[Row], beside: Row) -> list[Row]:
    """The rows of full causal attention that another pattern's is told beside."""
    return [row for row in rows if (row.case, row.length) == ("causal", beside.length) and beside.case != "causal"]


def _draw(path: Path, rows: Sequence[Row], device: torch.device) -> None:
    from lg.cli.bench_plot import plot
    from lg.cli.bench_table import unit_of

    drawn = plot(rows, unit_of(device))
    if drawn is None:
        raise ValueError(f"--out: {str(path)!r} is not written, since nothing could be timed")
    image = io.BytesIO()
    drawn.save(image, "PNG")
    write(path, image.getvalue(), "--out")
    print(f"\nwritten  {path}")


class Parser(argparse.ArgumentParser):
    """Raises what it has to say."""

    def error(self, message: str) -> NoReturn:
        """Raises ValueError."""
        raise ValueError(f"{message} (see {self.prog} --help)")


def _options(words: list[str]) -> argparse.Namespace:
    parser = Parser(prog="lg bench", allow_abbrev=False, add_help=False)
    for name in ("patterns", "impls", "lengths", "heads", "kv_heads", "width", "dtype", "device", "out", "json"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--documents", default="1")
    parser.add_argument("--seconds", default="0.7")
    parser.add_argument("--update", action="store_true")
    return parser.parse_args(words)


def device_named(name: str | None) -> torch.device:
    """The device of ``--device``: by default a GPU, if there is one.

    Raises:
        ValueError: there is no such device.
    """
    import torch

    if name is None:
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0]
        raise ValueError(f"--device: {name!r} is not allowed; it must be a device of this machine ({said})") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device: {name!r} is not allowed; it must be cpu, cuda or cuda:N")
    return device


def _cases(options: argparse.Namespace, device: torch.device) -> Iterator[Case]:
    """Length by length, full causal attention first: the others are told beside it."""
    import torch

    from lg.attention.bench import Case, mixed

    patterns = _patterns(options.patterns)
    lengths = [tokens_in(word, "--lengths") for word in options.lengths.split(",")]
    heads, heads_kv = (number(getattr(options, name), name, 1024) for name in ("heads", "kv_heads"))
    width, documents = number(options.width, "width", 1024), number(options.documents, "documents", 1 << 16)
    if heads % heads_kv:
        raise ValueError(f"--kv_heads: {heads_kv} is not allowed; {heads} query heads must be a multiple of it")
    if options.dtype not in _DTYPES:
        raise ValueError(f"--dtype: {options.dtype!r} is not allowed; it must be one of {', '.join(_DTYPES)}")
    if documents > min(lengths):
        raise ValueError(f"--documents: {documents} is not allowed in {min(lengths)} tokens; each has at least one")
    for length in dict.fromkeys(lengths):
        for name, pattern in patterns.items():
            packed = mixed(length, documents, pattern.attributes)
            case = Case(name, pattern, packed, device, heads, heads_kv, width, getattr(torch, options.dtype))
            case.tiles()  # a pattern that does not fit is told before anything is measured
            yield case


def _patterns(words: str | None) -> Mapping[str, Pattern]:
    """Patterns by name, full causal attention first."""
    from lg.attention.bench import PATTERNS
    from lg.attention.gallery import EXAMPLES

    known = {**{name: example.real for name, example in EXAMPLES.items()}, **PATTERNS}
    names = list(PATTERNS) if words is None else words.split(",")
    for name in names:
        if name not in known:
            raise ValueError(f"--patterns: {name!r} is not known; allowed: {', '.join((*PATTERNS, *EXAMPLES))}")
    return {name: known[name] for name in sorted(dict.fromkeys(names), key=lambda name: name != "causal")}


def _implementations(words: str | None, device: torch.device) -> Mapping[str, Implementation]:
    from lg.attention.attend import IMPLEMENTATIONS

    large = ("dense",) if device.type == "cpu" else ("dense", "gather")
    names = [name for name in IMPLEMENTATIONS if name not in large] if words is None else words.split(",")
    for name in names:
        if name not in IMPLEMENTATIONS:
            raise ValueError(f"--impls: {name!r} is not known; allowed: {', '.join(IMPLEMENTATIONS)}")
    return {name: IMPLEMENTATIONS[name] for name in dict.fromkeys(names)}


def number(word: str, name: str, most: int) -> int:
    """What an option's word stands for.

    Raises:
        ValueError: if it is no number from 1 to ``most``.
    """
    if not (word.isascii() and word.isdecimal()) or not 1 <= int(word) <= most:
        raise ValueError(f"--{name}: {word!r} is not allowed; it must be a number from 1 to {most:,}")
    return int(word)


def _seconds(word: str) -> float:
    try:
        seconds = float(word)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 60:
        raise ValueError(f"--seconds: {word!r} is not allowed; it must be a number above 0, of at most 60")
    return seconds


def _update(device: torch.device, rows: Sequence[Row]) -> None:
    from lg.attention.rates import table

    path, text = table.updated(device, table.rows_of(row.plain() for row in rows))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"LG_CACHE: {str(path.parent)!r} cannot be written ({error.strerror}); a folder on a disk with room is "
            "needed, named in the environment as LG_CACHE"
        ) from error
    write(path, text.encode(), "--update")
    print(f"\nauto picks by  {path}")
