"""Of the ways to keep activations the fastest that fits is taken, and it is said why."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import pytest

from lg.attention import Causal, Pattern, PrefixLM, Window
from lg.models.auto_memory import choose
from lg.models.devices import DEVICES, of_kind
from lg.models.memory import Memory
from lg.models.planned import Choice, Planned, Training, plannable, taken
from lg.models.presets import preset

LAYERS = [Causal(), *[Window(1024)] * 15]
ONE = Training(1, 1, 1, "bf16-true", 1, sharded=False)
PLANNED = Planned(preset("llama-3.2-1b"), LAYERS, False, ONE, 1, 32768, None, DEVICES["H100"])


def held(gib: float, host_gib: float | None = None) -> Planned:
    """The plan, on a device of which tensors may fill so much."""
    device = replace(PLANNED.device, memory=int(gib * 2**30 / 0.92) + 2)
    return replace(PLANNED, device=device, host_limit=None if host_gib is None else int(host_gib * 2**30))


def fastest(planned: Planned) -> Choice:
    best = taken(planned.choices())
    assert best is not None
    return best


def test_less_memory_takes_a_way_that_is_no_faster_and_fits() -> None:
    before = 0.0
    for gib in (80, 45, 25, 20, 18, 16):
        planned = held(gib)
        best = fastest(planned)
        assert best.footprint.peak <= gib * 2**30
        assert best.time.total >= before
        assert all(choice.time.total >= best.time.total for choice in planned.choices() if choice.fits)
        before = best.time.total
    assert before > fastest(held(80)).time.total


def test_the_edge_is_the_predicted_peak() -> None:
    peak = PLANNED.choice(Memory()).footprint.peak / 2**30
    assert choose(held(peak))[:2] == (logging.INFO, Memory())
    level, memory, why = choose(held(peak - 0.1))
    assert level == logging.INFO and memory != Memory()
    assert f"predicted peak {PLANNED.choice(memory).footprint.peak / 2**30:.1f} of the {peak - 0.1:.1f} GiB" in why
    assert f"the next faster, {{recompute: nothing, offload: false, tile: null}}, would need {peak:.1f}" in why


def test_where_nothing_fits_the_longest_that_would_is_told() -> None:
    level, memory, why = choose(held(12))
    choices = held(12).choices()
    assert level == logging.WARNING and not any(choice.fits for choice in choices)
    assert PLANNED.choice(memory).footprint.peak == min(choice.footprint.peak for choice in choices)
    longest = max(choice.longest for choice in choices)
    assert 0 < longest < 32768 and why.endswith(f"the longest batch that would fit is of {longest:,} tokens")
    assert choose(held(2))[2].endswith("no batch would fit")


def test_the_host_must_hold_what_is_sent_there() -> None:
    # The stream that each of 16 blocks begins with.
    stream = 16 * 32768 * 2048 * 2
    assert PLANNED.choice(Memory("blocks", offload=True)).footprint.host == stream
    assert PLANNED.choice(Memory("blocks")).footprint.host == 0
    assert any(choice.memory.offload for choice in held(80, 2).choices() if choice.fits)
    assert not any(choice.memory.offload for choice in held(80, 1.9).choices() if choice.fits)
    shorter = held(80, 1).choice(Memory("blocks", offload=True))
    assert not shorter.fits and shorter.longest == 16384
    # Where only that keeps a faster way from being taken, it is said so.
    tight = held(16)
    assert choose(tight)[1] == Memory("halves", offload=True, tile=8192)
    _, memory, why = choose(replace(tight, host_limit=0))
    assert memory == Memory("blocks")
    assert why.endswith("{recompute: halves, offload: true, tile: 8192}, would need 2.0 GiB of the host's memory")


def test_names_that_torch_gives() -> None:
    assert of_kind("NVIDIA H100 80GB HBM3") is DEVICES["H100"]
    assert of_kind("NVIDIA A100-SXM4-40GB") is DEVICES["A100"]
    assert of_kind("NVIDIA GeForce RTX 4090") is None


class Part(NamedTuple):
    """What a device has of a sequence that four share; each fetches all that it does not hold."""

    num_tokens: int = 32768
    imbalance: float = 1.0
    received: Mapping[Pattern, int] = {Causal(): 98304, Window(1024): 2048}
    by_heads: frozenset[Pattern] = frozenset({Causal()})


def shared(groups: int, part: Part) -> Choice:
    run = Training(4, 4, 1, "bf16-true", 1, sharded=True, exchange_groups=groups)
    planned = replace(PLANNED, config=preset("llama-3-8b"), layers=[Causal(), Window(1024)] * 16, run=run)
    return replace(planned, row_length=131072, share=part).choice(Memory())


# Two (keys and values) x head width x bytes of an element, for a KV head; eight of them; 32 query heads.
HEAD, OUTPUT = 2 * 128 * 2, 32768 * 32 * 128 * 2


@pytest.mark.parametrize(("groups", "heads"), [(2, 4), (3, 3), (4, 2), (5, 2), (7, 2), (8, 1), (16, 1)])
def test_heads_travel_as_many_at_a_time_as_in_the_run(groups: int, heads: int) -> None:
    whole, told = shared(1, Part()), shared(groups, Part())
    assert whole.footprint.exchange == 3 * 131072 * 8 * HEAD
    window = 3 * (32768 + 2048) * 8 * HEAD
    assert told.footprint.exchange == max(5 * 131072 * heads * HEAD + OUTPUT, window)
    # Of full layers the first group is waited for, as attention takes longer than the rest; of windows all.
    of_full, of_windows = 98304 / (98304 + 2048), 2048 / (98304 + 2048)
    assert told.time.exchange == pytest.approx(whole.time.exchange * (of_full * heads / 8 + of_windows))


def test_layers_that_travel_whole_take_as_much_as_without_groups() -> None:
    # Heads differ, or little travels.
    for part in (Part(by_heads=frozenset()), Part(received={Causal(): 0, Window(1024): 2048}, by_heads=frozenset())):
        assert shared(4, part) == shared(1, part)
    assert shared(1, part).footprint.exchange == 3 * (32768 + 2048) * 8 * HEAD
    # Nothing does.
    none = shared(4, Part(received={Causal(): 0, Window(1024): 0}, by_heads=frozenset()))
    assert none.footprint.exchange == none.time.exchange == 0


def test_what_hangs_on_each_document_is_not_planned() -> None:
    patterns = {"full": Causal(), "prefix": PrefixLM()}
    assert plannable(["full", "full"], patterns) == [Causal(), Causal()]
    with pytest.raises(ValueError, match=r"patterns\.prefix: .* asks for doc\.prefix"):
        plannable(["full", "prefix"], patterns)
