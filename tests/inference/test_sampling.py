"""Tokens are drawn as transformers draws them, and from nothing but a seed and their number."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lg.inference import Sampling
from lg.inference.sampling import Choice, changed, choose

SEEN = torch.tensor([3, 3, 7, 20])


def some_logits(rows: int = 1, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, 50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def theirs(sampling: Sampling) -> LogitsProcessorList:
    told: list[Any] = [RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)]
    told.append(TemperatureLogitsWarper(sampling.temperature))
    told += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    told += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p else []
    told += [MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    return LogitsProcessorList(told)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(0.7),
        Sampling(1.0, top_k=5),
        Sampling(1.0, top_k=500),
        Sampling(1.3, top_p=0.6),
        Sampling(1.0, top_p=1e-6),
        Sampling(1.0, min_p=0.1),
        Sampling(1.0, min_p=1.0),
        Sampling(1.0, repetition_penalty=1.7),
        Sampling(0.5, repetition_penalty=0.6),
        Sampling(1.4, top_k=20, top_p=0.8, min_p=0.05, repetition_penalty=1.2),
    ],
    ids=str,
)
def test_what_is_drawn_from_is_what_transformers_draws_from(sampling: Sampling) -> None:
    for seed in range(20):
        logits = some_logits(seed=seed)
        torch.testing.assert_close(changed(logits[0], sampling, SEEN), theirs(sampling)(SEEN[None], logits)[0])


def test_equal_logits_stay_together() -> None:
    logits = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0])
    assert changed(logits, Sampling(1.0, top_k=2), SEEN[:0]).isfinite().tolist() == [False, True, True, True, False]


def test_the_order_is_that_of_transformers_own_generation() -> None:
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    asked = GenerationConfig(do_sample=True, temperature=0.7, top_k=3, top_p=0.5, min_p=0.2, repetition_penalty=1.3)
    got = LlamaForCausalLM(config)._get_logits_processor(asked, input_ids_seq_length=1)
    want = theirs(Sampling(0.7, 3, 0.5, 0.2, 1.3))
    assert [type(one) for one in got] == [type(one) for one in want]


def test_a_draw_depends_on_seed_and_number_alone() -> None:
    logits, sampling = some_logits(4), Sampling(1.0, seed=5)
    choices = [Choice(sampling, SEEN, number) for number in (4, 5, 6, 7)]
    tokens, logprobs = choose(logits, choices)
    for row in range(4):
        token, logprob = choose(logits[row : row + 1], [choices[row]])
        assert (token, logprob) == ([tokens[row]], [logprobs[row]])
    same = some_logits().expand(40, -1)
    drawn, _ = choose(same, [Choice(sampling, SEEN, number) for number in range(40)])
    assert len(set(drawn)) > 3
    others, _ = choose(same, [Choice(Sampling(1.0, seed=6), SEEN, number) for number in range(40)])
    assert drawn != others


def test_draws_have_the_shares_that_they_should() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0]]).expand(4000, -1)
    drawn, _ = choose(logits, [Choice(Sampling(1.0, top_k=3, seed=number), SEEN, number) for number in range(4000)])
    shares = torch.bincount(torch.tensor(drawn), minlength=4) / 4000
    want = torch.tensor([0.0, 2.0, 1.0, -math.inf]).softmax(-1)
    # Four standard deviations.
    torch.testing.assert_close(shares, want, atol=0.032, rtol=0)
    assert shares[3] == 0


def test_the_likeliest_is_taken_by_default_and_a_penalty_changes_it() -> None:
    logits = some_logits(2)
    best = logits.argmax(-1)
    again = Choice(Sampling(repetition_penalty=1e6), best[1:], 9)
    tokens, logprobs = choose(logits, [Choice(Sampling(), SEEN, 9), again])
    assert tokens == [int(best[0]), int(logits[1].topk(2).indices[1])]
    want = logits.log_softmax(-1)[torch.arange(2), torch.tensor(tokens)]
    torch.testing.assert_close(torch.tensor(logprobs, dtype=torch.float64), want)


@pytest.mark.parametrize("penalty", [1.0, 5e-324, 1e300, 10**300], ids="{:.0e}".format)
@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-300, 10**300, 1e308], ids="{:.0e}".format)
def test_extreme_values_still_draw_a_token(temperature: float, penalty: float) -> None:
    logits = some_logits(2).float()
    logits[0, SEEN] = 0.0
    sampling = Sampling(temperature, top_k=40, top_p=0.9, min_p=0.1, repetition_penalty=penalty, seed=1)
    tokens, logprobs = choose(logits, [Choice(sampling, SEEN, 9), Choice(sampling, torch.arange(50), 9)])
    assert all(0 <= token < 50 for token in tokens) and all(map(math.isfinite, logprobs))
    if temperature < 1 and penalty == 1:
        assert tokens == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("temperature", True),
        ("temperature", 10**400), ("repetition_penalty", 10**400),
        ("top_k", 0), ("top_k", 1.5), ("top_p", 0.0), ("top_p", 1.1), ("min_p", -1.0), ("min_p", "0.1"),
        ("repetition_penalty", 0.0), ("seed", -1), ("seed", 2**63), ("seed", 1.0),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: .* is not allowed; it must be a"):
        Sampling(**{name: value})
