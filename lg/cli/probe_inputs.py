"""What ``lg probe`` reads: the model, its tokenizer and texts, and what a restricted layer sees of them."""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lg.attention import Pattern, Routed, SinkWindow
from lg.attention.cost import visible_pairs
from lg.cli.bench import device_named, number
from lg.cli.lengths import tokens_in
from lg.cli.opened import speaking, spelled
from lg.cli.pretrained_part import decoder_as
from lg.data import Fetched, Folder, Jsonl, Source, Stdlib, Tokenizer
from lg.evaluation.probe import pieces
from lg.evaluation.probe.sight import attentions
from lg.models.decoder import Decoder

_NEEDLE = 64  # tokens that sentence, question and answer of a needle take, about


@dataclass(frozen=True)
class Subject:
    """What is probed, and on what.

    Attributes:
        decoder: in eval mode, on its device.
        local: what a restricted layer sees.
        length: tokens of a text.
        tokenizer: the model's own.
        texts: int64 [length + 1] each.
    """

    decoder: Decoder
    local: SinkWindow
    length: int
    tokenizer: Tokenizer
    texts: Sequence[torch.Tensor]

    @property
    def settings(self) -> dict[str, Any]:
        """What the result of every unit hangs on."""
        return {
            "weights": _of_weights(self.decoder), "shape": json.loads(json.dumps(asdict(self.decoder.config))),
            "what layers see": [str(pattern) for pattern in seen_by(self.decoder)],
            "length": self.length, "window": self.local.window, "sinks": self.local.sinks, "texts": len(self.texts),
            "tokens": _digest(b"".join(text.numpy().tobytes() for text in self.texts)),
            "dtype": str(self.decoder.embedding.weight.dtype).removeprefix("torch."),
        }  # fmt: skip

    def depths(self, count: int) -> list[float]:
        """Places of needles, evenly from behind the sinks to before the window."""
        first = (self.local.sinks + 1) / self.length
        last = 1 - (self.local.window + _NEEDLE) / self.length
        return [first + (last - first) * (n + 0.5) / count for n in range(count)]


def read_model(path: str, device_name: str | None) -> tuple[Decoder, int | None]:
    """The model on the device, on a GPU in bfloat16; and the positions that it was made for, if it says.

    Raises:
        ValueError: if there is no such model or device, or a layer does not attend, or asks for what no text has.
    """
    device = device_named(device_name)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    found, decoder = decoder_as("--model", path, dtype, device)
    for layer, pattern in enumerate(seen_by(decoder)):
        if asked := ", ".join(f"doc.{name}" for name in pattern.attributes if name != "length"):
            raise ValueError(
                f"--model: layer {layer} sees {pattern}, which asks for {asked}; patterns that ask for attributes of "
                "documents cannot be probed"
            )
    return decoder, found.longest


def seen_by(decoder: Decoder) -> list[Pattern]:
    """What each layer sees.

    Raises:
        ValueError: if one does not attend.
    """
    return [mixer.pattern for mixer in attentions(decoder)]


def decoder_of(path: str, device: str) -> Decoder:
    """The model alone, as another process asks for it."""
    return read_model(path, device)[0]


def devices_named(count: str, first: str | None) -> list[str]:
    """The devices to measure on, by name; the first is this process's.

    Args:
        count: of --devices.
        first: of --device.

    Raises:
        ValueError: if there are not so many.
    """
    on_gpu = first in (None, "cuda") and torch.cuda.is_available()
    there = torch.cuda.device_count() if on_gpu else 1
    wanted = there if count == "auto" else number(count, "devices", 1 << 10)
    if on_gpu:
        if wanted > there:
            raise ValueError(f"--devices: {wanted} is not allowed; this machine has {there}")
        return [f"cuda:{index}" for index in range(wanted)]
    device = first or "cpu"
    if wanted > 1 and device != "cpu":
        raise ValueError(f"--devices: {wanted} is not allowed with --device {device}, which is one")
    return [device] * wanted


