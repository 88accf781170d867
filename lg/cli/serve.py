"""``lg serve``: a model behind a port, for the clients of OpenAI's API."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from lg.cli.kept_as import check, compile_on, dtype_of, formats_of
from lg.cli.lengths import tokens_in
from lg.cli.progress import ProgressLine

if TYPE_CHECKING:
    from lg.cli.opened import Opened
    from lg.inference import Scheduler

HELP = """usage: lg serve --model=PATH [--OPTION=VALUE ...]

Serves a model over HTTP as OpenAI's clients speak it: POST /v1/completions and /v1/chat/completions, streamed or not,
GET /v1/models, /health and /metrics. Requests are written together, and layers keep only what a later token may see.
SIGTERM or Ctrl-C ends it: what is being written may finish.

  lg serve --model=models/mine
  lg serve --model=models/mine --host=0.0.0.0 --api-key=SECRET --max-length=128K --memory=40GiB

options:
  --model PATH       a checkpoint, a folder of transformers or a GGUF file
  --host NAME        127.0.0.1, which is this machine alone; another one needs an API key
  --port N           8000; 0 takes one that is free
  --api-key KEY      what clients must have; by default what LG_API_KEY in the environment says, if anything
  --name NAME        what clients call the model; by default the name of the file or folder
  --max-length N     tokens of a prompt and what is written after it; by default what the model was made for, up to 32K
  --slots N          requests that are written at once (16)
  --queue N          requests that may wait beyond them (64)
  --memory SIZE      of keys and values, such as 4GiB; by default what all slots may take, or most of what is free
  --chunk N          tokens of a step (2048)
  --max-body SIZE    of a request (16MiB)
  --grace S          seconds that requests get to finish when the server ends (30)
  --tokenizer PATH   a tokenizer.json, a folder that has one, or "bytes"; by default that of the model, or of its
                     run
  --dtype NAME       of the weights: bfloat16 on a GPU, else float32; or float16
  --kv NAME          of keys and values: auto, as the weights; or float32, bfloat16, float16, int8,
                     int8_int4 (keys in 8 bits, values in 4), int4
  --device NAME      cuda if there is one, else cpu
  --compile          on a GPU: tokens are written faster, after tens of seconds in the first requests
