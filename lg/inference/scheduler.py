"""Several requests at once: who is read in which step, so that nobody who writes waits for another's prompt.

>>> import torch
>>> from lg.attention import Causal
>>> from lg.inference.runner import Runner
>>> from lg.models.decoder import Decoder
>>> from lg.models.presets import preset
>>> scheduler = Scheduler(Runner(Decoder(preset("tiny"), [Causal()] * 6).eval(), max_length=100, num_slots=2), chunk=32)
>>> tickets = [scheduler.submit(Request(torch.randint(256, (length,)), max_new_tokens=3)) for length in (40, 20)]
>>> [(event.ticket, event.read, event.token is None) for event in scheduler.step()]
[(0, 32, True)]
>>> [(event.ticket, event.read, event.token is None) for event in scheduler.step()]
[(0, 40, False), (1, 20, False)]
"""

from __future__ import annotations

import dataclasses
import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lg.inference.runner import Runner
from lg.inference.sampling import GREEDY, Choice, Sampling, choose


@dataclass(frozen=True)
class Request:
    """A text that is to be written on.

    Attributes:
        tokens: the prompt, int64 [L].
        max_new_tokens: how many are written at most.
        sampling: how they are chosen.
        stop: ids that end it.
        doc: attributes of the document that patterns ask for, as "prefix".
    """

    tokens: Tensor
    max_new_tokens: int
    sampling: Sampling = GREEDY
    stop: frozenset[int] = frozenset()
    doc: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """What became of a request in one step.

    Attributes:
        ticket: whose it is.
        token: what was written, the id that ended it included; None while the prompt is read, or if it was cancelled.
        logprob: of that token, by the model, natural.
        read: tokens of the prompt that are read.
        finish: None while it goes on; then "stop", for an id that ends it, "length", "cancelled", or "failed" where the
            model's logits are no numbers.
    """

    ticket: int
    token: int | None
    logprob: float | None
    read: int
    finish: str | None


class _Running:
    """A request that is being read or written."""

    def __init__(self, ticket: int, request: Request, least: int) -> None:
        self.ticket = ticket
        self.request = request
        self.least = least
        self.slot = -1
        self.read = 0
        self.num_new = 0
        length = len(request.tokens)
        # Room for all that it may come to have; only the prompt is there yet.
        self._text = torch.cat([request.tokens, request.tokens.new_zeros(request.max_new_tokens)])
        self.prompt_length = length

    @property
    def length(self) -> int:
        return self.prompt_length + self.num_new

    @property
    def seen(self) -> Tensor:
        """The sequence so far, what is written included."""
        return self._text[: self.length]

    @property
    def unread(self) -> int:
        """Tokens of the prompt that are still to be read."""
        return self.prompt_length - self.read

    def next(self, count: int) -> Tensor:
        """The next tokens to be read."""
        first = self.read if self.unread else self.length - 1
        return self._text[first : first + count]

    def write(self, token: int) -> None:
        self._text[self.length] = token
        self.num_new += 1


