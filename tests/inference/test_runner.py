"""Reading piece by piece with pages gives what reading all at once gives, whatever the pattern and the pieces."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from examples import COMPOSED, PATTERNS

from lg.attention import Causal, Documents, Pattern, PrefixLM, SinkWindow, Strided, Window
from lg.inference import Runner
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder
from lg.models.rope_scaling import DynamicNTK, RopeScaling

LENGTH = 420
# Some of every kind: one token, a page, its edges, the grid's, and many.
PIECES = [130, 1, 1, 61, 64, 1, 63, 1, 1, 3, 1]


def decoder(
    *patterns: Pattern, heads: int | None = None, scaling: RopeScaling | None = None, unturned: tuple[int, ...] = ()
) -> Decoder:
    torch.manual_seed(0)
    made_for = next((pattern.made_for for pattern in patterns if pattern.made_for), None)
    heads = heads or made_for or 2
    config = DecoderConfig(
        num_layers=len(patterns), width=32, num_heads=2 * heads, num_kv_heads=heads, head_width=16, ffn_width=32,
        vocab_size=50, rope_scaling=scaling, no_rope_layers=unturned,
    )  # fmt: skip
    model = Decoder(config, patterns).eval().double()
    for parameter in model.parameters():
        # Larger than first weights are: attention is far from uniform.
        parameter.data.mul_(3)
    return model


def whole(model: Decoder, tokens: torch.Tensor, doc: dict[str, int] | None = None) -> torch.Tensor:
    attributes = {name: [value] for name, value in (doc or {}).items()}
    with torch.no_grad():
        return model.logits(tokens[None], Documents(len(tokens), attributes=attributes))[0]


def some_tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(50, (count,), generator=torch.Generator().manual_seed(seed))


def written_piece_by_piece(pattern: Pattern) -> bool:
    return not pattern.attributes and not pattern.sees_later(LENGTH, pattern.made_for or 2)


@pytest.mark.parametrize("pattern", [*filter(written_piece_by_piece, PATTERNS + COMPOSED)], ids=str)
def test_each_step_equals_reading_all(pattern: Pattern) -> None:
    model, tokens = decoder(pattern, Causal(), pattern), some_tokens(LENGTH)
    expected, runner = whole(model, tokens), Runner(model, max_length=LENGTH + 100)
    slot, end = runner.open(LENGTH), 0
    assert slot is not None
    for count in [*PIECES, *[1] * 9, LENGTH - sum(PIECES) - 9]:
        got = runner.read(tokens[end : end + count], [(slot, count)])
        end += count
        torch.testing.assert_close(got[0], expected[end - 1], atol=1e-6, rtol=1e-5)
    assert end == LENGTH


def test_a_prefix_that_sees_forward_is_read_at_once() -> None:
    model, tokens, doc = decoder(PrefixLM(), Window(30)), some_tokens(300), {"prefix": 150}
    expected, runner = whole(model, tokens, doc), Runner(model, max_length=300)
    assert runner.least(300, doc) == (150, PrefixLM())
    slot, end = runner.open(300, doc), 0
    assert slot is not None
    for count in [170, 1, 100, 1, 28]:
        got = runner.read(tokens[end : end + count], [(slot, count)])
        end += count
        torch.testing.assert_close(got[0], expected[end - 1], atol=1e-6, rtol=1e-5)


def test_sequences_of_different_lengths_do_not_meet() -> None:
    pattern = Strided(block=16, local_blocks=2, stride=4)
    model = decoder(SinkWindow(window=50, sinks=3), pattern, Causal())
    texts = [some_tokens(length, seed) for seed, length in enumerate((200, 90, 333, 140))]
    expected = [whole(model, text) for text in texts]
    runner = Runner(model, max_length=400, num_slots=3)
    slots: dict[int, int] = {}
    at = [0] * len(texts)
    waiting = list(range(len(texts)))
    for turn in itertools.count():
        while waiting and (slot := runner.open(len(texts[waiting[0]]))) is not None:
            slots[waiting.pop(0)] = slot
        if not slots:
            break
        # In each step one reads much and the others little.
        counts = {n: min(len(texts[n]) - at[n], 37 if turn % 3 == n % 3 else 1) for n in slots}
        tokens = torch.cat([texts[n][at[n] : at[n] + count] for n, count in counts.items()])
        got = runner.read(tokens, [(slots[n], count) for n, count in counts.items()])
        for row, (n, count) in enumerate(counts.items()):
            at[n] += count
            torch.testing.assert_close(got[row], expected[n][at[n] - 1], atol=1e-6, rtol=1e-5)
            if at[n] == len(texts[n]):
                runner.cache.close(slots.pop(n))
    assert at == [len(text) for text in texts]
    assert runner.cache.num_bytes == 0


@pytest.mark.parametrize("scaling", [None, DynamicNTK(factor=2.0, original_length=64)], ids=str)
def test_keys_may_be_kept_before_they_are_rotated(scaling: RopeScaling | None) -> None:
    model, tokens = decoder(SinkWindow(window=50, sinks=3), Causal(), scaling=scaling), some_tokens(200)
    runner = Runner(model, max_length=200, rotated=False)
    slot, end = runner.open(200), 0
    assert slot is not None
    for count in (40, 1, 90, 1, 1, 1):
        got = runner.read(tokens[end : end + count], [(slot, count)])
        end += count
        # Frequencies are those of the text so far, in each step anew: first layers' keys follow them.
        expected = whole(model, tokens[:end]) if scaling is None else None
        if expected is not None:
            torch.testing.assert_close(got[0], expected[end - 1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rotated", [True, False])
def test_layers_that_do_not_rotate_never_do(rotated: bool) -> None:
    model, tokens = decoder(Causal(), Causal(), unturned=(1,)), some_tokens(200)
    expected, runner = whole(model, tokens), Runner(model, max_length=200, rotated=rotated)
    slot, end = runner.open(200), 0
    assert slot is not None
    for count in (40, 1, 90, 1, 68):
        got = runner.read(tokens[end : end + count], [(slot, count)])
        end += count
        torch.testing.assert_close(got[0], expected[end - 1], atol=1e-6, rtol=1e-5)


def test_one_layer_follows_frequencies_that_change() -> None:
    model, tokens = decoder(Causal(), scaling=DynamicNTK(factor=2.0, original_length=64)), some_tokens(200)
    runner = Runner(model, max_length=200, rotated=False)
    slot, end = runner.open(200), 0
    assert slot is not None
    for count in (40, 1, 90, 1, 1, 1):
        got = runner.read(tokens[end : end + count], [(slot, count)])
        end += count
        torch.testing.assert_close(got[0], whole(model, tokens[:end])[end - 1], atol=1e-6, rtol=1e-5)


def test_an_empty_page_is_never_read() -> None:
    model, tokens = decoder(SinkWindow(window=50, sinks=3), Causal()), some_tokens(200)
    runner = Runner(model, max_length=200)
    for kind in runner.cache.kinds:
        for room in (*kind.keys, *kind.values):
            room.fill_(1e4)
    slot = runner.open(200)
    assert slot is not None
    got = [runner.read(tokens[:150], [(slot, 150)]), *(runner.read(tokens[n : n + 1], [(slot, 1)]) for n in (150, 151))]
    torch.testing.assert_close(torch.cat(got), whole(model, tokens[:152])[149:], atol=1e-6, rtol=1e-5)


@dataclass(frozen=True)
class HalfOfAll(Pattern):
    """Sees the second half of its document."""

    def sees(self, q: Any, k: Any, h: Any, doc: Any) -> Any:  # type: ignore[override]
        return (k <= q) & (2 * k >= doc.length)


def test_what_asks_for_the_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layer 1: HalfOfAll\(\) asks for doc.length, which is not known"):
        Runner(decoder(Causal(), HalfOfAll()), max_length=100)


def test_an_attribute_that_is_not_told_is_refused() -> None:
    with pytest.raises(ValueError, match=r"doc.prefix, which must be told"):
        Runner(decoder(PrefixLM()), max_length=100).open(50)


@pytest.mark.parametrize("pattern", [~Window(window=70), Strided(16, 1, 4) | ~Causal()], ids=str)
def test_what_sees_forward_everywhere_asks_for_all_at_once(pattern: Pattern) -> None:
    least, whose = Runner(decoder(Causal(), pattern), max_length=200).least(200)
    assert least == 200 and whose == pattern