"""

_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_USUAL_LENGTH = 2**15


def run(args: list[str]) -> None:
    """Reads the model, then serves until it is told to end.

    Args:
        args: "serve", and the words after it.

    Raises:
        ValueError: when the input is at fault; then nothing is served.
    """
    words = args[1:]
    if not words or {"-h", "--help"} & set(words):
        print(HELP, end="")
        return
    options = _options(words)
    try:
        from lg.serve.app import Settings
        from lg.serve.server import Server
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise ValueError(f"{error.name} is not installed, which serves over HTTP; pip install 'lg[serve]'") from error

    from lg.cli.bench import device_named
    from lg.cli.opened import opened

    line = ProgressLine()
    # What is taken already is known before the model is read.
    with _listener(options.host, options.port) as listener:
        try:
            device = device_named(options.device)
            compile_it = compile_on(device) if options.compile else None
            line.show(f"reading {Path(options.model).name}")
            model = opened(options.model, options.tokenizer, dtype_of(options.dtype, device), device)
            if compile_it:
                compile_it(model.decoder)
            spelling = model.speaking(options.model)
            scheduler = _scheduler(model, options)
        except KeyboardInterrupt:
            line.clear()
            raise SystemExit(130) from None
        finally:
            line.clear()
        settings = Settings(options.name or Path(options.model).absolute().name, options.api_key, options.max_body)
        server = Server(scheduler, spelling, settings, listener, options.queue, options.grace)
        cache = scheduler.runner.cache
        print(
            f"{settings.name} at {_address(listener)}: requests of up to {cache.max_length:,} tokens, {options.slots} "
            f"at once, {_size(cache.room_bytes)} of keys and values",
            flush=True,
        )
        try:
            server.run()
        except Exception as error:
            print(f"lg serve: the model has failed, so the server has ended: {error!r}", file=sys.stderr)
            raise
    print("ended")


def _options(words: list[str]) -> Namespace:
    from lg.cli.bench import Parser

    parser = Parser(prog="lg serve", allow_abbrev=False, add_help=False)
    for name in ("model", "api-key", "name", "max-length", "memory", "tokenizer", "dtype", "device"):
        parser.add_argument(f"--{name}")
    numbers = {"port": (8000, 0, 65535), "slots": (16, 1, 4096), "queue": (64, 0, 2**20), "chunk": (2048, 1, 2**24)}
    for name, (default, _, _) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--grace", type=float, default=30.0)
    parser.add_argument("--max-body", default="16MiB")
    parser.add_argument("--kv", default="auto")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args(words)
    if options.model is None:
        raise ValueError("--model: needed; a checkpoint, a folder of transformers or a GGUF file")
    for name, (_, least, most) in numbers.items():
        if not least <= getattr(options, name) <= most:
            raise ValueError(f"--{name}: {getattr(options, name)} is not allowed; it must be from {least} to {most}")
    if not 0 <= options.grace <= 86400:
        raise ValueError(f"--grace: {options.grace} is not allowed; it must be from 0 to 86400 seconds")
    check(options)
    if options.max_length is not None:
        options.max_length = tokens_in(options.max_length, "--max-length")
    options.max_body = bytes_in(options.max_body, "--max-body")
    options.memory = None if options.memory is None else bytes_in(options.memory, "--memory")
    if options.api_key is None:
        options.api_key = os.environ.get("LG_API_KEY")
    if options.api_key is not None:
        options.api_key = options.api_key.strip()  # as what clients send is
    if options.api_key == "":
        raise ValueError("--api-key: '' is not allowed; it must be a key, or be left out")
    if not options.api_key and not _is_loopback(options.host):
        raise ValueError(
            f"--host: {options.host!r} can be reached from other machines, so that --api-key (or LG_API_KEY) is needed"
        )
    return options


def bytes_in(word: str, key: str) -> int:
    """The bytes that a word stands for.

    Args:
        word: what the user wrote.
        key: the option that it was written for.

    Raises:
        ValueError: if it is no size.

    >>> bytes_in("4GiB", "--memory")
    4294967296
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(|[KMGT]iB)", word.strip())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size < 1:
        raise ValueError(f"{key}: {word.strip()!r} is not allowed; write a size such as 512MiB or 4GiB")
    return size


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.2f} MiB"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listener(host: str, port: int) -> socket.socket:
    """A socket that is bound, and does not listen yet."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        made = socket.socket(family, kind)
    except OSError as error:
        raise ValueError(f"--host: {host!r} is not an address of this machine: {error.strerror}") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        raise ValueError(f"--host, --port: {host}:{port} cannot be served: {error.strerror}") from error
    return made


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


def _scheduler(model: Opened, options: Namespace) -> Scheduler:
    """What writes, with pages for as many requests as memory has room for.

    Raises:
        ValueError: if there is no room for one request.
    """
    from lg.inference import Runner, Scheduler
    from lg.inference.room import SHARE, free_memory, longest, room_bytes

    decoder = model.decoder
    length = options.max_length or min(model.longest or _USUAL_LENGTH, _USUAL_LENGTH)
    if model.longest is not None and length > model.longest:
        print(f"the model was made for {model.longest:,} tokens, and requests may have {length:,}", file=sys.stderr)
    weight = decoder.embedding.weight
    formats = formats_of(options.kv, weight.dtype)
    memory = int(SHARE * free_memory(weight.device)) if options.memory is None else options.memory
    if memory < (least := room_bytes(decoder, length, formats=formats)):
        fits = longest(decoder, memory, formats)
        raise ValueError(
            f"--memory: {_size(memory)} is less than the {_size(least)} that keys and values of one request of "
            f"{length:,} tokens may take; more is needed{f', or --max-length {fits}' if fits else ''}"
        )
    most = room_bytes(decoder, length, options.slots, formats=formats)
    # Room that is not a whole number of requests goes to shorter ones.
    capacity = int(min(1.0, memory / most) * options.slots * length)
    return Scheduler(Runner(decoder, length, options.slots, capacity, formats), options.chunk)
