"""``lg bench prefill`` and ``lg bench decode``: how fast prompts are read and tokens written, and in what memory."""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lg.cli.bench import Parser, device_named, number
from lg.cli.figures import figure
from lg.cli.kept_as import check, dtype_of, formats_of
from lg.cli.lengths import tokens_in
from lg.cli.written import file_for, write

if TYPE_CHECKING:
    import torch

    from lg.attention import Pattern
    from lg.inference.formats import Format
    from lg.models.config import DecoderConfig
    from lg.models.decoder import Decoder

_OPTIONS = """options, with what they are on a GPU and on a CPU:
  --preset NAME     llama-3-8b; tiny: the decoder's shape; or
  --config FILE     a YAML of lg fit, and any of its --model options: shape, patterns and schedule
  --schedules A|B   full, and full with 62.5% of the layers sink_window_2k; with --config that of the model. Names are
                    full, those of lg bench attention and of lg patterns; with --config its own
  --lengths A,B     32K,128K; 1K
  --batch A,B       1: sequences; "most" for as many as fit
  --kv A,B          auto: as the weights; or float32, bfloat16, float16, int8, int8_int4 (keys, values), int4
  --dtype NAME      bfloat16; float32: of the weights
  --device NAME     cuda if there is one, else cpu
  --eager           leave the decoder as it is; on a GPU it is compiled, as by lg generate with --compile
  --json FILE       a .json for the figures
"""

HELP = {
    "prefill": f"""usage: lg bench prefill [--OPTION=VALUE ...]

Reads random prompts with random weights, in chunks, one sequence after another, and says how long it is until all have
their first token, what keys and values take then, and the peak of memory. Full attention is read by the same code.

  lg bench prefill --preset=llama-2-7b --lengths=128K

{_OPTIONS}  --chunk N         16K; 512: tokens that are read at once
  --repeats N       2: how often; the fastest run is told, and the first one compiles
""",
    "decode": f"""usage: lg bench decode [--OPTION=VALUE ...]

Writes after prompts of some length with random weights, a token of every sequence in each step, and says what a step
takes. The prompts are not read: pages are taken as if they had been, and filled with random keys and values. Beside it
stands what a step takes at least: the bytes of the weights and of the pages that are listed, over the bandwidth in the
GPU's data sheet. Full attention is measured by the same code.

  lg bench decode --preset=llama-3-8b --lengths=32K,128K --kv=auto,int8,int4 --batch=1,most

{_OPTIONS}  --steps N         64; 8: that are timed
  --graphs NAME     auto: steps are CUDA graphs where that is possible; or yes, no
""",
}

_ON_GPU = {"preset": "llama-3-8b", "lengths": "32K,128K", "dtype": "bfloat16", "chunk": "16K", "steps": "64"}
_ON_CPU = {"preset": "tiny", "lengths": "1K", "dtype": "float32", "chunk": "512", "steps": "8"}
_GRAPHS: Mapping[str, Any] = {"auto": "auto", "yes": True, "no": False}
_WARM_UP = 3
# Tokens that are written after a prompt that is read, as far as its pages know.
_LATER = 1024
# Of the memory that is free once the weights are there, what pages may take where as many fit as can.
_SHARE = 0.9
_GIB = 2**30
_HEADS = {
    "prefill": f"{'first token':>12} {'tokens/s':>10} {'KV held':>10} {'of full':>8} {'peak':>10}",
    "decode": f"{'a step':>12} {'at least':>10} {'share':>7} {'tokens/s':>9} {'KV read':>10} {'of full':>8} "
    f"{'peak':>10}",
}


@dataclass(frozen=True)
class _Model:
    """What is timed, under several schedules."""

    name: str
    config: DecoderConfig
    patterns: Mapping[str, Pattern]
    schedules: Sequence[str]

    def layers(self, schedule: str) -> list[Pattern]:
        from lg.attention.schedule import layers

        return [self.patterns[name] for name in layers(schedule, self.config.num_layers, list(self.patterns))]