class Scheduler:
    """Serves requests in the order they came, as many at once as there are slots and pages for.

    In each step every sequence that writes gets one token, and prompts are read with the rest of the step. What a
    request gives does not depend on what runs beside it. Not to be called from several threads.

    Args:
        runner: the model; nobody else may open sequences in it.
        chunk: tokens of a step, about. The first tokens of a prompt that see forward are read at once, however many
            they are; where the scaling of positions goes by the text's length all of it is.
    """

    def __init__(self, runner: Runner, chunk: int = 2048) -> None:
        if chunk < 1:
            raise ValueError(f"chunk: {chunk} is not allowed; it must be at least 1")
        self.runner = runner
        self.chunk = chunk
        self._waiting: deque[_Running] = deque()
        self._running: list[_Running] = []
        self._cancelled: set[int] = set()
        self._num_tickets = 0

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a slot or for pages."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that are being read or written."""
        return len(self._running)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._running

    def submit(self, request: Request) -> int:
        """Takes a request; its ticket.

        Raises:
            ValueError: it can never be served: the prompt is empty or too long, has an id that the model has not, or
                sees tokens that are not written yet.
        """
        tokens, longest = request.tokens, self.runner.cache.max_length
        assert tokens.dtype == torch.int64 and tokens.ndim == 1, tokens
        if type(request.max_new_tokens) is not int or request.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: {request.max_new_tokens!r} is not allowed; it must be at least 1")
        if not len(tokens):
            raise ValueError("the prompt is empty; at least one token is needed")
        vocabulary = self.runner.decoder.config.vocab_size
        if len(strange := tokens[(tokens < 0) | (tokens >= vocabulary)]):
            raise ValueError(f"the prompt has token {int(strange[0])}; the model's are 0 to {vocabulary - 1}")
        length = len(tokens) + request.max_new_tokens
        if length > longest:
            fits = longest - request.max_new_tokens
            raise ValueError(
                f"the prompt has {len(tokens):,} tokens and {request.max_new_tokens:,} are to be written, and there is "
                f"room for {longest:,}: "
                + (f"the longest prompt that fits has {fits:,}" if fits > 0 else "fewer must be written")
            )
        self.runner.check(request.doc)
        least, pattern = self.runner.least(length, request.doc)
        if least == length > len(tokens):
            raise ValueError(f"{pattern} sees tokens that are not written yet, wherever it stands, so it cannot write")
        if least > len(tokens):
            raise ValueError(
                f"{pattern} sees forward among the first {least:,} tokens, and the prompt has {len(tokens):,}: what is "
                "not written yet cannot be seen"
            )
        scaling = self.runner.decoder.config.rope_scaling
        if scaling is not None and scaling.by_length:
            # Angles follow the text so far: a prompt that is cut elsewhere would be another one.
            least = len(tokens)
        if request.sampling.seed is None:
            request = dataclasses.replace(
                request, sampling=dataclasses.replace(request.sampling, seed=secrets.randbits(63))
            )
        ticket = self._num_tickets
        self._num_tickets += 1
        self._waiting.append(_Running(ticket, request, least))
        return ticket

    def cancel(self, ticket: int) -> None:
        """Ends a request at the next step; one that is unknown or has ended is let be."""
        if any(one.ticket == ticket for one in (*self._waiting, *self._running)):
            self._cancelled.add(ticket)

    def step(self) -> list[Event]:
        """One forward pass, and what came of it; nothing if there is nothing to do."""
        events = self._drop()
        self._admit()
        counts = self._counts()
        if not counts:
            return events
        device = self.runner.decoder.embedding.weight.device
        tokens = torch.cat([one.next(count) for one, count in counts]).to(device)
        logits = self.runner.read(tokens, [(one.slot, count) for one, count in counts])
        for one, count in counts:
            one.read += min(count, one.unread)
        failed = logits.isnan().any(-1).tolist()
        rows = [row for row, (one, _) in enumerate(counts) if not one.unread and not failed[row]]
        writing = [counts[row][0] for row in rows]
        choices = [Choice(one.request.sampling, one.seen, one.length) for one in writing]
        chosen = zip(*choose(logits[rows], choices), strict=True) if rows else iter(())
        for row, (one, _) in enumerate(counts):
            if failed[row]:
                events.append(Event(one.ticket, None, None, one.read, "failed"))
                self._end(one)
                continue
            if one.unread:
                events.append(Event(one.ticket, None, None, one.read, None))
                continue
            token, logprob = next(chosen)
            one.write(token)
            finish = "stop" if token in one.request.stop else None
            if finish is None and one.num_new == one.request.max_new_tokens:
                finish = "length"
            events.append(Event(one.ticket, token, logprob, one.read, finish))
            if finish:
                self._end(one)
        return events

    def _drop(self) -> list[Event]:
        """Ends what was cancelled."""
        dropped = [one for one in (*self._running, *self._waiting) if one.ticket in self._cancelled]
        for one in dropped:
            if one in self._running:
                self._end(one)
            else:
                self._waiting.remove(one)
        self._cancelled.clear()
        return [Event(one.ticket, None, None, one.read, "cancelled") for one in dropped]

    def _end(self, one: _Running) -> None:
        self.runner.cache.close(one.slot)
        self._running.remove(one)
        # It may have ended in the step that it was cancelled in.
        self._cancelled.discard(one.ticket)

    def _admit(self) -> None:
        """Begins with those who wait, as long as there is room for the first of them."""
        while self._waiting:
            first = self._waiting[0]
            slot = self.runner.open(first.prompt_length + first.request.max_new_tokens, first.request.doc)
            if slot is None:
                return
            first.slot = slot
            self._running.append(self._waiting.popleft())

    def _counts(self) -> list[tuple[_Running, int]]:
        """How many tokens each sequence gets in this step; those that get none are left out."""
        counts: list[tuple[_Running, int]] = []
        left = self.chunk - sum(not one.unread for one in self._running)
        # However many write, somebody's prompt goes on.
        left = max(left, 1)
        for one in self._running:
            if not one.unread:
                counts.append((one, 1))
            elif left > 0:
                count = max(min(one.unread, left), one.least - one.read)
                left -= count
                counts.append((one, count))
        return counts
