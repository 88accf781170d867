"""Whether a model uses what it was told far back: needles judged by likelihood, so that nothing is generated.

A prompt is text with a sentence in it, the needle, that tells a number, and ends in a question for it and the answer.
It is asked twice: once the needle tells the number that is the answer, once another one. What the first makes the
answer likelier by, in nats a token, is the gain: 0 for a model that does not look, whatever it thinks of numbers.

Needles in a haystack are from Kamradt 2023 (github.com/gkamradt/LLMTest_NeedleInAHaystack); a number that is asked for
is the passkey of Mohtashami and Jaggi 2023 (arXiv 2305.16300, section 4.2).
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lg.data import Tokenizer
from lg.evaluation.prompts import PackedPrompts, pack
from lg.models.decoder import Decoder

_NAMES = (
    "amber", "basalt", "cedar", "delta", "ember", "falcon", "garnet", "harbor",
    "indigo", "juniper", "kestrel", "lagoon", "maple", "nectar", "orchid", "pebble",
)  # fmt: skip


@dataclass(frozen=True)
class Needles:
    """A grid of needles.

    Attributes:
        lengths: tokens of a prompt, question and answer included.
        depths: where the needle stands in the text: 0 at its beginning, 1 right before the question.
        samples: questions for each length and depth.
        digits: of a number.
        seed: of every draw. A question's draws depend on it and the question's own place in the grid only.
    """

    lengths: Sequence[int]
    depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)
    samples: int = 1
    digits: int = 5
    seed: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of all prompts."""
        return 2 * self.samples * len(self.depths) * sum(self.lengths)


@dataclass(frozen=True)
class Question:
    """One question, asked twice; both prompts are int64 [length], the last ``num_answer`` of it the answer.

    Attributes:
        length: tokens of a prompt.
        depth: where the needle stands.
        told: the prompt whose needle tells the answer.
        misled: the prompt whose needle tells another number.
        num_answer: tokens of the answer.
    """

    length: int
    depth: float
    told: Tensor
    misled: Tensor
    num_answer: int


@dataclass(frozen=True)
class Score:
    """What a model made of a grid of needles, means over samples.

    Attributes:
        lengths: as the grid's.
        depths: as the grid's.
        gain: nats a token that the needle makes the answer likelier by: float64 [depths, lengths].
        accuracy: share of the answer's tokens that are the likeliest, with the needle: float64 [depths, lengths].
        exact: share of answers of which all tokens are: float64 [depths, lengths].
    """

    lengths: Sequence[int]
    depths: Sequence[float]
    gain: Tensor
    accuracy: Tensor
    exact: Tensor


@dataclass(frozen=True)
class Haystack:
    """Prompts that are ready to be read.

    Attributes:
        needles: the grid.
        questions: by depth, then length, then sample.
        packed: their prompts; question n's are number 2n, told, and 2n + 1, misled.
    """

    needles: Needles
    questions: Sequence[Question]
    packed: Sequence[PackedPrompts] = field(repr=False)

    def answers(self, packed: PackedPrompts) -> dict[int, Tensor]:
        """Which tokens of a sequence are answers, by the prompt's number: int64, ascending."""
        ends = {number: start + self.questions[number // 2].length for number, start in packed.starts.items()}
        return {number: torch.arange(end - self.questions[number // 2].num_answer, end) for number, end in ends.items()}


def haystack(needles: Needles, tokenizer: Tokenizer, filler: Tensor, attributes: Collection[str] = ()) -> Haystack:
    """The prompts of a grid of needles.

    Args:
        needles: the grid.
        tokenizer: what text is written with.
        filler: the text to hide needles in: int64 [N], at least one token, none of which ends a document. It is
            repeated where it is too short.
        attributes: what patterns ask of documents besides their length; prompts have 0 of it.

    Raises:
        ValueError: if a length leaves no room for sentence, question and answer.
    """
    questions = [
        _question(needles, length, depth, sample, tokenizer, filler)
        for depth in needles.depths
        for length in needles.lengths
        for sample in range(needles.samples)
    ]
    prompts = [prompt for question in questions for prompt in (question.told, question.misled)]
    return Haystack(needles, questions, pack(prompts, max(needles.lengths), attributes, tokenizer.end))


@torch.no_grad()
def score(decoder: Decoder, hay: Haystack) -> Score:
    """Reads every prompt once; only the answers' logits are computed.

    Under FSDP every rank must call it, with the same prompts: they take part in one another's work.
    """
    log_likelihood = torch.zeros(len(hay.questions), 2, dtype=torch.float64)
    right = torch.zeros(len(hay.questions), 2, dtype=torch.float64)
    device = decoder.embedding.weight.device
    for packed in hay.packed:
        answers = hay.answers(packed)
        places = torch.cat(list(answers.values()))
        # The token before it predicts a token.
        logits = decoder.logits_at((places - 1).to(device), packed.tokens.to(device), packed.documents).float()
        wanted = packed.tokens[0, places].to(device)
        log_p = logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0].cpu().double()
        likeliest = (logits.argmax(-1) == wanted).cpu().double()
        sizes = [len(own) for own in answers.values()]
        for number, own, hits in zip(answers, torch.split(log_p, sizes), torch.split(likeliest, sizes), strict=True):
            log_likelihood[divmod(number, 2)] = own.mean()
            right[divmod(number, 2)] = hits.mean()
    grid = len(hay.needles.depths), len(hay.needles.lengths), hay.needles.samples
    told, misled = log_likelihood.unbind(1)
    shares = right[:, 0].view(grid)
    gain = (told - misled).view(grid).mean(2)
    return Score(hay.needles.lengths, hay.needles.depths, gain, shares.mean(2), (shares == 1).double().mean(2))


def _question(
    needles: Needles, length: int, depth: float, sample: int, tokenizer: Tokenizer, filler: Tensor
) -> Question:
    # A string seeds the same in every process; the question's own, so that others may come and go.
    draw = random.Random(f"{needles.seed} {length} {depth} {sample}")
    name = draw.choice(_NAMES)
    numbers = draw.sample(range(10 ** (needles.digits - 1), 10**needles.digits), 2)
    offset = draw.randrange(len(filler))

    def ids(text: str) -> Tensor:
        return torch.from_numpy(tokenizer.encode(text.encode()).astype("int64"))

    # Each piece is tokenized by itself: a number is then the same tokens wherever it stands.
    lead, stop = ids(f"\nThe magic number of {name} is "), ids(".\n")
    answer, other = (ids(str(number)) for number in numbers)
    prompts = []
    for number in (answer, other):
        room = length - 2 * len(lead) - len(number) - len(stop) - len(answer)
        if room < 0:
            raise ValueError(
                f"a needle of {length} tokens is not allowed; sentence, question and answer take {length - room}"
            )
        text = filler.repeat(math.ceil((offset + room) / len(filler)) if room else 1)[offset : offset + room]
        before = round(depth * room)
        prompts.append(torch.cat([text[:before], lead, number, stop, text[before:], lead, answer]))
    return Question(length, depth, prompts[0], prompts[1], len(answer))