def run(what: str, words: list[str]) -> None:
    """Measures case by case, and prints a line for each.

    Args:
        what: "prefill" or "decode".
        words: those after it.

    Raises:
        ValueError: when the input is at fault.
    """
    if {"-h", "--help"} & set(words):
        print(HELP[what], end="")
        return
    options, rest = _options(what, words)
    device = device_named(options.device)
    for name, value in (_ON_GPU if device.type == "cuda" else _ON_CPU).items():
        if getattr(options, name, value) is None and not (name == "preset" and options.config):
            setattr(options, name, value)
    figures = file_for(options.json, "--json", ".json")
    model = _read(options, rest)
    lengths = [tokens_in(word, "--lengths") for word in options.lengths.split(",")]
    batches = [_batch(word) for word in options.batch.split(",")]
    formats = {}
    for word in options.kv.split(","):
        check(argparse.Namespace(dtype=options.dtype, kv=word))
        formats[word] = formats_of(word, dtype_of(options.dtype, device))
    timed = _Timed(what, options)
    print(_heading(model, device, options.dtype), flush=True)
    width = max(len("schedule"), *(len(schedule) for schedule in model.schedules))
    print(f"{'schedule':<{width}} {'tokens':>9} {'batch':>5} {'kv':>8} {_HEADS[what]}", flush=True)
    rows: list[dict[str, Any]] = []
    try:
        for schedule in model.schedules:
            decoder = _decoder(model, schedule, device, options)
            for length, (kv, form), batch in itertools.product(lengths, formats.items(), batches):
                case = {
                    "model": model.name,
                    "schedule": schedule,
                    "length": length,
                    "batch": batch,
                    "impl": "lg",
                    "kv": kv,
                }
                rows.append({**case, **timed.row(decoder, length, batch, form)})
                print(_line(what, rows[-1], width), flush=True)
                if figures:
                    text = json.dumps({"versions": _versions(), "device": _name(device), "rows": rows}, indent=1)
                    write(figures, f"{text}\n".encode(), "--json")
            del decoder
            _tidy(device)
    except KeyboardInterrupt:
        print("lg bench: interrupted; a file of figures has what was measured", file=sys.stderr)
        raise SystemExit(130) from None
    if figures:
        print(f"\nwritten  {figures}")


