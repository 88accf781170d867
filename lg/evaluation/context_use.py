"""What more context is worth: the loss of the same tokens, given more and more of what stands before them.

Loss by place in a text mixes what the context is worth with what the text says there; here the targets stay.

>>> import torch
>>> difference = paired(torch.tensor([2.0, 2.5, 3.0]), torch.tensor([1.9, 2.3, 2.9]))
>>> round(difference.mean, 3), difference.low < -0.13 < difference.high
(-0.133, True)

Shapes: D texts, C lengths of context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lg.attention import Documents
from lg.models.decoder import Decoder


@dataclass(frozen=True)
class Difference:
    """How much one setting changes a loss, over texts that both were asked of.

    Attributes:
        mean: nats a token; below 0 is better.
        low, high: what it lies between, at 95%: of means of texts drawn again (bootstrap, Efron 1979).
    """

    mean: float
    low: float
    high: float


@torch.no_grad()
def losses_by_context(decoder: Decoder, texts: Sequence[Tensor], targets: int, contexts: Sequence[int]) -> Tensor:
    """Mean loss of the last tokens of each text, in nats, given so many tokens before the first of them.

    Args:
        decoder: the model, in eval mode.
        texts: int64, each longer than the longest context and the targets.
        targets: tokens at the end of a text whose loss is taken.
        contexts: tokens before them that the model is shown.

    Returns:
        float64 [D, C], on the host.
    """
    device = decoder.embedding.weight.device
    out = torch.empty(len(texts), len(contexts), dtype=torch.float64)
    for row, text in enumerate(texts):
        assert len(text) >= max(contexts) + targets, (len(text), contexts)
        for column, context in enumerate(contexts):
            tokens = text[-(context + targets) :].to(device)
            # The last token has nothing to predict, and the context's last predicts the first target.
            hidden = decoder(tokens[None, :-1], Documents(len(tokens) - 1))
            losses: Tensor = decoder.head(hidden[0, -targets:], tokens[-targets:], "none")
            out[row, column] = losses.double().mean()
    return out


def paired(before: Tensor, after: Tensor, draws: int = 10_000, seed: int = 0) -> Difference:
    """What changed between two measurements of the same texts, both [D]; draws depend on the seed alone."""
    assert before.shape == after.shape and before.ndim == 1
    change = (after - before).double()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(change), (draws, len(change)), generator=generator)
    low, high = torch.quantile(change[drawn].mean(1), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Difference(float(change.mean()), low, high)
