"""``lg generate``: a model writes on."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lg.cli.kept_as import check, compile_on, dtype_of, formats_of
from lg.cli.progress import ProgressLine

if TYPE_CHECKING:
    from lg.cli.opened import Opened
    from lg.inference import Sampling, Scheduler

HELP = """usage: lg generate --model=PATH (--prompt=TEXT | --prompt-file=FILE | -) [--OPTION=VALUE ...]

Writes on from a prompt. Text goes to standard output as it is written; how fast it was, and what keys and values took,
to standard error. Layers keep only what a later token may see.

  lg generate --model=models/mine --prompt-file=book.txt --max-new-tokens=200
  lg generate --model=models/mine --prompt="Who wrote Emma?" --chat --temperature=0.7 --top-p=0.9 --seed=1
  cat book.txt | lg generate --model=logs/lg/version_0/checkpoints/last.ckpt -

options:
  --model PATH            a checkpoint, a folder of transformers or a GGUF file
  --prompt TEXT           what it begins with; or
  --prompt-file FILE      a file that has it; several are written on together; or
  -                       standard input
  --max-new-tokens N      200
  --temperature X         0, which always takes the likeliest token
  --top-k N               draw from the N likeliest tokens only
  --top-p X               draw from the likeliest tokens that have this share together
  --min-p X               draw from tokens that are at least X times as likely as the likeliest
  --repetition-penalty X  1; above 1, what the text has already is less likely
  --seed N                of the draws; by default another one each time
  --stop TEXT             ends the text; may be given several times
  --chat                  the prompt is what a user says, in the words of the model's chat template
  --prefix N              tokens of the prompt that see one another, for a model with PrefixLM
  --tokenizer PATH        a tokenizer.json, a folder that has one, or "bytes"; by default that of the model, or of its
                          run
  --dtype NAME            of the weights: bfloat16 on a GPU, else float32; or float16
  --kv NAME               of keys and values: auto, as the weights; or float32, bfloat16, float16, int8,
                          int8_int4 (keys in 8 bits, values in 4), int4
  --device NAME           cuda if there is one, else cpu
  --compile               on a GPU: each token is written faster, after tens of seconds at the start
