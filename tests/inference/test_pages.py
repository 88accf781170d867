"""Pages are kept while a later query may see any of their tokens, and not a step longer."""

from __future__ import annotations

import random

import pytest
import torch
from examples import COMPOSED, PATTERNS

from lg.attention import Causal, Pattern, SinkWindow, Strided, Window
from lg.attention.pattern import NAMES
from lg.inference import Cache
from lg.inference.cache import groups_of
from lg.inference.formats import Plain
from lg.inference.head import OfHead
from lg.inference.lifetime import PAGE, last_queries, most_held
from lg.testing import check_pattern

END = 500
TOLD = [pattern for pattern in PATTERNS + COMPOSED if not pattern.attributes]


@pytest.mark.parametrize("pattern", TOLD, ids=str)
def test_the_last_query_of_a_page_is_that_of_brute_force(pattern: Pattern) -> None:
    for one, heads in groups_of(pattern, pattern.made_for or 4, END):
        head = torch.tensor(heads)[:, None, None]
        seen = pattern.mask(torch.arange(END)[:, None], torch.arange(END), head)
        assert bool((seen == seen[:1]).all())
        expected = []
        for page in seen[0].split(PAGE, dim=1):
            queries = page.any(1).nonzero()
            expected.append(int(queries.max()) if len(queries) else -1)
        assert last_queries(one, END).tolist() == expected


@pytest.mark.parametrize("pattern", [one for one in TOLD if not one.sees_later(END, one.made_for or 4)], ids=str)
def test_pages_are_those_of_kept_and_never_more_than_reserved(pattern: Pattern) -> None:
    heads = pattern.made_for or 4
    rng = random.Random(str(pattern))
    cache = Cache([pattern], heads, 8, max_length=END, num_slots=2)
    for _ in range(3):
        length = rng.choice([70, 300, END])
        slot = cache.open(length)
        assert slot is not None
        while cache.lengths[slot] < length:
            count = min(rng.choice([1, 1, 5, 64, 100, 250]), length - cache.lengths[slot])
            cache.end(cache.begin([(slot, count)]))
            now = cache.lengths[slot]
            if now == END:
                continue
            kept = pattern.kept(now, END, heads)
            for group in cache.kinds[0].groups:
                runs = kept.runs(group.heads[0] if kept.heads > 1 else 0)
                pages = {token // PAGE for first, end in runs for token in range(first, end)}
                # The page that is being filled is there too, whatever later queries see of it.
                held = set(group.tables[slot].logical.tolist())
                assert pages <= held <= pages | {now // PAGE}
        cache.close(slot)
    assert cache.num_bytes == 0


@pytest.mark.parametrize("head", [0, 1, 3])
def test_the_view_of_one_head_keeps_the_contract_of_patterns(head: int) -> None:
    pattern = Strided(block=16, local_blocks=2, stride=4)
    view = OfHead(pattern, head)
    report = check_pattern(view)
    assert (report.empty, report.full_as_partial) == (0, 0)
    q, k = torch.arange(200)[:, None], torch.arange(200)
    assert torch.equal(view.mask(q, k, 2), pattern.mask(q, k, head))
    assert "OfHead" not in NAMES


def test_a_window_holds_a_window() -> None:
    cache = Cache([Window(128), Causal()], 2, 16, max_length=12800, formats=(Plain(torch.bfloat16),) * 2)
    slot = cache.open(6400)
    assert slot is not None
    most = 0
    while cache.lengths[slot] < 6400:
        cache.end(cache.begin([(slot, 320)]))
        most = max(most, cache.kinds[0].groups[0].num_held)
    assert most == 2
    assert cache.kinds[0].num_bytes == 2 * PAGE * 2 * 16 * 2 * 2
    assert cache.kinds[1].num_bytes == 100 * PAGE * 2 * 16 * 2 * 2


def test_a_sequence_is_let_in_only_when_its_pages_are_there() -> None:
    cache = Cache([Causal()], 1, 8, max_length=640, num_slots=4, capacity=1280)
    slots = [cache.open(640), cache.open(320), cache.open(320)]
    assert None not in slots and cache.open(64) is None
    cache.close(1)
    assert cache.open(640) is None
    assert cache.open(300) == 1


def test_what_a_sequence_may_hold_is_what_it_can_come_to_hold() -> None:
    assert most_held(last_queries(Causal(), 6400), 6400) == 100
    assert most_held(last_queries(Causal(), 6400), 65) == 2
    # Sinks, a window, and what a chunk leaves behind.
    assert most_held(last_queries(SinkWindow(window=128, sinks=4), 6400), 6400) <= 2 * 4 + 2
