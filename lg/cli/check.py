"""``lg check``: whether the attention that a configuration would use, or any there is, is right on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lg.cli.progress import ProgressLine
from lg.cli.written import file_for, write

if TYPE_CHECKING:
    import torch

    from lg.attention import Pattern
    from lg.attention.check.sweep import Row
    from lg.cli.configuration import Config

HELP = """usage: lg check --config FILE [--key=value ...] [--OPTION=VALUE ...]
       lg check --all [--OPTION=VALUE ...]

Computes small random problems by each implementation of attention, forward and backward, in memory full of NaN, and
holds what it gives to float64: at most twice the error of dense attention in the same type. Then it probes: what one
document holds may not change a bit of another, nor keys that a query does not see what it gets; and through a window of
1 come the values themselves.

What fails is refused from then on by `auto` on this machine; what was found is remembered until torch, triton,
flash-attn-4 or lg's own kernels change.

  lg check --config configs/hybrid.yaml      the patterns, widths, types and implementations that it would use
  lg check --all                             every pattern, implementation and head width; goes on where it was stopped
  lg check --all --impls=triton --widths=64  some of them

options:
  --again          check what is remembered, too
  --impls A,B      implementations; by default those that the configuration's `attention` may take, or all
  --dtypes A,B     bfloat16, float16, float32, float64; by default that of trainer.precision, or the device's usual one
  --widths A,B     64,80,96,128,256: head widths, with --all
  --patterns A,B   names of the patterns, of the configuration or of lg; by default all
  --device NAME    cuda or cpu; by default that of trainer.accelerator, or cuda if there is one
  --json FILE      a .json for the verdicts
"""

_OWN = ("impls", "dtypes", "widths", "patterns", "device", "json")
_FLAGS = ("all", "again")
_DTYPES = ("bfloat16", "float16", "float32", "float64")
_PRECISIONS = {"16": "float16", "bf": "bfloat16", "32": "float32", "64": "float64"}


def run(args: list[str]) -> None:
    """Checks row by row, and prints the verdicts.

    Args:
        args: "check", and the words after it.

    Raises:
        ValueError: when the input is at fault.
        SystemExit: 1 if something failed.
    """
    words = args[1:]
    if not words or {"-h", "--help"} & set(words):
        print(HELP, end="")
        return
    own, rest = _own_options(words)
    figures = file_for(own.get("json"), "--json", ".json")
    of_model = "all" not in own
    title, rows = _of_configuration(own, rest) if of_model else _of_all(own, rest)

    from lg.attention.attend import IMPLEMENTATIONS
    from lg.attention.check.sweep import Outcome, swept
    from lg.attention.impl.proof import bare
    from lg.cli.check_table import closing, heading, plain, told, without_any

    implementations = {name: bare(implementation) for name, implementation in IMPLEMENTATIONS.items()}
    line, outcomes = ProgressLine(), list[Outcome]()
    print(heading(title, rows), flush=True)

    def tell(row: Row) -> None:
        line.show(f"checking: {len(outcomes) + 1} of {len(rows)}, {row.implementation}, {row.pattern}")

    try:
        for outcome in swept(rows, implementations, "again" in own, tell):
            outcomes.append(outcome)
            line.clear()
            print(told(outcome), flush=True)
    except KeyboardInterrupt:
        line.clear()
        print("lg check: interrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        line.clear()
        if figures:
            write(figures, f"{json.dumps(plain(outcomes), indent=1)}\n".encode(), "--json")
    print(closing(outcomes, of_model))
    if figures:
        print(f"\nwritten  {figures}")
    if any(outcome.state == "failed" for outcome in outcomes) or (of_model and without_any(outcomes)):
        raise SystemExit(1)


def _own_options(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """The options of the command itself, and the others."""
    own: dict[str, str] = {}
    rest: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--")
        if word in [f"--{flag}" for flag in _FLAGS]:
            own[name] = ""
        elif flag.startswith("--") and name in _OWN:
            value = value if equals or not left or left[0].startswith("-") else left.pop(0)
            if not value:
                raise ValueError(f"{flag}: a value is needed (see lg check --help)")
            own[name] = value
        else:
            rest.append(word)
    return own, rest


def _of_all(own: Mapping[str, str], rest: list[str]) -> tuple[str, list[Row]]:
    """Every pattern, implementation and width, or those that are named."""
    from lg.attention.attend import IMPLEMENTATIONS
    from lg.attention.check.sweep import PATTERNS, WIDTHS, of_all

    if rest:
        raise ValueError(f"{rest[0]}: not a known option of lg check --all (see lg check --help)")
    device = _device(own.get("device", "auto"), "--device")
    dtypes = _dtypes(own.get("dtypes", "float32" if device.type == "cpu" else "bfloat16"))
    widths = _widths(own["widths"]) if "widths" in own else WIDTHS
    patterns = _named(PATTERNS, own.get("patterns"), "patterns")
    names = _named(IMPLEMENTATIONS, own.get("impls"), "impls")
    return "every kind of attention", of_all(patterns, widths, dtypes, device, names)


def _of_configuration(own: Mapping[str, str], rest: list[str]) -> tuple[str, list[Row]]:
    """What the model of a configuration would use."""
    from lg.attention import Pattern
    from lg.attention.attend import IMPLEMENTATIONS, candidates
    from lg.attention.check.sweep import of_model
    from lg.attention.schedule import written
    from lg.cli.model_part import model_parser, read_model

    if "widths" in own:
        raise ValueError("--widths: only --all takes it; a configuration's is model.init_args.decoder.head_width")
    model, _, unread = read_model(model_parser("check", "Checks attention."), rest, [*_FLAGS, *_OWN])
    trainer, data = _section(unread, "trainer"), _section(_section(unread, "data"), "init_args")
    accelerator = str(trainer.get("accelerator", "auto"))
    device = _device(own["device"], "--device") if "device" in own else _device(accelerator, "trainer.accelerator")
    dtypes = _dtypes(own["dtypes"]) if "dtypes" in own else [_dtype_of(str(trainer.get("precision") or "32-true"))]
    named = list(_named(IMPLEMENTATIONS, own["impls"], "impls")) if "impls" in own else [model.attention]

    def names(pattern: Pattern) -> Sequence[str]:
        return candidates(device.type, pattern) if named == ["auto"] else named

    used: dict[str, Pattern] = {
        name: pattern for name in model.schedule if isinstance(pattern := model.patterns[name], Pattern)
    }
    patterns = _named(used, own.get("patterns"), "patterns")
    config = model.decoder_config
    heads, width = (config.num_heads, config.num_kv_heads), config.head_width
    rows = of_model(patterns, heads, width, dtypes, device, _packings(data), names)
    if not rows:
        raise ValueError("model.init_args.schedule: no layer of it has a pattern, so there is nothing to check")
    return f"{model.name}: {written(model.schedule)}", rows


def _packings(data: Mapping[str, Any]) -> tuple[bool, ...]:
    """Whether sequences are packed, as far as the data's section says; a document may also fill one alone."""
    if data.get("document_mask", True):
        return (True, False)
    # Each row begins a document.
    return (data.get("batch_size", 1) not in (None, 1),)


