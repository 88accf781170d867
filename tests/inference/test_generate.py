"""Written texts are those of transformers, and come in whole characters."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lg
from lg.attention import Causal, Pattern, SinkWindow, Window
from lg.data import Bytes
from lg.inference import Runner, Sampling, Scheduler, Text, generate, room, stream
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder
from lg.models.pretrained import open_pretrained
from lg.models.pretrained.out import save


@functools.cache
def decoder(*patterns: Pattern) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(
        num_layers=len(patterns), width=32, num_heads=4, num_kv_heads=2, head_width=16, ffn_width=32, vocab_size=256
    )
    model = Decoder(config, patterns).eval().double()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return model


HYBRID = SinkWindow(window=70, sinks=3), Causal()


def prompt(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 256, (length,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_likeliest_tokens_are_those_of_transformers(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=256, initializer_range=0.3, max_position_embeddings=512,
    )  # fmt: skip
    theirs: Any = LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    theirs, ours = theirs.to(dtype), open_pretrained(tmp_path).decoder().eval().to(dtype)
    prompts = [prompt(length, length) for length in (200, 31)]
    written = generate(ours, prompts, 100, chunk=64)
    for tokens, one in zip(prompts, written, strict=True):
        whole = theirs.generate(tokens[None], max_new_tokens=100, do_sample=False, eos_token_id=None, use_cache=True)
        assert one.tokens == whole[0, len(tokens) :].tolist()
        assert len(set(one.tokens)) > 10


@pytest.mark.parametrize("sees", [(Window(window=20), Causal()), (SinkWindow(window=20, sinks=3), Causal())], ids=str)
def test_an_exported_hybrid_writes_the_same(sees: tuple[Pattern, ...], tmp_path: Path) -> None:
    model = decoder(*sees)
    save(tmp_path / "out", model.state_dict(), model.config, sees, 512)
    back = open_pretrained(tmp_path / "out")
    assert back.sees == sees
    again = back.decoder().eval().double()
    assert generate(again, [prompt(100)], 40)[0].tokens == generate(model, [prompt(100)], 40)[0].tokens


def test_a_batch_is_what_each_is_alone() -> None:
    model, prompts = decoder(*HYBRID), [prompt(length, length) for length in (150, 1, 70)]
    sampling = Sampling(0.9, top_k=40, seed=1)
    together = generate(model, prompts, 30, sampling)
    assert [one.tokens for one in together] == [generate(model, [one], 30, sampling)[0].tokens for one in prompts]
    assert lg.generate is generate and generate(model, [], 3) == []


class Few(Bytes):
    """Bytes whose ids also stand for characters and words."""

    def decode(self, ids: Any) -> bytes:
        return b"".join(WORDS[number] if number < len(WORDS) else bytes([number]) for number in ids)


WORDS = [b" the", b"\xf0\x9f", b"\x98\x80", b"lo END", b" E", b"ND", b"\xff"]


def told(ids: Sequence[int], stop: Sequence[str] = ()) -> list[str]:
    text = Text(Few(), stop)
    return [*(text.add(number) for number in ids), text.end()]


def test_pieces_are_whole_characters() -> None:
    assert told([0, 1, 2, 33]) == [" the", "", "\U0001f600", "!", ""]
    assert told([65, 0xC3]) == ["A", "", "\ufffd"]
    junk = [6] * 40 + [0xC3, 0xA4, 65]
    pieces = told(junk)
    assert "".join(pieces) == "\ufffd" * 40 + "\xe4A"
    assert sum(map(bool, pieces)) > 30


@pytest.mark.parametrize(
    ("ids", "stop", "want"),
    [
        ([0, 3, 0], ["END"], [" the", "lo ", "", ""]),
        ([0, 4, 5, 0], ["END"], [" the", " ", "", "", ""]),
        ([0, 4, 0], ["END"], [" the", " ", "E the", ""]),
        ([0, 4], ["END"], [" the", " ", "E"]),
        ([0, 4, 5], [" END", "he"], [" t", "", "", ""]),
        ([1, 2, 65], ["\U0001f600"], ["", "", "", ""]),
        ([65, 65, 65, 66], ["AAB"], ["", "", "A", "", ""]),
    ],
)
def test_strings_that_end_a_text_may_straddle_tokens(ids: list[int], stop: list[str], want: list[str]) -> None:
    assert told(ids, stop) == want


def test_a_string_ends_a_text_and_frees_its_pages() -> None:
    model = decoder(*HYBRID)
    free = generate(model, ["Once upon a time"], 60, tokenizer=Bytes())[0]
    assert free.text == Bytes().decode(free.tokens).decode(errors="replace")
    stop = free.text[20:23]
    ended = generate(model, ["Once upon a time"], 60, tokenizer=Bytes(), stop_strings=[stop])[0]
    assert (ended.text, ended.finish) == (free.text[: free.text.index(stop)], "stop")
    assert len(ended.tokens) < 60 and ended.tokens == free.tokens[: len(ended.tokens)]


def test_an_id_that_ends_a_text_is_not_part_of_it() -> None:
    model = decoder(*HYBRID)
    free = generate(model, ["Once"], 30, tokenizer=Bytes())[0]
    ended = generate(model, ["Once"], 30, tokenizer=Bytes(), stop=[free.tokens[7]])[0]
    count = free.tokens.index(free.tokens[7])
    assert ended.tokens == free.tokens[: count + 1] and ended.finish == "stop"
    assert ended.text == Bytes().decode(free.tokens[:count]).decode(errors="replace")


def test_a_stream_that_is_left_gives_its_pages_back() -> None:
    runner = Runner(decoder(*HYBRID), max_length=200, num_slots=2)
    scheduler = Scheduler(runner, chunk=50)
    pieces = stream(scheduler, [prompt(100), prompt(40)], 30, tokenizer=Bytes())
    first = next(pieces)
    assert (first.prompt, first.text, first.event.read) == (0, "", 50) and runner.cache.num_bytes
    pieces.close()
    assert scheduler.idle and runner.cache.num_bytes == 0
    with pytest.raises(ValueError, match="the prompt is empty"):
        stream(scheduler, [prompt(100), prompt(0)], 30)
    assert scheduler.idle


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(prompts=["text"]), "a prompt of text is not allowed without a tokenizer"),
        (dict(prompts=[[1]], stop_strings=["a"]), "stop_strings: not allowed without a tokenizer"),
        (dict(prompts=["a"], stop_strings=[""], tokenizer=Bytes()), "stop_strings: an empty string is not allowed"),
        (dict(prompts=[""], tokenizer=Bytes()), "the prompt is empty"),
        (dict(prompts=[[1]], max_new_tokens=0), "max_new_tokens: 0 is not allowed"),
        (dict(prompts="text", tokenizer=Bytes()), "prompts: a text alone is not allowed"),
        (dict(prompts=[1, 2]), "a prompt of ids is a list of integers, not 1"),
        (dict(prompts=[[1.5]]), r"a prompt of ids is a list of integers, not \[1.5\]"),
        (dict(prompts=[torch.ones(3)]), "a prompt of ids is a list of integers, not tensor"),
        (dict(prompts=[[True]]), "a prompt of ids is a list of integers"),
        (dict(prompts=[[2**70]]), "a prompt of ids is a list of integers"),
        (dict(prompts=[["a"]]), "a prompt of ids is a list of integers"),
        (dict(prompts=[None]), "a prompt of ids is a list of integers, not None"),
        (dict(prompts=[[1]], stop="ab"), "stop: 'ab' is not allowed; it must list ids of the model, 0 to 255"),
        (dict(prompts=[[1]], stop=[256]), r"stop: \[256\] is not allowed"),
        (dict(prompts=[[1]], stop=["a"]), r"stop: \['a'\] is not allowed"),
        (dict(prompts=[[1]], stop=5), "stop: 5 is not allowed"),
        (dict(prompts=["a"], stop_strings="ab", tokenizer=Bytes()), "stop_strings: 'ab' is not allowed; it must list"),
        (dict(prompts=["a"], stop_strings=[b"a"], tokenizer=Bytes()), r"stop_strings: \[b'a'\] is not allowed"),
        (dict(prompts=[[1]], max_new_tokens=2**60), "max_new_tokens: 1,152,.* it may be at most 16,777,216"),
        (dict(prompts=[[1]], max_new_tokens=True), "max_new_tokens: True is not allowed"),
        (dict(prompts=[[1]], chunk=0), "chunk: 0 is not allowed"),
    ],
)
def test_refusals(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        generate(decoder(*HYBRID), **{"max_new_tokens": 3, **options})


def test_what_has_no_room_is_refused_and_what_has_none_together_is_written_in_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, prompts = decoder(*HYBRID), [prompt(300, 1), prompt(300, 2)]
    want = [generate(model, [one], 20)[0].tokens for one in prompts]
    free = room.room_bytes(model, 320)
    monkeypatch.setattr(room, "free_memory", lambda device: free / room.SHARE + 1)
    assert room.room_bytes(model, 320, 2, 640) > free
    assert [one.tokens for one in generate(model, prompts, np.int64(20))] == want  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"the prompt has 300 tokens, and with 2,000 new ones its keys .* fewer must"):
        generate(model, prompts, 2000)


def test_ids_that_pad_a_vocabulary_have_no_text() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(decoder(*HYBRID).config, vocab_size=600)
    written = generate(
        Decoder(config, HYBRID).eval(), ["Once"], 40, Sampling(temperature=5.0, seed=0), tokenizer=Bytes()
    )[0]
    assert max(written.tokens) > 255
    assert written.text == bytes(one for one in written.tokens if one < 256).decode(errors="replace")


@pytest.mark.network
@pytest.mark.slow
def test_the_real_smollm2_writes_what_transformers_writes(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lg.cli import main

    assert main(["import", "smollm2", str(tmp_path / "smollm2")]) == 0
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "smollm2")
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :1024]
    assert ids.shape[1] == 1024
    written = generate(open_pretrained(tmp_path / "smollm2").decoder().eval(), [ids[0]], 100)[0]
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "smollm2", dtype=torch.float32).eval()
    whole = theirs.generate(ids, max_new_tokens=100, do_sample=False, eos_token_id=None)
    assert written.tokens == whole[0, 1024:].tolist()
