"""The ``lg`` command: trains and validates what a YAML file describes.

``--help`` and ``--version`` answer before torch or Lightning is imported. A mistake of the
user's is answered with one sentence and exit code 2; ``LG_TRACEBACK=1`` shows where it arose.
"""

from __future__ import annotations

import errno
import importlib
import os
import re
import sys
import traceback
import warnings
from typing import TYPE_CHECKING

from lg import __version__

if TYPE_CHECKING:
    from types import TracebackType

COMMANDS = {
    "fit": "train a model",
    "validate": "measure a checkpoint on the held-out documents",
    "predict": "write on from the beginnings of the held-out documents, into a file",
    "cost": "count what a model costs at any length, beside full attention",
    "plan": "predict memory and time of training on GPUs, without one",
    "patterns": "draw what layers may see: every pattern, or those of a configuration",
    "consolidate": "make one file of a checkpoint that many devices wrote into a folder",
    "import": "write a pretrained model as a folder to train from, its tokenizer beside it",
    "export": "write a trained model as a folder that transformers loads",
    "generate": "write on from a prompt",
    "serve": "serve a model over HTTP, to clients of OpenAI's API",
    "merge": "write the weighted average of models of one shape",
    "probe": "measure which layers of a pretrained model must see everything",
    "data": "fetch real texts and tokenizers, and list those that there are",
    "check": "find out whether attention is right on this machine, in every way that a model would use it",
    "bench": "time attention, training steps, the reading of prompts or the writing of tokens",
}

# Commands that need no Trainer: each has a module with a `run` of its own.
_MODULES = {
    name: f"lg.cli.{name}"
    for name in (
        "cost",
        "plan",
        "patterns",
        "consolidate",
        "export",
        "generate",
        "serve",
        "merge",
        "probe",
        "data",
        "check",
        "bench",
    )
} | {"import": "lg.cli.import_"}

# Characters of the beginning and of the end: of a word, such as a value that fills pages, and of a message. A list of
# names, as of every tensor of a large model, is whole.
_SHOWN_OF_WORD, _SHOWN = 200, 50_000

HELP = f"""usage: lg COMMAND [--config FILE ...] [--key=value ...]

Trains hybrid decoders: language models whose layers see different parts of a long context.

commands:
{chr(10).join(f"  {name:<12} {what}" for name, what in COMMANDS.items())}

  lg fit --config configs/hybrid.yaml                           the flagship, on this machine
  lg fit --config configs/hybrid.yaml --trainer.max_steps=20    any key of the YAML is an option
  lg fit --config configs/hybrid.yaml --print_config            the whole configuration, resolved
  lg fit --config stages.yaml --stage 64k                       one stage, of a YAML that lists stages
  lg fit --help                                                 every option
  lg predict --config FILE --ckpt_path last --out FILE.jsonl    what it writes on held-out documents
  lg cost --config configs/hybrid.yaml --lengths 32K,1M         what it costs there
  lg plan --config configs/hybrid.yaml --devices 4              what it would hold on four GPUs
  lg patterns SinkWindow --window=64                            what a pattern sees, drawn
  lg data fetch austen                                          the six novels, to train on
  lg generate --model models/mine --prompt "Once upon"          what a model writes on
  lg check --config configs/hybrid.yaml                         whether its attention is right here
  lg bench attention                                            which attention is fastest here

A YAML file may build on another (`base: base.yaml`). LG_TRACEBACK=1 shows where an error arose.
"""


def entry() -> None:
    """The console script: ``main``, with the working directory importable."""
    # Unlike `python -m`, a console script does not look for modules where it is run, and a user's
    # own pattern is there.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        code = main()
        sys.stdout.flush()
    except OSError as error:
        code = _without_stdout(error)
    sys.exit(code)


def _without_stdout(error: OSError) -> int:
    """The exit code, where it is stdout that cannot be written any more; else the error is raised.

    Its reader may have gone, as in ``lg patterns | head``, or the disk be full.
    """
    if error.filename is not None or error.errno not in (errno.EPIPE, errno.ENOSPC):
        raise error
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except BrokenPipeError:
        code = 141  # what shells say of a command that its reader ended
    except OSError as again:
        print(f"lg: standard output cannot be written: {again.strerror}", file=sys.stderr)
        code = 2
    else:
        raise error
    # What is left in the buffer goes nowhere, so that Python does not complain of it either.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def main(args: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        args: the words after ``lg``; by default those of the shell.

    Returns:
        The exit code: 0 on success, 2 when the user's input is refused, with one message on stderr.
    """
    args = sys.argv[1:] if args is None else args
    command = args[0] if args else "--help"
    if command in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if command == "--version":
        print(f"lg {__version__}")
        return 0
    if command not in COMMANDS:
        print(
            f"lg: {command!r} is not a command; allowed: {', '.join(COMMANDS)} (see lg --help)",
            file=sys.stderr,
        )
        return 2
    return _run(args)


def _run(args: list[str]) -> int:
    # torch 2.13 deprecates what Lightning 2.6 calls at each batch: not a matter of the user's.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    # Lightning counts the cores and advises more workers; lg's rows are in memory.
    warnings.filterwarnings("ignore", message=r"The .*dataloader.* does not have many workers")
    try:
        importlib.import_module(_MODULES.get(args[0], "lg.cli.commands")).run(args)
    except SystemExit as stop:  # --help and --print_config end so
        return stop.code if isinstance(stop.code, int) else 0
    except Exception as error:
        if not _is_told(error):
            raise
        if os.environ.get("LG_TRACEBACK") == "1":
            traceback.print_exc()
        print(f"lg {args[0]}: {_shown(error)}", file=sys.stderr)
        return 2
    return 0


def _shown(error: Exception) -> str:
    """What an error says, without the middle of a value that fills pages."""
    return _cut(re.sub(r"\S+", lambda word: _cut(word[0], _SHOWN_OF_WORD), str(error)), _SHOWN)


def _cut(said: str, shown: int) -> str:
    return said if len(said) <= 2 * shown else f"{said[:shown]} ... {said[-shown:]}"


def _is_told(error: Exception) -> bool:
    """Whether an error speaks to the user."""
    if isinstance(error, (ValueError, ImportError)) and raised_in_lg(error.__traceback__):
        return True
    # Not every command needs Lightning.
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from lg.cli.trouble import Refused

    return isinstance(error, (Refused, MisconfigurationException))


def raised_in_lg(trace: TracebackType | None) -> bool:
    """Whether lg's own code raised it: then it speaks to the user. What torch raises is a fault of lg's."""
    if trace is None:
        return False
    while trace.tb_next:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__")).split(".")[0] == "lg"