"""

_NUMBERS = {
    "temperature": float,
    "top-k": int,
    "top-p": float,
    "min-p": float,
    "repetition-penalty": float,
    "seed": int,
}
_MOST_NEW = 2**24


def run(args: list[str]) -> None:
    """Reads the model, then writes.

    Args:
        args: "generate", and the words after it.

    Raises:
        ValueError: when the input is at fault; then nothing is written.
    """
    words = args[1:]
    if not words or {"-h", "--help"} & set(words):
        print(HELP, end="")
        return
    options = _options(words)
    sampling, prompts = _sampling(options), _prompts(options)

    from lg.cli.bench import device_named
    from lg.cli.opened import opened

    line = ProgressLine()
    try:
        device = device_named(options.device)
        compile_it = compile_on(device) if options.compile else None
        line.show(f"reading {Path(options.model).name}")
        model = opened(options.model, options.tokenizer, dtype_of(options.dtype, device), device)
        if compile_it:
            compile_it(model.decoder)
        _write(model, prompts, options, sampling, line)
    except KeyboardInterrupt:
        line.clear()
        print("\nlg generate: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    finally:
        line.clear()


def _options(words: list[str]) -> Namespace:
    from lg.cli.bench import Parser

    parser = Parser(prog="lg generate", allow_abbrev=False, add_help=False)
    parser.add_argument("stdin", nargs="*")
    for name in ("model", "prompt", "tokenizer", "dtype", "device"):
        parser.add_argument(f"--{name}")
    for name in ("prompt-file", "stop"):
        parser.add_argument(f"--{name}", action="append", default=[])
    parser.add_argument("--max-new-tokens", type=int, default=200)
    for name, kind in _NUMBERS.items():
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--prefix", type=int)
    parser.add_argument("--kv", default="auto")
    for name in ("chat", "compile"):
        parser.add_argument(f"--{name}", action="store_true")
    options, unknown = parser.parse_known_args(words)
    if unknown or options.stdin not in ([], ["-"]):
        said = (unknown or options.stdin)[0]
        raise ValueError(f"{said}: not an option of lg generate (see lg generate --help)")
    if options.model is None:
        raise ValueError("--model: needed; a checkpoint, a folder of transformers or a GGUF file")
    if sum((options.prompt is not None, bool(options.prompt_file), bool(options.stdin))) != 1:
        raise ValueError("--prompt: one of --prompt, --prompt-file and - is needed, and no two of them")
    if not 1 <= options.max_new_tokens <= _MOST_NEW:
        raise ValueError(
            f"--max-new-tokens: {options.max_new_tokens} is not allowed; it must be at least 1 and at most {_MOST_NEW}"
        )
    check(options)
    if "" in options.stop:
        raise ValueError("--stop: '' is not allowed; it would end every text")
    return options


def _sampling(options: Namespace) -> Sampling:
    from lg.inference import Sampling

    told = {name.replace("-", "_"): getattr(options, name.replace("-", "_")) for name in _NUMBERS}
    told = {name: value for name, value in told.items() if value is not None}
    try:
        sampling = Sampling(**told)
        if sampling.temperature == 0 and (drawn := [name for name in ("top_k", "top_p", "min_p") if name in told]):
            raise ValueError(f"{drawn[0]}: not allowed without --temperature above 0; the likeliest token is taken")
    except ValueError as error:
        name, _, said = str(error).partition(":")
        raise ValueError(f"--{name.replace('_', '-')}:{said}") from error
    return sampling


def _prompts(options: Namespace) -> list[tuple[str, bytes]]:
    """Prompts, each with the name that it is told under."""
    if options.prompt is not None:
        prompts = [("--prompt", options.prompt.encode(errors="surrogateescape"))]
    elif options.stdin:
        prompts = [("standard input", sys.stdin.buffer.read())]
    else:
        prompts = [(name, _read(name)) for name in options.prompt_file]
    for name, text in prompts:
        if not text:
            raise ValueError(f"{name}: the prompt is empty; some text is needed")
    return prompts


def _read(name: str) -> bytes:
    try:
        return Path(name).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"--prompt-file: {name!r} cannot be read: {error.strerror}") from error


def _write(
    model: Opened, prompts: Sequence[tuple[str, bytes]], options: Namespace, sampling: Sampling, line: ProgressLine
) -> None:
    spelling = model.speaking(options.model)
    import torch

    from lg.inference.generate import scheduler_for, stream

    doc = _doc(model, options.prefix)
    texts = [
        spelling.apply([("user", text.decode(errors="replace"))]) if options.chat else spelling.encode(text)
        for _, text in prompts
    ]
    ids = [torch.tensor(text, dtype=torch.int64) for text in texts]
    formats = formats_of(options.kv, model.decoder.embedding.weight.dtype)
    scheduler = scheduler_for(model.decoder, ids, options.max_new_tokens, formats)
    longest = max(map(len, ids)) + options.max_new_tokens
    if model.longest is not None and longest > model.longest:
        line.clear()
        print(f"the model was made for {model.longest:,} tokens, and this may be {longest:,}", file=sys.stderr)

    pieces = stream(
        scheduler,
        ids,
        options.max_new_tokens,
        sampling,
        spelling,
        spelling.ends,
        options.stop,
        doc,
    )
    num_prompt = sum(map(len, ids))
    shown, told, read = _Shown([name for name, _ in prompts]), _Told(scheduler, num_prompt), [0] * len(ids)
    for piece in pieces:
        read[piece.prompt] = piece.event.read
        told.count(piece.event.token is not None, sum(read))
        if sum(read) < num_prompt:
            line.show(f"reading the prompt: {sum(read) / num_prompt:.0%}")
        else:
            line.clear()
        shown.add(piece.prompt, piece.text, piece.finish is not None)
    print(told.lines(), file=sys.stderr)


def _doc(model: Opened, prefix: int | None) -> dict[str, int]:
    """What patterns are told of the prompt.

    Raises:
        ValueError: they ask for something else.
    """
    from lg.inference.runner import patterns_of

    asked = {name for pattern in patterns_of(model.decoder) for name in pattern.attributes}
    if (prefix is not None) != ("prefix" in asked):
        raise ValueError(
            "--prefix: needed; layers ask how many tokens of the prompt see one another"
            if prefix is None
            else f"--prefix: {prefix} is not allowed; no layer asks for it"
        )
    if prefix is not None and prefix < 0:
        raise ValueError(f"--prefix: {prefix} is not allowed; it must be at least 0")
    return {} if prefix is None else {"prefix": prefix}


class _Shown:
    """Texts on standard output: one after another, the first that has not ended as it is written."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._held = [""] * len(names)
        self._ended = [False] * len(names)
        self._now = -1
        self._next()

    def add(self, number: int, text: str, ended: bool) -> None:
        """Takes what is new of one text."""
        self._held[number] += text
        self._ended[number] |= ended
        while self._now < len(self._names):
            print(self._held[self._now], end="", flush=True)
            self._held[self._now] = ""
            if not self._ended[self._now]:
                return
            print(flush=True)
            self._next()

    def _next(self) -> None:
        self._now += 1
        if len(self._names) > 1 and self._now < len(self._names):
            print(f"==> {self._names[self._now]} <==")


class _Told:
    """How fast it was, and what keys and values took."""

    def __init__(self, scheduler: Scheduler, num_prompt: int) -> None:
        self._cache = scheduler.runner.cache
        self._num_prompt = num_prompt
        self._began = time.perf_counter()
        self._read_at: float | None = None
        self._num_after = 0
        # When most tokens were there.
        self._num_tokens = self._num_bytes = self._num_pages = 0

    def count(self, is_token: bool, read: int) -> None:
        """Takes one event: whether it is a token, and how much of all prompts is read."""
        from lg.inference.lifetime import PAGE

        if self._read_at is not None:
            self._num_after += is_token
        elif read == self._num_prompt:
            self._read_at = time.perf_counter()
        lengths = self._cache.lengths.values()
        if sum(lengths) >= self._num_tokens:
            self._num_tokens, self._num_bytes = sum(lengths), self._cache.num_bytes
            self._num_pages = sum(-(-length // PAGE) for length in lengths)

    def lines(self) -> str:
        """What is to be said at the end."""
        ended = time.perf_counter()
        read_at = self._read_at or ended
        told = [f"read {self._num_prompt:,} tokens, {self._num_prompt / (read_at - self._began):,.1f} a second"]
        if self._num_after:
            told.append(f"then wrote {self._num_after:,} tokens, {self._num_after / (ended - read_at):,.1f} a second")
        if self._num_tokens:
            of_page = sum(
                len(kind.layers) * len(group.heads) * kind.page_bytes
                for kind in self._cache.kinds
                for group in kind.groups
            )
            told.append(
                f"keys and values of {self._num_tokens:,} tokens: {self._num_bytes / 1e6:,.2f} MB held, of full "
                f"attention {of_page * self._num_pages / 1e6:,.2f} MB"
            )
        return "\n".join(told)
