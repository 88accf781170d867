"""Texts that a decoder writes on: all at once, or piece by piece while they are written.

>>> import torch
>>> from lg.attention import Causal, SinkWindow
>>> from lg.models.decoder import Decoder
>>> from lg.models.presets import preset
>>> decoder = Decoder(preset("tiny"), [SinkWindow(window=64)] * 3 + [Causal()] * 3).eval()
>>> [one.finish for one in generate(decoder, [torch.randint(256, (100,)), [1, 2, 3]], max_new_tokens=5)]
['length', 'length']
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from lg.inference import room
from lg.inference.formats import Format
from lg.inference.runner import Runner
from lg.inference.sampling import GREEDY, Sampling
from lg.inference.scheduler import Event, Request, Scheduler
from lg.inference.text import Text, Tokenizer
from lg.models.decoder import Decoder

Prompt = str | Tensor | Sequence[int]
"""A text, or ids: int64 [L] or a list."""


@dataclass
class Written:
    """What was written after one prompt.

    Attributes:
        tokens: their ids, the one that ended it included.
        logprobs: of each, by the model, natural.
        text: without what ended it; empty without a tokenizer.
        finish: "stop" where an id or a string ended it, else "length".
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    finish: str = ""

    def add(self, piece: Progress) -> None:
        """Takes what is new of it."""
        self.text += piece.text
        if piece.event.token is not None and piece.event.logprob is not None:
            self.tokens.append(piece.event.token)
            self.logprobs.append(piece.event.logprob)
        self.finish = piece.finish or self.finish


@dataclass(frozen=True)
class Progress:
    """What is new of one text.

    Attributes:
        prompt: the number of its prompt.
        text: whole characters; empty while the prompt is read or nothing is clear.
        event: what happened.
        finish: None while it goes on; then "stop" or "length".
    """

    prompt: int
    text: str
    event: Event
    finish: str | None


def generate(
    model: Decoder,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    tokenizer: Tokenizer | None = None,
    stop: Collection[int] = (),
    stop_strings: Sequence[str] = (),
    doc: Mapping[str, int] | None = None,
    formats: tuple[Format, Format] | None = None,
    chunk: int = 2048,
) -> list[Written]:
    """What a model writes after some prompts, all of them together.

    Args:
        model: in eval mode.
        prompts: texts, if there is a tokenizer, or ids, of any lengths.
        max_new_tokens: the most that each gets.
        sampling: how tokens are chosen. With a seed, each text is what it would be alone.
        tokenizer: of the texts.
        stop: ids that end a text.
        stop_strings: strings that end a text, wherever tokens part them.
        doc: attributes of the documents that patterns ask for, as "prefix".
        formats: what keys and values are kept as; by default as the model computes them.
        chunk: tokens of a step; see `Scheduler`.

    Raises:
        ValueError: a prompt is empty or has ids that the model has not, or there is no memory for it; a value is out of
            range; or the model cannot write.
    """
    if isinstance(prompts, str):
        raise ValueError("prompts: a text alone is not allowed; a list of prompts is needed")
    ids = [ids_of(prompt, tokenizer) for prompt in prompts]
    scheduler = scheduler_for(model, ids, max_new_tokens, formats, chunk)
    written = [Written() for _ in ids]
    for piece in stream(scheduler, ids, max_new_tokens, sampling, tokenizer, stop, stop_strings, doc):
        written[piece.prompt].add(piece)
    return written


def stream(
    scheduler: Scheduler,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    tokenizer: Tokenizer | None = None,
    stop: Collection[int] = (),
    stop_strings: Sequence[str] = (),
    doc: Mapping[str, int] | None = None,
) -> Iterator[Progress]:
    """The same, piece by piece, on a scheduler that is idle; prompts are refused before anything is read.

    If it is not read to its end, what is left is cancelled.
    """
    assert scheduler.idle
    ends = _ends(stop, scheduler.runner.decoder.config.vocab_size)
    strings = _strings(stop_strings)
    if strings and tokenizer is None:
        raise ValueError("stop_strings: not allowed without a tokenizer, which says what strings tokens are")
    new = int(max_new_tokens) if _is_whole(max_new_tokens) else max_new_tokens
    number: dict[int, int] = {}
    try:
        for prompt in prompts:
            request = Request(ids_of(prompt, tokenizer), new, sampling, ends, doc or {})
            number[scheduler.submit(request)] = len(number)
    except ValueError:
        _cancel(scheduler, number)
        raise
    return _pieces(scheduler, number, tokenizer, strings)