def _options(what: str, words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(prog=f"lg bench {what}", allow_abbrev=False, add_help=False)
    for name in ("preset", "schedules", "lengths", "dtype", "device", "json"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--config", action="append", default=[])
    for name, default in (("batch", "1"), ("kv", "auto")):
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--eager", action="store_true")
    own = {"prefill": (("chunk", None), ("repeats", "2")), "decode": (("steps", None), ("graphs", "auto"))}
    for name, preset in own[what]:
        parser.add_argument(f"--{name}", default=preset)
    options, rest = parser.parse_known_args(words)
    if options.preset and options.config:
        raise ValueError(f"--preset: {options.preset!r} is not allowed beside --config, which tells the shape")
    if rest and not options.config:
        raise ValueError(f"{rest[0]!r} is not an option (see lg bench {what} --help)")
    return options, rest


def _read(options: argparse.Namespace, rest: list[str]) -> _Model:
    """The model that the options name.

    Raises:
        ValueError: there is none such, or a schedule does not fit it.
    """
    if options.config:
        model = _of_config([word for file in options.config for word in ("--config", file)] + rest)
    else:
        model = _of_preset(options.preset)
    if options.schedules is not None:
        schedules = [word.strip() for word in options.schedules.split("|")]
        model = _Model(model.name, model.config, model.patterns, schedules)
    for schedule in model.schedules:
        model.layers(schedule)
    return model


def _of_preset(name: str) -> _Model:
    from lg.attention import Causal
    from lg.attention.bench import PATTERNS
    from lg.attention.gallery import EXAMPLES
    from lg.attention.schedule import MiddleFull, written
    from lg.models.presets import PRESETS

    if name not in PRESETS:
        raise ValueError(f"--preset: {name!r} is not a preset; allowed: {', '.join(PRESETS)}")
    config = PRESETS[name]
    hybrid = MiddleFull(sparse="sink_window_2k").layers(config.num_layers)
    patterns = {"full": Causal(), **{one: example.real for one, example in EXAMPLES.items()}, **PATTERNS}
    return _Model(name, config, patterns, [f"{config.num_layers}*full", written(hybrid)])


def _of_config(words: list[str]) -> _Model:
    from lg.attention import Pattern
    from lg.attention.schedule import written
    from lg.cli.model_part import model_parser, read_model

    parser = model_parser("bench", "Times how a model reads and writes.")
    model, _, _ = read_model(parser, words, [])
    patterns = {name: one for name, one in model.patterns.items() if isinstance(one, Pattern)}
    return _Model(model.name, model.decoder_config, patterns, [written(model.evaluated_schedule)])


def _batch(word: str) -> int | str:
    return word if word == "most" else number(word, "batch", 1024)


def _decoder(model: _Model, schedule: str, device: torch.device, options: argparse.Namespace) -> Decoder:
    import torch

    from lg.inference.bench import random_decoder
    from lg.inference.compiled import compiled

    decoder = random_decoder(model.config, model.layers(schedule), device, getattr(torch, options.dtype))
    # What is compiled for one schedule serves the next.
    return compiled(decoder) if device.type == "cuda" and not options.eager else decoder


class _Timed:
    """Times one case."""

    def __init__(self, what: str, options: argparse.Namespace) -> None:
        self.what = what
        self.steps = self.repeats = self.chunk = 0
        self.graphs: Any = "auto"
        if what == "prefill":
            self.chunk, self.repeats = tokens_in(options.chunk, "--chunk"), number(options.repeats, "repeats", 100)
            return
        self.steps = number(options.steps, "steps", 100_000)
        if options.graphs not in _GRAPHS:
            raise ValueError(f"--graphs: {options.graphs!r} is not allowed; allowed are {', '.join(_GRAPHS)}")
        self.graphs = _GRAPHS[options.graphs]

    def row(self, decoder: Decoder, length: int, batch: int | str, form: tuple[Format, Format]) -> dict[str, Any]:
        """What is measured, or why it is not."""
        import torch

        device = decoder.embedding.weight.device
        _tidy(device)
        try:
            return self._measured(decoder, length, batch, form)
        except torch.OutOfMemoryError as error:
            return {"error": str(error).partition("\n")[0]}

    def _measured(self, decoder: Decoder, length: int, batch: int | str, form: tuple[Format, Format]) -> dict[str, Any]:
        import torch

        from lg.inference import Runner
        from lg.inference.bench import decode, prefill
        from lg.inference.room import free_memory, largest_batch, room_bytes

        device = decoder.embedding.weight.device
        longest = length + (_WARM_UP + self.steps if self.what == "decode" else _LATER)
        free = int(_SHARE * free_memory(device))
        sequences = largest_batch(decoder, longest, form, free) if isinstance(batch, str) else batch
        needed = room_bytes(decoder, longest, max(sequences, 1), formats=form)
        if needed > free:
            return {"error": f"keys and values would take {needed / 1e9:,.1f} GB, where there are {free / 1e9:,.1f} GB"}
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        runner = Runner(decoder, longest, sequences, formats=form, graphs=self.graphs)
        row: dict[str, Any] = {"batch": sequences, "kv_room_gib": runner.cache.room_bytes / _GIB}
        if self.what == "prefill":
            told = prefill(runner, length, sequences, self.chunk, self.repeats)
            row |= {"prefill_s": min(told.seconds), "prefill_runs_s": told.seconds, "chunk": self.chunk}
            row |= {"kv_gib": told.kv_bytes / _GIB, "kv_share": told.kv_share}
        else:
            seconds, bound = decode(runner, length, sequences, self.steps, _WARM_UP)
            row |= {"decode_ms_per_token": 1e3 * seconds, "steps": self.steps, "graphs": runner.records}
            row |= {"kv_gib": bound.kv_bytes / _GIB, "kv_share": bound.kv_share}
            row |= {
                "weights_gib": bound.weight_bytes / _GIB,
                **_bound(device, seconds, bound.weight_bytes + bound.kv_bytes),
            }
        if on_gpu:
            row["peak_gib"] = torch.cuda.max_memory_allocated(device) / _GIB
        return row


def _bound(device: torch.device, seconds: float, num_bytes: int) -> dict[str, float]:
    """What a step takes at least, if the device's bandwidth is known."""
    bandwidth = _bandwidth(device)
    if bandwidth is None:
        return {}
    return {"bound_ms": 1e3 * num_bytes / bandwidth, "bandwidth_share": num_bytes / bandwidth / seconds}


def _bandwidth(device: torch.device) -> float | None:
    from lg.models.devices import of_kind

    known = of_kind(_name(device)) if device.type == "cuda" else None
    return None if known is None else known.bandwidth


def _name(device: torch.device) -> str:
    import torch

    on_gpu = device.type == "cuda"
    return torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} threads"


def _versions() -> dict[str, str]:
    installed = {found.metadata["Name"] for found in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in ("torch", "triton") if name in installed}


def _heading(model: _Model, device: torch.device, dtype: str) -> str:
    bandwidth = _bandwidth(device)
    packages = ", ".join(f"{name} {version}" for name, version in _versions().items())
    told = "" if bandwidth is None else f"; data sheet: {bandwidth / 1e12:.3g} TB/s"
    return f"{_name(device)}{told}; {packages}\n{model.name}, random weights in {dtype}\n"


def _line(what: str, row: Mapping[str, Any], width: int) -> str:
    begin = f"{row['schedule']:<{width}} {row['length']:>9,} {row['batch']:>5} {row['kv']:>8}"
    return f"{begin} {' '.join(_figures(what, row))}".rstrip()


def _figures(what: str, row: Mapping[str, Any]) -> Iterator[str]:
    if "error" in row:
        yield f" failed: {row['error']}"
        return
    if what == "prefill":
        yield f"{row['prefill_s']:>10.3f} s"
        yield f"{row['batch'] * row['length'] / row['prefill_s']:>10,.0f}"
    else:
        known = "bound_ms" in row
        yield f"{row['decode_ms_per_token']:>9.3f} ms"
        yield f"{row['bound_ms']:>7.3f} ms" if known else " " * 10
        yield f"{100 * row['bandwidth_share']:>6.1f}%" if known else " " * 7
        yield f"{1e3 * row['batch'] / row['decode_ms_per_token']:>9,.0f}"
    yield f"{figure(row['kv_gib']):>6} GiB"
    yield f"{100 * row['kv_share']:>7.1f}%"
    yield f"{row['peak_gib']:>6.1f} GiB" if "peak_gib" in row else ""


def _tidy(device: torch.device) -> None:
    """Gives back what the case before has left."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
