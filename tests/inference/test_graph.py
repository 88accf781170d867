"""A step as a function of what lies on the device gives what reading piece by piece gives, whatever came before."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
from torch import Tensor

from lg.attention import Causal, Documents, Pattern, PrefixLM, SinkWindow, Strided
from lg.inference import Request, Runner, Scheduler
from lg.inference.formats import Format, Int8, Plain
from lg.inference.graph import SingleTokens
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder
from lg.models.rope_scaling import DynamicNTK, Llama3, RopeScaling

VOCABULARY = 50


def decoder(
    *patterns: Pattern, scaling: RopeScaling | None = None, unturned: tuple[int, ...] = (), heads: int = 2
) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(
        num_layers=len(patterns), width=32, num_heads=2 * heads, num_kv_heads=heads, head_width=16, ffn_width=32,
        vocab_size=VOCABULARY, rope_scaling=scaling, no_rope_layers=unturned,
    )  # fmt: skip
    model = Decoder(config, patterns).eval()
    for parameter in model.parameters():
        # Larger than first weights are: attention is far from uniform.
        parameter.data.mul_(2)
    return model


def some_tokens(count: int, seed: int) -> Tensor:
    return torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))


def single(runner: Runner) -> SingleTokens:
    assert runner._single is not None
    return runner._single


STRIDED = Strided(block=16, local_blocks=2, stride=3)


def test_sequences_that_come_and_go() -> None:
    """Pages are taken and given back, and slots used again, while numbers of sequences change and come again."""
    model = decoder(STRIDED, SinkWindow(window=30, sinks=3), scaling=Llama3(4.0, 64), unturned=(1,))
    told = []
    for graphs in (False, True):
        rng = random.Random(1654)
        runner = Runner(model, max_length=110, num_slots=3, graphs=graphs)
        texts: dict[int, Tensor] = {}
        said, taken, num_closed, mixed = [], 0, 0, 0
        for turn in range(24):
            if (len(runner.cache.lengths) < 3 and rng.random() < 0.3) or not runner.cache.lengths:
                length = rng.randrange(65, 110)
                slot = runner.open(length)
                assert slot is not None
                texts[slot], begun = some_tokens(length, turn), length - rng.randrange(3, 9)
                # Its prompt is read beside what the others write.
                step = [(other, 1) for other in runner.cache.lengths if other != slot]
                step.insert(len(step) // 2, (slot, begun))
                mixed += len(step) == 3
            else:
                slots = rng.sample(sorted(runner.cache.lengths), rng.randint(1, len(runner.cache.lengths)))
                step = [(slot, 1) for slot in slots]
                taken += 1
            at = runner.cache.lengths
            tokens = torch.cat([texts[slot][at[slot] : at[slot] + count] for slot, count in step])
            said.append(runner.read(tokens, step))
            for slot, _ in step:
                if runner.cache.lengths[slot] == len(texts[slot]):
                    runner.cache.close(slot)
                    num_closed += 1
        assert taken > 13 and num_closed > 3 and mixed
        if graphs:
            assert single(runner).num_recorded == 3
        told.append(torch.cat(said))
    torch.testing.assert_close(*told, atol=1e-4, rtol=1e-4)


def test_the_likeliest_tokens_go_on_by_themselves() -> None:
    model, prompts = (
        decoder(SinkWindow(window=20, sinks=3), Causal(), heads=1),
        [some_tokens(30, 0), some_tokens(58, 1)],
    )
    runner = Runner(model, max_length=90, num_slots=2, graphs=True)
    slots = [runner.open(90) or 0 for _ in prompts]
    counts = [(slot, len(prompt)) for slot, prompt in zip(slots, prompts, strict=True)]
    tokens = runner.likeliest(torch.cat(prompts), counts)
    texts = list(prompts)
    for _ in range(12):
        texts = [torch.cat((text, token[None])) for text, token in zip(texts, tokens.clone(), strict=True)]
        tokens = runner.likeliest(tokens, [(slot, 1) for slot in slots])
    for text, prompt in zip(texts, prompts, strict=True):
        with torch.no_grad():
            expected = model.logits(text[None], Documents(len(text)))[0].argmax(-1)
        assert text[len(prompt) :].tolist() == expected[len(prompt) - 1 : -1].tolist()


def test_what_is_read_need_not_be_the_likeliest() -> None:
    model, text = decoder(Causal(), heads=1), some_tokens(70, 0)
    runner = Runner(model, max_length=70, graphs=True)
    slot = runner.open(70) or 0
    got = [runner.read(text[:60], [(slot, 60)]), *(runner.read(text[n : n + 1], [(slot, 1)]) for n in range(60, 70))]
    with torch.no_grad():
        expected = model.logits(text[None], Documents(70))[0]
    torch.testing.assert_close(torch.cat(got), expected[59:], atol=1e-4, rtol=1e-4)


def test_each_document_is_told_its_own() -> None:
    model, tokens = decoder(PrefixLM(), heads=1), some_tokens(150, 0)
    answers = []
    for graphs in (False, True):
        runner = Runner(model, max_length=150, num_slots=2, graphs=graphs)
        slots = [runner.open(150, {"prefix": prefix}) or 0 for prefix in (80, 20)]
        runner.read(torch.cat((tokens[:85], tokens[:30])), list(zip(slots, (85, 30), strict=True)))
        answers += [torch.cat([runner.read(tokens[n : n + 2], [(slot, 1) for slot in slots]) for n in range(6)])]
    torch.testing.assert_close(*answers, atol=1e-4, rtol=1e-4)


def test_a_scheduler_writes_the_same() -> None:
    model = decoder(SinkWindow(window=30, sinks=3), heads=1)
    written = []
    for graphs in (False, True):
        scheduler = Scheduler(Runner(model, max_length=150, num_slots=2, graphs=graphs), chunk=40)
        for seed, length in enumerate((70, 20, 45)):
            scheduler.submit(Request(some_tokens(length, seed), max_new_tokens=5 + seed))
        events = []
        while not scheduler.idle:
            events += scheduler.step()
        assert scheduler.runner.cache.num_bytes == 0
        written.append([(event.ticket, event.token, event.finish) for event in events])
    assert written[0] == written[1]


def test_what_is_not_possible_is_refused() -> None:
    changing = decoder(Causal(), scaling=DynamicNTK(factor=2.0, original_length=64))
    for model, options, why in (
        (decoder(Causal()), {"impl": "gather"}, "attention implementation 'gather' is asked for"),
        (decoder(Causal()).double(), {}, "are for bfloat16, float16, float32, not float64"),
        (decoder(Causal()), {"rotated": False}, "keys that are kept before they are rotated"),
        (changing, {"rotated": True}, r"angles of DynamicNTK\(.*\) change with the length"),
    ):
        with pytest.raises(ValueError, match=f"graphs: True is not possible here: .*{why}"):
            Runner(model, max_length=100, graphs=True, **options)  # type: ignore[arg-type]
        assert Runner(model, max_length=100, **options)._single is None  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="graphs: 'always' is not allowed; it must be True, False or 'auto'"):
        Runner(decoder(Causal()), max_length=100, graphs="always")  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.parametrize("form", [Plain(torch.bfloat16), Int8()], ids=str)
def test_recorded_steps_equal_others(form: Format) -> None:
    model = decoder(SinkWindow(window=50, sinks=3), STRIDED, Causal()).to("cuda", torch.bfloat16)
    answers = []
    for graphs in (False, True):
        runner = Runner(model, max_length=300, num_slots=3, formats=(form, form), graphs=graphs)
        slots = [runner.open(300) or 0 for _ in range(3)]
        runner.read(some_tokens(135, 0).cuda(), [(slots[0], 70), (slots[1], 5), (slots[2], 60)])
        said = []
        for turn in range(150):
            # Numbers change, and come again after others were recorded.
            on = slots[: 1 + turn // 7 % 3]
            said.append(runner.read(some_tokens(len(on), turn).cuda(), [(slot, 1) for slot in on]))
        answers.append(torch.cat(said))
    torch.testing.assert_close(*answers, atol=5e-2, rtol=5e-2)


@pytest.mark.gpu
def test_nothing_waits_for_the_device() -> None:
    model = decoder(SinkWindow(window=50, sinks=3), STRIDED, Causal()).to("cuda", torch.bfloat16)
    runner = Runner(model, max_length=300, num_slots=2)
    counts = [(runner.open(300) or 0, 1) for _ in range(2)]
    tokens = torch.zeros(2, dtype=torch.int64, device="cuda")
    for _ in range(3):
        tokens = runner.likeliest(tokens, counts)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode")
            torch.cuda.set_sync_debug_mode("error")
        for _ in range(50):
            tokens = runner.likeliest(tokens, counts)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert runner.cache.lengths == {slot: 53 for slot, _ in counts}
