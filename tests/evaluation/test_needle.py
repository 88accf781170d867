"""Needles are where they are said to be, and their scores are what a direct computation gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lg.attention import Causal, Documents, PrefixLM, SinkWindow
from lg.data import Bytes, Tokenizer, TokenizerFile
from lg.evaluation import Needles, haystack, pack, score
from lg.models.decoder import Decoder
from lg.models.presets import preset

TEXT = torch.frombuffer(bytearray(b"all work and no play makes jack a dull boy. " * 9), dtype=torch.uint8).long()
TEXT_TWICE = Bytes().decode(TEXT.numpy()).decode() * 2
GRID = Needles(lengths=(160, 256), depths=(0.0, 0.5, 1.0), samples=2)


def words(folder: Path) -> Tokenizer:
    """A tokenizer.json that gives a word, a space and a digit each an id."""
    tokenizers = pytest.importorskip("tokenizers")
    texts = ["the", "magic", "number", "of", "is", "all", "work", "and", "no", "play", "makes", "jack", "a", "."]
    names = ["[UNK]", "</s>", " ", "\n", *texts, *"0123456789"]
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[a-zA-Z]+|."), "isolated")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({name: n for n, name in enumerate(dict.fromkeys(names))}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = split
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return TokenizerFile(str(path))


def decoder(*patterns: object) -> Decoder:
    torch.manual_seed(0)
    config = preset("tiny", num_layers=len(patterns), width=32, ffn_width=32)
    return Decoder(config, list(patterns)).eval()  # type: ignore[arg-type]


def test_the_text_of_a_prompt_holds_the_needle_at_its_depth_and_ends_in_the_answer() -> None:
    for question in haystack(GRID, Bytes(), TEXT).questions:
        assert len(question.told) == len(question.misled) == question.length
        told, misled = (Bytes().decode(prompt.numpy()).decode() for prompt in (question.told, question.misled))
        found = re.fullmatch(r"(.*)\n(The magic number of \w+ is )(\d{5})\.\n(.*)\n\2\3", told, re.DOTALL)
        assert found
        before, lead, answer, after = found.groups()
        assert len(before) == round(question.depth * len(before + after))
        assert before + after in TEXT_TWICE
        head, tail = (re.escape(part) for part in (f"{before}\n{lead}", f".\n{after}\n{lead}{answer}"))
        other = re.fullmatch(head + r"(\d{5})" + tail, misled)
        assert other and other[1] != answer


def test_prompts_are_drawn_from_the_seed_and_their_own_place_alone() -> None:
    before = torch.get_rng_state()
    alone = haystack(Needles(lengths=(256,), depths=(0.5,)), Bytes(), TEXT).questions[0]
    among = haystack(GRID, Bytes(), TEXT).questions[3 * 2]
    assert torch.equal(alone.told, among.told) and torch.equal(alone.misled, among.misled)
    other = haystack(Needles(lengths=(256,), depths=(0.5,), seed=1), Bytes(), TEXT).questions[0]
    assert not torch.equal(alone.told, other.told)
    assert torch.equal(before, torch.get_rng_state())


def test_the_score_is_that_of_prompts_read_one_by_one(tmp_path: Path) -> None:
    for tokenizer in (Bytes(), words(tmp_path)):
        model = decoder(SinkWindow(window=32), Causal())
        hay = haystack(GRID, tokenizer, torch.from_numpy(tokenizer.encode(bytes(TEXT.tolist())).astype("int64")))
        got = score(model, hay)
        gains, hits = [], []
        for question in hay.questions:
            answer = question.told[-question.num_answer :]
            likelihood = []
            for prompt in (question.told, question.misled):
                with torch.no_grad():
                    logits = model.logits(prompt[None], Documents(len(prompt)))[0, -1 - question.num_answer : -1]
                likelihood.append(-torch.nn.functional.cross_entropy(logits, answer))
                if prompt is question.told:
                    hits.append((logits.argmax(-1) == answer).double().mean())
            gains.append((likelihood[0] - likelihood[1]).double())
        torch.testing.assert_close(got.gain, torch.stack(gains).view(3, 2, 2).mean(2), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got.accuracy, torch.stack(hits).view(3, 2, 2).mean(2))
        assert got.gain.abs().max() > 1e-4


def test_a_window_that_does_not_reach_the_needle_gains_nothing() -> None:
    needles = Needles(lengths=(256,), depths=(0.0, 1.0), samples=2)
    far, near = score(decoder(SinkWindow(window=64, sinks=1)), haystack(needles, Bytes(), TEXT)).gain[:, 0]
    assert far == pytest.approx(0, abs=1e-6)
    assert abs(near) > 1e-6


def test_a_prompt_must_have_room() -> None:
    with pytest.raises(
        ValueError, match=r"a needle of 40 tokens is not allowed; sentence, question and answer take \d"
    ):
        haystack(Needles(lengths=(40,)), Bytes(), TEXT)


def test_the_budget_counts_every_token() -> None:
    hay = haystack(GRID, Bytes(), TEXT)
    assert sum(len(q.told) + len(q.misled) for q in hay.questions) == GRID.num_tokens == 2 * 2 * 3 * (160 + 256)


def test_prompts_fill_sequences_of_one_length() -> None:
    prompts = [torch.arange(n) + 1 for n in (3, 8, 5, 2)]
    packed = pack(prompts, 8, {"prefix"}, padding=0)
    assert [one.tokens.tolist()[0] for one in packed] == [
        [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 1, 2, 3], [1, 2, 0, 0, 0, 0, 0, 0],
    ]  # fmt: skip
    assert [one.starts for one in packed] == [{1: 0}, {2: 0, 0: 5}, {3: 0}]
    assert [one.documents.starts for one in packed] == [(0,), (0, 5), (0, 2)]
    assert packed[1].documents.attributes == {"prefix": (0, 0)}


def test_prompts_have_no_prefix() -> None:
    model = decoder(PrefixLM())
    got = score(model, haystack(GRID, Bytes(), TEXT, {"prefix"}))
    model = decoder(Causal())
    torch.testing.assert_close(got.gain, score(model, haystack(GRID, Bytes(), TEXT)).gain)
