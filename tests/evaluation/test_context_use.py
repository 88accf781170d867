"""The loss of the same tokens, given more and more of what stands before them."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from lg.attention import Causal, Documents, Window
from lg.evaluation.context_use import losses_by_context, paired
from lg.models.decoder import Decoder
from lg.models.presets import preset


def test_losses_are_those_of_the_last_tokens() -> None:
    torch.manual_seed(0)
    decoder = Decoder(preset("tiny", num_layers=2), [Causal(), Window(20)]).eval()
    texts = [torch.randint(256, (length,)) for length in (100, 120)]
    got = losses_by_context(decoder, texts, targets=10, contexts=(1, 50, 90))
    for row, text in enumerate(texts):
        for column, context in enumerate((1, 50, 90)):
            tokens = text[len(text) - 10 - context :]
            logits = decoder.logits(tokens[None], Documents(len(tokens)))[0]
            expected = F.cross_entropy(logits[context - 1 : -1], text[-10:])
            torch.testing.assert_close(got[row, column].float(), expected)


def test_an_interval_holds_what_it_should() -> None:
    texts = torch.linspace(2, 4, 200)
    noise = 0.1 * torch.randn(200, generator=torch.Generator().manual_seed(0))
    # Between texts losses differ far more than by what is asked for: pairs tell all the same.
    difference = paired(texts, texts - 0.05 + noise)
    assert difference.low < -0.05 < difference.high
    assert difference.high - difference.low < 0.04
    assert paired(texts, texts + noise - noise.mean()).low < 0 < paired(texts, texts + noise - noise.mean()).high