def sizes(options: Namespace, decoder: Decoder, longest: int | None) -> tuple[int, SinkWindow]:
    """Tokens of a text, and what a restricted layer sees of them.

    Raises:
        ValueError: if the model was not made for that, nothing would be beyond the window, or a layer would see more.
    """
    on_gpu = decoder.embedding.weight.device.type == "cuda"
    length = min(8192 if on_gpu else 1024, longest or 8192)
    if options.length:
        length = tokens_in(options.length, "--length")
        if longest is not None and length > longest:
            raise ValueError(f"--length: {length} is not allowed; the model was made for {longest} tokens")
    window = tokens_in(options.window, "--window") if options.window else max(length // 8, 1)
    if not (options.sinks.isascii() and options.sinks.isdecimal()):
        raise ValueError(f"--sinks: {options.sinks!r} is not allowed; it must be a number of at least 0")
    sinks = int(options.sinks)
    if window + sinks + 2 * _NEEDLE > length:
        raise ValueError(
            f"--window: {window} is not allowed with {sinks} sinks in texts of {length} tokens; at least "
            f"{2 * _NEEDLE} tokens must be beyond them, so that something can be lost (--length)"
        )
    local = SinkWindow(window, sinks)
    narrow = _narrower(decoder, local, length)
    if narrow:
        which = f"layer {min(narrow)} sees" if len(narrow) == 1 else f"layers {', '.join(map(str, narrow))} see"
        told = ", ".join(dict.fromkeys(map(str, narrow.values())))
        raise ValueError(
            f"--window: {window} is not allowed with {sinks} sinks; {which} fewer keys than that ({told}), and "
            "restricted would see more; a smaller window is needed"
        )
    return length, local


def _narrower(decoder: Decoder, local: SinkWindow, length: int) -> dict[int, Pattern]:
    """The layers of which a head sees fewer keys in a text than the local pattern does, and what they see."""
    num_kv_heads = decoder.config.num_kv_heads

    def pairs(pattern: Pattern) -> torch.Tensor:
        return visible_pairs(pattern.tiles(length, num_kv_heads))

    sees = seen_by(decoder)
    # What is seen of a routed pattern is not known before it is.
    narrow = {one for one in set(sees) if not isinstance(one, Routed) and bool((pairs(one) < pairs(local)).any())}
    return {layer: pattern for layer, pattern in enumerate(sees) if pattern in narrow}


def read_tokenizer(given: str | None, model: str, vocab_size: int) -> Tokenizer:
    """The one that is named, or the model's own.

    Raises:
        ValueError: if there is none, or it has more tokens than the model.
    """
    return speaking(spelled(model, given, None), model, vocab_size).tokenizer


def read_texts(
    named: str, tokenizer: Tokenizer, length: int, count: int, rows: int = 0
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Texts of ``length + 1`` tokens to measure on, and up to ``rows`` others to train on.

    Raises:
        ValueError: if a name is empty, there is none so long, or none is left to train on.
    """
    if not all(name.strip() for name in named.split(",")):
        raise ValueError(
            f"--data: {named!r} is not allowed; each name, between commas, must be stdlib, one of `lg data list`, a "
            "folder or a .jsonl file"
        )
    found = pieces([_source(name) for name in named.split(",")], tokenizer, length + 1, count + rows)
    texts, others = found[:count], found[count:]
    if not texts:
        raise ValueError(
            f"--data: {named!r} has no document of {length + 1} tokens; longer ones are needed, or a smaller --length"
        )
    if rows and not others:
        raise ValueError(
            f"--data: {named!r} has no more than {len(texts)} texts of {length + 1} tokens, and those that sets are "
            "trained on must be others; more data is needed, or fewer --texts"
        )
    return texts, others


def _source(name: str) -> Source:
    if name == "stdlib":
        return Stdlib()
    path = Path(name).expanduser()
    if path.suffix == ".jsonl":
        return Jsonl(name)
    return Folder(name) if path.is_dir() else Fetched(name)


def _of_weights(decoder: Decoder) -> str:
    """A digest of every parameter's name, type, shape and bytes."""
    found = hashlib.blake2b(digest_size=8)
    for name, parameter in decoder.named_parameters():
        found.update(f"{name} {parameter.dtype} {list(parameter.shape)}".encode())
        found.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
