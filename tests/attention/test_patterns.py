"""Every registered pattern keeps its contract, and says exactly which keys it sees."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import COMPOSED, PATTERNS

from lg.attention import And, Causal, Or, Pattern, SinkWindow, Strided, Window
from lg.attention.pattern import NAMES
from lg.testing import check_pattern


def test_every_pattern_of_lg_has_an_example() -> None:
    shipped = {cls for cls in NAMES.values() if cls.__module__.startswith("lg.")}
    assert {type(p) for p in PATTERNS} | {And, Or} == shipped


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_named_patterns_are_exact_at_every_reading(pattern: Pattern) -> None:
    report = check_pattern(pattern)
    assert (report.empty, report.full_as_partial) == (0, 0)
    assert report.listed > 0


@pytest.mark.parametrize("pattern", COMPOSED, ids=str)
def test_compositions_keep_the_contract(pattern: Pattern) -> None:
    assert check_pattern(pattern, lengths=(63, 1000)).listed > 0


def keys_seen(pattern: Pattern, q: int, h: int = 0) -> list[int]:
    return pattern.mask(torch.tensor(q), torch.arange(q + 10), h).nonzero().flatten().tolist()


def test_a_window_counts_keys_its_own_included() -> None:
    assert keys_seen(Window(window=1), 5) == [5]
    assert keys_seen(Window(window=3), 5) == [3, 4, 5]
    assert keys_seen(Window(window=3), 1) == [0, 1]


def test_sinks_are_the_first_keys_and_never_later_than_the_query() -> None:
    assert keys_seen(SinkWindow(window=2, sinks=3), 9) == [0, 1, 2, 8, 9]
    assert keys_seen(SinkWindow(window=1, sinks=3), 1) == [0, 1]


def strided_reference(pattern: Strided, i: int, j: int, h: int) -> bool:
    """S2-Attention's formula, block by block, as its authors' code has it."""
    step, offset = pattern.head_step, pattern.offset
    return j <= i and (i - j < pattern.local_blocks or (j + h * step + offset) % pattern.stride == 0)


@pytest.mark.parametrize("offset", [0, 1])
def test_strided_is_the_published_formula(offset: int) -> None:
    pattern = Strided(block=4, local_blocks=2, stride=5, head_step=2, offset=offset)
    q, k = torch.arange(80)[:, None], torch.arange(80)
    for h in range(4):
        blocks = torch.tensor([[strided_reference(pattern, i, j, h) for j in range(20)] for i in range(20)])
        tokens = blocks.repeat_interleave(4, 0).repeat_interleave(4, 1) & (k <= q)
        assert torch.equal(pattern.mask(q, k, h), tokens)


def test_offset_moves_the_first_stripe_of_head_zero() -> None:
    """The off-by-one between dkernel (block 0) and vLLM's Phi-3-small (block stride - 1)."""
    far = 1000
    assert keys_seen(Strided(block=1, local_blocks=1, stride=8, offset=0), far)[0] == 0
    assert keys_seen(Strided(block=1, local_blocks=1, stride=8, offset=1), far)[0] == 7


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_what_is_shipped_is_causal(pattern: Pattern) -> None:
    assert not pattern.sees_later(1000, num_kv_heads=3)


def test_seeing_a_later_key_is_found_wherever_it_hides() -> None:
    @dataclass(frozen=True)
    class OneLeak(Pattern):
        q: int
        k: int

        def sees(self, q: Any, k: Any, h: Any) -> Any:
            return (k <= q) | ((q == self.q) & (k == self.k))

    for q, k in ((0, 1), (0, 99), (98, 99), (63, 64), (31, 77)):
        assert OneLeak(q, k).sees_later(100)
        assert not OneLeak(q, k).sees_later(k)
    assert not OneLeak(5, 4).sees_later(100)


def test_heads_differ_is_read_off_the_predicate() -> None:
    assert Strided().heads_differ
    assert not Causal().heads_differ
    assert (Causal() & Strided()).heads_differ
    assert Strided(head_step=1).text == ("(k <= q) & ((q // 64 - k // 64 < 16) | ((k // 64 + h * 1 + 0) % 128 == 0))")


def test_and_or_see_what_both_or_either_sees() -> None:
    q, k = torch.arange(50)[:, None], torch.arange(50)
    a, b = Window(9), SinkWindow(window=3, sinks=5)
    assert torch.equal((a & b).mask(q, k), a.mask(q, k) & b.mask(q, k))
    assert torch.equal((a | b).mask(q, k), a.mask(q, k) | b.mask(q, k))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Window(window=0), r"Window.window=0 .* at least 1 .*init_args.window"),
        (lambda: SinkWindow(window=8, sinks=-1), r"SinkWindow.sinks=-1"),
        (lambda: Strided(block=0), r"Strided.block=0"),
        (lambda: Strided(local_blocks=0), r"Strided.local_blocks=0"),
        (lambda: Strided(stride=0), r"Strided.stride=0"),
        (lambda: Window(window=2.5), r"Window.window=2.5"),  # type: ignore[arg-type]
    ],
)
def test_numbers_that_make_no_pattern_are_refused(build: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build()


USER_FILE = '''
from dataclasses import dataclass
from lg.attention import Pattern

@dataclass(frozen=True)
class EverySecond(Pattern):
    """Itself, and every second key before."""
    window: int

    def sees(self, q, k, h):
        return (k <= q) & (q - k < self.window) & ((q - k) % 2 == 0)
'''


def load(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_a_users_own_pattern_needs_no_registration_and_no_other_may_take_its_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(USER_FILE)
    module = load(path, "first_file")
    report = check_pattern(module.EverySecond(40), lengths=(100,))
    assert not report.heads_differ
    assert NAMES["EverySecond"] is module.EverySecond
    # Run again, as a notebook does, it replaces itself; elsewhere the same name is refused.
    load(path, "first_file")
    with pytest.raises(
        ValueError, match=r"'EverySecond' of second_file.EverySecond is taken already by first_file.EverySecond"
    ):
        load(path, "second_file")


class Unsound(Window):
    """A window whose tile reading forgets the tile at its left edge."""

    def tile(self, q: Any, k: Any, h: Any) -> Any:
        return Window(max(self.window - 40, 1)).tile(q, k, h)


class Boastful(Window):
    """A window whose tile reading calls full what is not."""

    def tile(self, q: Any, k: Any, h: Any) -> Any:
        seen = super().tile(q, k, h)
        return type(seen)(seen.can, seen.can)


@pytest.mark.parametrize(("pattern", "says"), [(Unsound(100), "misses a tile"), (Boastful(100), "calls a tile full")])
def test_check_pattern_catches_a_wrong_override(pattern: Pattern, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_pattern(pattern, lengths=(1000,))
