"""A compiled decoder writes what it writes otherwise, by one graph for a token alone and one for several."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.fx import GraphModule

from lg.attention import Causal, Pattern, SinkWindow
from lg.inference import Runner, compiled
from lg.inference.bench import random_decoder
from lg.inference.compiled import _by_count
from lg.inference.matvec import Matvecs
from lg.models.config import DecoderConfig

CONFIG = DecoderConfig(2, 32, 4, 2, 8, 48, 61)
PATTERNS: list[list[Pattern]] = [[SinkWindow(window=9, sinks=2), Causal()], [Causal(), Causal()]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options of each graph; graphs run as they are, but are kept as those of torch's compiler."""
    told: list[Any] = []

    def as_it_is(graph: GraphModule, inputs: Any, config_patches: Any = None, **others: Any) -> Any:
        told.append(config_patches or {})
        return graph.forward

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", as_it_is)
    torch.compiler.reset()
    counters.clear()
    return told


def test_few_graphs_serve_all_layers_lengths_and_schedules(asked: list[Any]) -> None:
    for patterns in PATTERNS:
        plain, decoder = (random_decoder(CONFIG, patterns, torch.device("cpu"), torch.float32) for _ in range(2))
        assert compiled(decoder) is decoder
        runners = [Runner(one, max_length=200, num_slots=2) for one in (plain, decoder)]
        assert all(runner.open(200) == slot for runner in runners for slot in range(2))
        generator = torch.Generator().manual_seed(0)
        for counts in ([(0, 40)], [(0, 17), (1, 33)], [(0, 1)], [(0, 1), (1, 1)], [(1, 1)], [(0, 80), (1, 1)]):
            tokens = torch.randint(61, (sum(count for _, count in counts),), generator=generator)
            want, got = (runner.read(tokens, counts) for runner in runners)
            torch.testing.assert_close(got, want, rtol=2e-5, atol=2e-5)
    # Halves and norm: one token, a first number of several, any number of them; the head: one and two.
    assert counters["stats"]["unique_graphs"] == len(asked) == 3 * 3 + 2
    of_one = [options["joint_custom_pre_pass"] for options in asked if "joint_custom_pre_pass" in options]
    assert len(of_one) == 4 and all(isinstance(one, Matvecs) for one in of_one)


def test_decoders_of_many_shapes_are_compiled_in_one_process(asked: list[Any]) -> None:
    """Their heads are all of one code, of which dynamo by itself has few graphs."""
    widths = range(8, 10 + torch._dynamo.config.recompile_limit)
    with torch.no_grad():
        for width in widths:
            head = torch.nn.Linear(width, 3, bias=False)
            run = _by_count(head.forward, {})
            for rows in (1, 2):
                assert run(torch.zeros(rows, width)).shape == (rows, 3)
    assert len(asked) >= len(widths)
