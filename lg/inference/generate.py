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

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

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
        ValueError: a prompt is empty or has ids that the model has not, a value is out of range, or the model cannot
            write.
    """
    if isinstance(prompts, str):
        raise ValueError("prompts: a text alone is not allowed; a list of prompts is needed")
    ids = [ids_of(prompt, tokenizer) for prompt in prompts]
    runner = runner_for(model, ids, max_new_tokens, formats)
    written = [Written() for _ in ids]
    for piece in stream(
        Scheduler(runner, chunk), ids, max_new_tokens, sampling, tokenizer, stop, stop_strings, doc
    ):  # fmt: skip
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
    if stop_strings and tokenizer is None:
        raise ValueError("stop_strings: not allowed without a tokenizer, which says what strings tokens are")
    if any(not one for one in stop_strings):
        raise ValueError("stop_strings: an empty string is not allowed; it would end every text")
    number: dict[int, int] = {}
    try:
        for prompt in prompts:
            request = Request(ids_of(prompt, tokenizer), max_new_tokens, sampling, frozenset(stop), doc or {})
            number[scheduler.submit(request)] = len(number)
    except ValueError:
        _cancel(scheduler, number)
        raise
    return _pieces(scheduler, number, tokenizer, stop_strings)


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


def runner_for(
    model: Decoder, ids: Sequence[Tensor], max_new_tokens: int, formats: tuple[Format, Format] | None = None
) -> Runner:
    """A runner with room for some prompts and what is written after them."""
    if type(max_new_tokens) is not int or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: {max_new_tokens!r} is not allowed; it must be an integer of at least 1")
    lengths = [len(one) + max_new_tokens for one in ids]
    return Runner(model, max(lengths, default=1), max(len(ids), 1), sum(lengths), formats)


def ids_of(prompt: Prompt, tokenizer: Tokenizer | None) -> Tensor:
    """A prompt's ids, int64 [L] on the host.

    Raises:
        ValueError: it is text, and there is no tokenizer, or it is no list.
    """
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError("a prompt of text is not allowed without a tokenizer; ids are needed, or a tokenizer")
        prompt = list(map(int, tokenizer.encode(prompt.encode())))
    ids = torch.as_tensor(prompt, dtype=torch.int64).cpu()
    if ids.ndim != 1:
        raise ValueError(f"a prompt of ids is a list of them, not {prompt!r}; a list of prompts is needed")
    return ids