def _section(config: Mapping[str, Any], key: str) -> Config:
    section = config.get(key)
    return section if isinstance(section, dict) else {}


def _device(name: str, key: str) -> torch.device:
    """The device that a name of Lightning's or of torch's stands for."""
    import torch

    there = torch.cuda.is_available()
    known = {"auto": "cuda" if there else "cpu", "gpu": "cuda", "cuda": "cuda", "cpu": "cpu"}
    if name not in known:
        raise ValueError(f"{key}: {name!r} is not checked; allowed: {', '.join(known)}")
    if known[name] == "cuda" and not there:
        raise ValueError(f"{key}: {name!r} is not there; torch sees no GPU on this machine (--device cpu)")
    return torch.device("cuda", torch.cuda.current_device()) if known[name] == "cuda" else torch.device("cpu")


def _dtypes(words: str) -> list[torch.dtype]:
    import torch

    for word in words.split(","):
        if word not in _DTYPES:
            raise ValueError(f"--dtypes: {word!r} is not allowed; allowed: {', '.join(_DTYPES)}")
    return [getattr(torch, word) for word in dict.fromkeys(words.split(","))]


def _dtype_of(precision: str) -> torch.dtype:
    """What attention is computed in, by Lightning's name for a precision."""
    import torch

    name = next((name for begin, name in _PRECISIONS.items() if precision.startswith(begin)), None)
    if name is None:
        raise ValueError(
            f"trainer.precision: {precision!r} is not checked; allowed begin with {', '.join(_PRECISIONS)}, or say "
            "what it computes attention in, as in --dtypes bfloat16"
        )
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _widths(words: str) -> list[int]:
    for word in words.split(","):
        if not (word.isascii() and word.isdecimal()) or not 1 <= int(word) <= 1024:
            raise ValueError(f"--widths: {word!r} is not allowed; it must be a head width from 1 to 1024")
    return list(dict.fromkeys(map(int, words.split(","))))


def _named(known: Mapping[str, Any], words: str | None, option: str) -> dict[str, Any]:
    """Those of the known ones that are named; all, if none are."""
    names = list(known) if words is None else words.split(",")
    for name in names:
        if name not in known:
            raise ValueError(f"--{option}: {name!r} is not known; allowed: {', '.join(known)}")
    return {name: known[name] for name in names}
