"""A compiled decoder writes what it writes otherwise, by one graph for a token alone and one for several."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from lg.attention import Causal, Pattern, SinkWindow
from lg.inference import Runner, compiled
from lg.inference.bench import random_decoder
from lg.inference.matvec import Matvecs
from lg.models.config import DecoderConfig

CONFIG = DecoderConfig(2, 32, 4, 2, 8, 48, 61)
PATTERNS: list[list[Pattern]] = [[SinkWindow(window=9, sinks=2), Causal()], [Causal(), Causal()]]


def test_few_graphs_serve_all_layers_lengths_and_schedules(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    compile = torch.compile

    def as_it_is(function: Any, *, options: Any = None, **told: bool) -> Any:
        """Whole graphs, run without a compiler."""
        asked.append(options)
        return compile(function, backend="aot_eager" if options else "eager", **told)

    torch.compiler.reset()
    counters.clear()
    for patterns in PATTERNS:
        plain, decoder = (random_decoder(CONFIG, patterns, torch.device("cpu"), torch.float32) for _ in range(2))
        with monkeypatch.context() as patch:
            patch.setattr(torch, "compile", as_it_is)
            assert compiled(decoder) is decoder
        runners = [Runner(one, max_length=200, num_slots=2) for one in (plain, decoder)]
        assert all(runner.open(200) == slot for runner in runners for slot in range(2))
        generator = torch.Generator().manual_seed(0)
        for counts in ([(0, 40)], [(0, 17), (1, 33)], [(0, 1)], [(0, 1), (1, 1)], [(1, 1)], [(0, 80), (1, 1)]):
            tokens = torch.randint(61, (sum(count for _, count in counts),), generator=generator)
            want, got = (runner.read(tokens, counts) for runner in runners)
            torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)
    # Halves and norm: one token, a first number of several, any number of them; the head: one and two.
    assert counters["stats"]["unique_graphs"] == 3 * 3 + 2
    halves_and_more = 2 * len(PATTERNS[0]) + 2
    assert all(isinstance(options["joint_custom_pre_pass"], Matvecs) for options in asked if options)
    assert [bool(options) for options in asked] == [True, False] * halves_and_more * len(PATTERNS)
