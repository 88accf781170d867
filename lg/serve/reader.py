"""From prompts to tokens; a prompt that is far too long is refused before it is read to its end."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from lg.inference.scheduler import Request
from lg.serve.asked import Asked
from lg.serve.prompts import Prompt
from lg.serve.refusal import Refusal, wrong
from lg.serve.seats import Seats
from lg.serve.tokenizer import Speaker

# Heads that are tried before the whole: of so many characters for each token that fits, then of so many times more.
_DENSITY, _LEAST_HEAD, _GROWTH = 8, 2**13, 4
# A token at a head's end may be another one in the whole; no tokenizer makes half of them vanish.
_SURPLUS, _LEAST_SURPLUS = 0.5, 2**10


class Reader:
    """Tokenizes prompts.

    Args:
        tokenizer: the model's.
        longest: tokens that a prompt and what is written after it may have.
        seats: where it does so.
    """

    def __init__(self, tokenizer: Speaker, longest: int, seats: Seats) -> None:
        self._tokenizer = tokenizer
        self._longest = longest
        self._seats = seats

    async def written(self, asked: Asked, param: str) -> list[Request]:
        """What the scheduler is asked for; one for each choice.

        Args:
            asked: what the client asks for.
            param: the field that has the prompts.

        Raises:
            Refusal: a prompt is none or too long, or no prompt leaves room for so many new tokens.
        """
        new = asked.max_new_tokens
        if new is not None and new >= self._longest:
            needed = f"at most {self._longest - 1:,}, as prompt and new tokens may be {self._longest:,}"
            raise wrong(asked.limit, new, needed)
        requests = []
        for prompt in asked.prompts:
            tokens = await self._read(prompt, new or 1, param)
            if not len(tokens):
                raise wrong(param, "", "at least one token")
            room = self._longest - len(tokens)
            # Of layers that see the whole of what is given, that is the prompt.
            doc = {"prefix": len(tokens)}
            requests.append(Request(tokens, new or room, asked.sampling, self._tokenizer.ends, doc))
        return requests

    async def _read(self, prompt: Prompt, new: int, param: str) -> Tensor:
        """The tokens of a prompt that leaves room for some new ones.

        Raises:
            Refusal: it does not.
        """
        size = _DENSITY * self._longest + _LEAST_HEAD
        surplus = max(int(_SURPLUS * self._longest), _LEAST_SURPLUS)
        whole = prompt.size
        while size < whole:
            if await self._seats.run(whole, partial(self._length, prompt, size)) > self._longest + surplus:
                raise self._too_long(f"more than {self._longest:,}", new, param)
            size *= _GROWTH
        try:
            tokens = await self._seats.run(whole, partial(self._tokens, prompt))
        except ValueError as error:
            raise Refusal(400, f"{param}: {error}", param, "invalid_value") from error
        if len(tokens) + new > self._longest:
            raise self._too_long(f"{len(tokens):,}", new, param)
        return tokens

    def _tokens(self, prompt: Prompt) -> Tensor:
        return torch.tensor(prompt.ids(self._tokenizer), dtype=torch.int64)

    def _length(self, prompt: Prompt, size: int) -> int:
        """The tokens of a prompt's head; 0 if that is nothing to go by."""
        try:
            return len(prompt.head(size).ids(self._tokenizer))
        except ValueError:
            return 0

    def _too_long(self, length: str, new: int, param: str) -> Refusal:
        said = (
            f"{param}: {length} tokens, with {new:,} new ones, are more than the {self._longest:,} that there is room "
            f"for; the longest that fits with so many new ones has {self._longest - new:,}"
        )
        return Refusal(400, said, param, "context_length_exceeded")
