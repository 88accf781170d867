"""How the next token is chosen from a model's logits: the likeliest, or one that is drawn.

>>> import torch
>>> logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
>>> seen = torch.tensor([1])
>>> choose(logits, [Choice(Sampling(), seen, 7), Choice(Sampling(repetition_penalty=4.0), seen, 7)])[0]
[1, 2]

Shapes: S sequences, V vocabulary, L tokens of a sequence so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_SEEDS = 2**63
# What is nearer to 0 changes no draw, and quotients by it would not be finite.
_LEAST = 1e-30


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _refusal(name: str, value: object, needed: str) -> ValueError:
    return ValueError(f"{name}: {value!r} is not allowed; it must be {needed}")


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; by default each is the likeliest.

    Means what transformers' arguments of the same names mean, one after another in this order: repetition penalty,
    temperature, top k, top p, min p.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: only so many of the likeliest tokens; with what is as likely as the last of them.
        top_p: only the likeliest tokens that have this share together.
        min_p: only tokens that are at least this times as likely as the likeliest.
        repetition_penalty: logits of tokens that the sequence has, its prompt included, are divided by it, or
            multiplied where they are negative.
        seed: of the draws: the same gives the same text, whatever is written beside it. None is another one each time.

    Raises:
        ValueError: a value is out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuses what means nothing."""
        if not _is_number(self.temperature) or self.temperature < 0:
            raise _refusal("temperature", self.temperature, "a number of at least 0")
        if not _is_number(self.repetition_penalty) or self.repetition_penalty <= 0:
            raise _refusal("repetition_penalty", self.repetition_penalty, "a number above 0")
        for name, share in (("top_p", self.top_p), ("min_p", self.min_p)):
            if share is not None and (not _is_number(share) or not 0 < share <= 1):
                raise _refusal(name, share, "a number above 0 and at most 1")
        if self.top_k is not None and (type(self.top_k) is not int or self.top_k < 1):
            raise _refusal("top_k", self.top_k, "an integer of at least 1")
        if self.seed is not None and (type(self.seed) is not int or not 0 <= self.seed < _SEEDS):
            raise _refusal("seed", self.seed, "an integer of at least 0 and below 2**63")


GREEDY = Sampling()


@dataclass(frozen=True)
class Choice:
    """One sequence that gets a token.

    Attributes:
        sampling: how it is drawn.
        seen: the sequence so far, int64 [L]; asked only by a repetition penalty.
        number: which token of the sequence it is to be; the draw depends on it and the seed alone.
    """

    sampling: Sampling
    seen: Tensor
    number: int


def choose(logits: Tensor, of: Sequence[Choice]) -> tuple[list[int], list[float]]:
    """The next token of each sequence, and its log-probability by the model, before anything is changed.

    Args:
        logits: [S, V].
        of: whose rows these are, in order; with a temperature they need a seed.
    """
    # As precise as the model is, and at least float32.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    tokens = logits.argmax(-1)
    for row, choice in enumerate(of):
        if choice.sampling.temperature > 0 or choice.sampling.repetition_penalty != 1:
            tokens[row] = _chosen(logits[row], choice)
    told = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
    return tokens.tolist(), told.tolist()


def changed(logits: Tensor, sampling: Sampling, seen: Tensor) -> Tensor:
    """Logits of one sequence that are drawn from, float64 [V]: those that are left out are minus infinity.

    Args:
        logits: [V].
        sampling: how; with a temperature.
        seen: the sequence so far, int64 [L].
    """
    logits = penalised(logits, sampling.repetition_penalty, seen).double() / max(float(sampling.temperature), _LEAST)
    if sampling.top_k is not None:
        least = logits.topk(min(sampling.top_k, len(logits))).values[-1]
        logits = logits.masked_fill(logits < least, -math.inf)
    if sampling.top_p is not None and sampling.top_p < 1:
        ascending, order = logits.sort()
        # Sums begin with the least likely, which is always left out before a likelier one.
        out = ascending.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        out[-1] = False
        logits = logits.masked_fill(torch.zeros_like(out).scatter(0, order, out), -math.inf)
    if sampling.min_p is not None:
        shares = logits.softmax(-1)
        logits = logits.masked_fill(shares < sampling.min_p * shares.max(), -math.inf)
    return logits


def penalised(logits: Tensor, penalty: float, seen: Tensor) -> Tensor:
    """Logits [V] in which tokens of a sequence, int64 [L], are less likely; Keskar et al. 2019 (arXiv 1909.05858)."""
    if penalty == 1:
        return logits
    penalty = min(max(float(penalty), _LEAST), 1 / _LEAST)
    seen = seen.to(logits.device)
    own = logits[seen]
    return logits.index_put((seen,), torch.where(own < 0, own * penalty, own / penalty))


def _chosen(logits: Tensor, choice: Choice) -> Tensor:
    sampling = choice.sampling
    if sampling.temperature == 0:
        return penalised(logits, sampling.repetition_penalty, choice.seen).argmax()
    assert sampling.seed is not None
    shares = changed(logits, sampling, choice.seen).softmax(-1).cumsum(-1)
    whole = shares[-1]
    # Below the last sum, so that the token is one that has a share.
    point = torch.minimum(_uniform(sampling.seed, choice.number) * whole, whole.nextafter(torch.zeros_like(whole)))
    return torch.searchsorted(shares, point[None], right=True)[0]


def _uniform(seed: int, number: int) -> float:
    """A number from 0 to below 1: the same for the same arguments, on every machine."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=number)).random())
