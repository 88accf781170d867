"""What a request gives does not depend on what runs beside it, and no page stays behind."""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from examples import COMPOSED, PATTERNS

from lg.attention import Causal, Documents, Not, Or, Pattern, PrefixLM, SinkWindow, Strided
from lg.inference import Event, Request, Runner, Sampling, Scheduler
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder
from lg.models.rope_scaling import DynamicNTK, RopeScaling, plain


@functools.cache
def decoder(*patterns: Pattern, scaling: RopeScaling | None = None) -> Decoder:
    torch.manual_seed(0)
    config = DecoderConfig(
        num_layers=len(patterns), width=32, num_heads=4, num_kv_heads=2, head_width=16, ffn_width=32, vocab_size=50,
        rope_scaling=scaling,
    )  # fmt: skip
    model = Decoder(config, patterns).eval().double()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return model


HYBRID = SinkWindow(window=70, sinks=3), Strided(block=16, local_blocks=2, stride=4), Causal()


def prompt(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(50, (length,), generator=torch.Generator().manual_seed(seed))


def all_events(scheduler: Scheduler) -> dict[int, list[Event]]:
    told: dict[int, list[Event]] = {}
    while not scheduler.idle:
        for event in scheduler.step():
            told.setdefault(event.ticket, []).append(event)
    return told


def alone(request: Request, *patterns: Pattern) -> list[Event]:
    scheduler = Scheduler(Runner(decoder(*patterns), max_length=600))
    ticket = scheduler.submit(request)
    return [event for event in all_events(scheduler)[ticket] if event.token is not None]


def same(got: list[Event], want: list[Event]) -> None:
    got = [event for event in got if event.token is not None]
    assert [(event.token, event.finish) for event in got] == [(event.token, event.finish) for event in want]
    assert [event.logprob for event in got] == pytest.approx([event.logprob for event in want], abs=1e-9)


def test_requests_give_what_they_give_alone_and_no_page_stays() -> None:
    drawn = Sampling(1.0, top_p=0.9, repetition_penalty=1.2, seed=3)
    requests = [
        Request(prompt(length, seed), new, drawn if seed % 2 else Sampling(), frozenset({7, 8}))
        for seed, (length, new) in enumerate([(150, 20), (3, 40), (333, 5), (64, 1), (200, 30), (1, 12)])
    ]
    # Room for three, if they are short.
    runner = Runner(decoder(*HYBRID), max_length=400, num_slots=3, capacity=600)
    scheduler = Scheduler(runner, chunk=50)
    tickets = [scheduler.submit(request) for request in requests[:4]]
    told: dict[int, list[Event]] = {}
    for _ in range(5):
        for event in scheduler.step():
            told.setdefault(event.ticket, []).append(event)
    assert scheduler.num_running and scheduler.num_waiting and runner.cache.num_bytes
    tickets += [scheduler.submit(request) for request in requests[4:]]
    for ticket, events in all_events(scheduler).items():
        told.setdefault(ticket, []).extend(events)
    assert runner.cache.num_bytes == 0 and not runner.cache.lengths
    assert all(group.num_unreserved == group.num_pages for kind in runner.cache.kinds for group in kind.groups)
    for ticket, request in zip(tickets, requests, strict=True):
        same(told[ticket], alone(request, *HYBRID))
        assert told[ticket][-1].finish and not any(event.finish for event in told[ticket][:-1])


def test_the_likeliest_token_is_that_of_a_pass_over_all() -> None:
    model = decoder(*HYBRID)
    tokens = prompt(100)
    for event in alone(Request(tokens, 60), *HYBRID):
        with torch.no_grad():
            logits = model.logits(tokens[None], Documents(len(tokens)))[0, -1]
        assert event.token == int(logits.argmax())
        assert event.logprob == pytest.approx(float(logits.log_softmax(-1)[event.token]), abs=1e-6)
        tokens = torch.cat([tokens, torch.tensor([event.token])])


def test_the_first_to_come_begins_first_and_prompts_are_read_in_chunks() -> None:
    scheduler = Scheduler(Runner(decoder(*HYBRID), max_length=200, num_slots=2), chunk=64)
    first, second, third = (scheduler.submit(Request(prompt(length), 4)) for length in (100, 60, 10))
    told = [[(event.ticket, event.token is None, event.read) for event in scheduler.step()] for _ in range(3)]
    assert told[0] == [(first, True, 64)]
    assert told[1] == [(first, False, 100), (second, True, 28)]
    assert told[2] == [(first, False, 100), (second, False, 60)]
    assert (scheduler.num_running, scheduler.num_waiting) == (2, 1)
    assert list(all_events(scheduler)) == [first, second, third]
    assert scheduler.step() == []


def test_those_who_write_get_a_token_in_every_step_however_small_steps_are() -> None:
    scheduler = Scheduler(Runner(decoder(*HYBRID), max_length=200, num_slots=3), chunk=1)
    for length in (2, 3, 4):
        scheduler.submit(Request(prompt(length), 20))
    writing: set[int] = set()
    while not scheduler.idle:
        events = scheduler.step()
        assert writing <= {event.ticket for event in events if event.token is not None}
        writing = {event.ticket for event in events if event.token is not None and not event.finish}


def test_cancelled_requests_give_their_pages_back() -> None:
    runner = Runner(decoder(*HYBRID), max_length=300)
    scheduler = Scheduler(runner, chunk=64)
    running, waiting, last = (scheduler.submit(Request(prompt(200, seed), 9)) for seed in range(3))
    assert [event.read for event in scheduler.step()] == [64]
    for ticket in (running, waiting, 99):
        scheduler.cancel(ticket)
    assert not scheduler.idle
    events = scheduler.step()
    assert [(one.ticket, one.read, one.finish) for one in events] == [
        (running, 64, "cancelled"), (waiting, 0, "cancelled"), (last, 64, None),
    ]  # fmt: skip
    same(all_events(scheduler)[last], alone(Request(prompt(200, 2), 9), *HYBRID))
    scheduler.cancel(last)
    assert scheduler.idle and runner.cache.num_bytes == 0 and scheduler.step() == []


def test_an_id_that_ends_a_text_is_told() -> None:
    free = alone(Request(prompt(30), 12), *HYBRID)
    stop = free[5].token
    assert stop is not None
    ended = alone(Request(prompt(30), 12, stop=frozenset({stop})), *HYBRID)
    first = next(number for number, event in enumerate(free) if event.token == stop)
    assert [event.token for event in ended] == [event.token for event in free[: first + 1]]
    assert (ended[-1].finish, free[-1].finish) == ("stop", "length")


def test_a_prefix_that_sees_forward_is_read_in_one_chunk() -> None:
    patterns = PrefixLM(), Causal()
    request = Request(prompt(150), 5, doc={"prefix": 120})
    scheduler = Scheduler(Runner(decoder(*patterns), max_length=200, num_slots=2), chunk=32)
    scheduler.submit(Request(prompt(40, 1), 8, doc={"prefix": 0}))
    ticket = scheduler.submit(request)
    told = all_events(scheduler)[ticket]
    assert [event.read for event in told][:2] == [120, 150]
    same(told, alone(request, *patterns))


def test_a_prompt_whose_angles_follow_its_length_is_read_at_once() -> None:
    model = decoder(*HYBRID, scaling=DynamicNTK(factor=2.0, original_length=64))
    request, told = Request(prompt(200), 5), []
    for chunk, others in ((1000, 0), (32, 0), (50, 1)):
        scheduler = Scheduler(Runner(model, max_length=300, num_slots=2), chunk)
        for _ in range(others):
            scheduler.submit(Request(prompt(70, 1), 20))
        ticket = scheduler.submit(request)
        told.append(all_events(scheduler)[ticket])
    with torch.no_grad():
        logits = model.logits(request.tokens[None], Documents(200))[0, -1].log_softmax(-1)
    assert told[0][0].logprob == pytest.approx(float(logits.max()), abs=1e-6)
    same(told[1], told[0])
    same(told[2], told[0])


def test_seeds_give_the_same_again_and_none_another() -> None:
    def drawn(seed: int | None) -> list[int | None]:
        return [event.token for event in alone(Request(prompt(30), 12, Sampling(1.0, seed=seed)), *HYBRID)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(None) != drawn(None)


@pytest.mark.parametrize(
    ("request_", "patterns", "said"),
    [
        (dict(length=0), HYBRID, "the prompt is empty"),
        (dict(new=0), HYBRID, "max_new_tokens: 0 is not allowed"),
        (dict(tokens=[3, 50]), HYBRID, "the prompt has token 50; the model's are 0 to 49"),
        (dict(tokens=[-1]), HYBRID, "the prompt has token -1"),
        (dict(length=95, new=6), HYBRID, "room for 100: the longest prompt that fits has 94"),
        (dict(new=100), HYBRID, "room for 100: fewer must be written"),
        (
            dict(),
            (Or(Causal(), Not(Causal())),),
            r"Or\(.*\) sees tokens that are not written yet, wherever it stands, so it cannot write",
        ),
        (dict(doc={"prefix": 11}), (PrefixLM(),), "sees forward among the first 11 tokens, and the prompt has 10"),
        (dict(), (PrefixLM(),), "a pattern asks for doc.prefix"),
    ],
)
def test_what_can_never_be_served_is_refused(
    request_: Mapping[str, Any], patterns: tuple[Pattern, ...], said: str
) -> None:
    scheduler = Scheduler(Runner(decoder(*patterns), max_length=100))
    tokens = torch.tensor(request_["tokens"]) if "tokens" in request_ else prompt(request_.get("length", 10))
    with pytest.raises(ValueError, match=said):
        scheduler.submit(Request(tokens, request_.get("new", 3), doc=request_.get("doc", {})))
    assert scheduler.idle


def no_page_is_anywhere_twice(runner: Runner) -> None:
    for group in (group for kind in runner.cache.kinds for group in kind.groups):
        held = [page for table in group.tables.values() for page in table.physical.tolist()]
        free = group._free[: group._num_free].tolist()
        assert sorted(held + free) == list(range(group.num_pages))
        assert all(len(table.physical) <= table.reserved for table in group.tables.values())


@pytest.mark.parametrize("seed", range(4))
def test_any_patterns_in_any_steps_give_what_a_pass_over_all_gives(seed: int) -> None:
    dice = random.Random(seed)
    causal = [one for one in PATTERNS + COMPOSED if one.made_for in (None, 2) and not reads_ahead(one)]
    model = decoder(*dice.sample(causal, 3))
    longest, slots = dice.choice([65, 128, 200, 321]), dice.randint(1, 5)
    runner = Runner(model, longest, slots, capacity=dice.choice([1, longest, 3 * longest // 2, slots * longest]))
    scheduler = Scheduler(runner, chunk=dice.randint(1, 300))
    asks = any(kind.pattern.attributes for kind in runner.cache.kinds)
    requests: dict[int, Request] = {}
    told: dict[int, list[Event]] = {}
    while len(requests) < 12 or not scheduler.idle:
        if len(requests) < 12 and dice.random() < 0.5:
            new = dice.choice([1, 2, dice.randint(1, 30)])
            tokens = prompt(dice.randint(1, longest - new), len(requests))
            doc = {"prefix": dice.randint(0, len(tokens))} if asks else {}
            sampling = Sampling() if dice.random() < 0.5 else Sampling(1.0, seed=dice.randint(0, 9))
            request = Request(tokens, new, sampling, frozenset({3}), doc)
            requests[scheduler.submit(request)] = request
        if requests and dice.random() < 0.05:
            scheduler.cancel(dice.choice(list(requests)))
        for event in scheduler.step():
            told.setdefault(event.ticket, []).append(event)
        no_page_is_anywhere_twice(runner)
    assert runner.cache.num_bytes == 0 and told.keys() == requests.keys()
    for ticket, request in requests.items():
        got = [event for event in told[ticket] if event.token is not None]
        tokens = torch.cat([request.tokens, torch.tensor([event.token for event in got], dtype=torch.int64)])
        attributes = {name: [value] for name, value in request.doc.items()}
        with torch.no_grad():
            whole = model.logits(tokens[None], Documents(len(tokens), attributes=attributes))[0].log_softmax(-1)
        for place, event in enumerate(got, len(request.tokens) - 1):
            assert event.token is not None
            assert event.logprob == pytest.approx(float(whole[place, event.token]), abs=1e-5)
            if request.sampling == Sampling():
                assert float(whole[place].max()) == pytest.approx(float(whole[place, event.token]), abs=1e-5)


def reads_ahead(pattern: Pattern) -> bool:
    """Whether it sees forward, apart from a prefix that is told."""
    return "Not(" in repr(pattern) or (not pattern.attributes and pattern.sees_later(400, 2))


def test_many_requests_that_come_and_go() -> None:
    runner = Runner(decoder(*HYBRID), max_length=160, num_slots=4, capacity=300)
    scheduler, dice = Scheduler(runner, chunk=40), random.Random(0)
    requests: dict[int, Request] = {}
    told: dict[int, list[Event]] = {}
    cancelled: set[int] = set()
    while len(requests) < 25 or not scheduler.idle:
        if len(requests) < 25 and dice.random() < 0.5:
            request = Request(prompt(dice.randint(1, 120), len(requests)), dice.randint(1, 20))
            requests[scheduler.submit(request)] = request
        if requests and dice.random() < 0.1:
            ticket = dice.choice(list(requests))
            scheduler.cancel(ticket)
            cancelled.add(ticket)
        for event in scheduler.step():
            told.setdefault(event.ticket, []).append(event)
    assert runner.cache.num_bytes == 0
    assert told.keys() == requests.keys()
    ended = [ticket for ticket, events in told.items() if events[-1].finish != "cancelled"]
    assert set(requests) - cancelled <= set(ended) and len(ended) < 25
    for ticket in ended[:6]:
        same(told[ticket], alone(requests[ticket], *HYBRID))


def test_logits_that_are_no_numbers_end_their_own_request_only() -> None:
    damaged = copy.deepcopy(decoder(*HYBRID))
    damaged.embedding.weight.data[7] = torch.nan
    sound, bad = prompt(150), prompt(90)
    sound[sound == 7], bad[-1] = 8, 7
    # The likeliest token may be the one that is damaged.
    damaged.head.weight.data[7] = -1.0
    scheduler = Scheduler(Runner(damaged, max_length=600, num_slots=2))
    first, second, third = (scheduler.submit(Request(text, 5)) for text in (sound, bad, sound))
    told = all_events(scheduler)
    assert (told[second][-1].finish, told[second][-1].token) == ("failed", None)
    assert scheduler.runner.cache.num_bytes == 0
    # The last of them lies where the failed one lay.
    same(told[third], [event for event in told[first] if event.token is not None])


@dataclass(frozen=True)
class ByLength(RopeScaling):
    """A user's own that turns more slowly in longer texts."""

    by_length = True

    def frequencies(self, head_width: int, theta: float, length: int, device: torch.device) -> torch.Tensor:
        return plain(head_width, theta, device) / (1 + length / 100)


def test_a_scaling_of_ones_own_may_go_by_the_length() -> None:
    text = prompt(120)
    for chunk in (2048, 50):
        runner = Runner(decoder(Causal(), scaling=ByLength()), max_length=200)
        scheduler = Scheduler(runner, chunk=chunk)
        ticket = scheduler.submit(Request(text, 3))
        tokens = [event.token for event in all_events(scheduler)[ticket] if event.token is not None]
        for token in tokens:
            logits = decoder(Causal(), scaling=ByLength()).logits(text[None], Documents(len(text)))
            assert token == int(logits[0, -1].argmax())
            text = torch.cat([text, torch.tensor([token])])
        text = text[:120]