def _pieces(
    scheduler: Scheduler, number: Mapping[int, int], tokenizer: Tokenizer | None, stop_strings: Sequence[str]
) -> Iterator[Progress]:
    texts = {ticket: Text(tokenizer, stop_strings) for ticket in number} if tokenizer else {}
    try:
        while not scheduler.idle:
            for event in scheduler.step():
                if event.finish == "cancelled":
                    continue
                if event.finish == "failed":
                    raise ValueError(
                        f"prompt {number[event.ticket]}: the model's logits are no numbers; its type is too narrow for "
                        "what it computes (--dtype), or its weights are damaged"
                    )
                text, new, finish = texts.get(event.ticket), "", event.finish
                if text is not None and event.token is not None:
                    # An id that ends a text is not part of it.
                    new = "" if finish == "stop" else text.add(event.token)
                    new += text.end() if finish else ""
                    if text.stopped:
                        scheduler.cancel(event.ticket)
                        finish = "stop"
                yield Progress(number[event.ticket], new, event, finish)
    finally:
        _cancel(scheduler, number)


def _cancel(scheduler: Scheduler, tickets: Collection[int]) -> None:
    for ticket in tickets:
        scheduler.cancel(ticket)
    while not scheduler.idle:
        scheduler.step()


def _ends(stop: object, vocab_size: int) -> frozenset[int]:
    listed = _listed(stop)
    if listed is None or not all(_is_whole(one) and 0 <= one < vocab_size for one in listed):
        raise ValueError(
            f"stop: {stop!r:.60} is not allowed; it must list ids of the model, 0 to {vocab_size - 1} (stop_strings "
            "takes texts)"
        )
    return frozenset(map(int, listed))


def _strings(stop_strings: object) -> tuple[str, ...]:
    listed = _listed(stop_strings)
    if listed is None or not all(isinstance(one, str) for one in listed):
        raise ValueError(f"stop_strings: {stop_strings!r:.60} is not allowed; it must list texts")
    if "" in listed:
        raise ValueError("stop_strings: an empty string is not allowed; it would end every text")
    return listed


def _listed(value: object) -> tuple[Any, ...] | None:
    """What a collection has; None of what is none, or of a text, whose characters are not meant."""
    return None if isinstance(value, str | bytes) or not isinstance(value, Iterable) else tuple(value)


def _is_whole(value: object) -> bool:
    """Whether it is an integer, numpy's included, and no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def scheduler_for(
    model: Decoder,
    ids: Sequence[Tensor],
    max_new_tokens: int,
    formats: tuple[Format, Format] | None = None,
    chunk: int = 2048,
) -> Scheduler:
    """A scheduler with room for some prompts and what is written after them: for all at once, or else for one after
    another.

    Raises:
        ValueError: a number is out of its range, or there is no memory for the longest.
    """
    if not _is_whole(max_new_tokens) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: {max_new_tokens!r} is not allowed; it must be an integer of at least 1")
    prompt, new = max(map(len, ids), default=0), int(max_new_tokens)
    if prompt + new > room.LONGEST:
        raise ValueError(
            f"max_new_tokens: {new:,} is not allowed; with the prompt's {prompt:,} tokens it may be at most "
            f"{room.LONGEST:,}"
        )
    lengths = [len(one) + new for one in ids]
    longest, count = max(lengths, default=1), max(len(ids), 1)
    free = int(room.SHARE * room.free_memory(model.embedding.weight.device))
    if (needed := room.room_bytes(model, longest, formats=formats)) > free:
        most = room.longest(model, free, formats)
        raise ValueError(
            f"the prompt has {prompt:,} tokens, and with {new:,} new ones its keys and values would take "
            f"{needed / 1e9:,.1f} GB, where there are {free / 1e9:,.1f} GB for them; "
            + (
                f"the longest prompt that fits has {most - new:,} tokens"
                if most > new
                else f"fewer must be written: prompt and new tokens have room for {most:,}"
            )
        )
    # What does not fit together is written one after another.
    together = room.room_bytes(model, longest, count, sum(lengths), formats) <= free
    slots, capacity = (count, sum(lengths)) if together else (1, longest)
    return Scheduler(Runner(model, longest, slots, capacity, formats), chunk)


def ids_of(prompt: Prompt, tokenizer: Tokenizer | None) -> Tensor:
    """A prompt's ids, int64 [L] on the host.

    Raises:
        ValueError: it is text, and there is no tokenizer, or it is no list of integers.
    """
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError("a prompt of text is not allowed without a tokenizer; ids are needed, or a tokenizer")
        prompt = list(map(int, tokenizer.encode(prompt.encode())))
    try:
        ids = torch.as_tensor(prompt)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _no_ids(prompt) from error
    whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    # An empty list is of no type of its own, and is refused for what it is.
    if ids.ndim != 1 or (len(ids) and not whole):
        raise _no_ids(prompt)
    return ids.to("cpu", torch.int64)


def _no_ids(prompt: object) -> ValueError:
    return ValueError(f"a prompt of ids is a list of integers, not {prompt!r:.60}; a list of prompts is needed")
