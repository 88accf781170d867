"""Every registered pattern keeps its contract, and says exactly which keys it sees."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import COMPOSED, PATTERNS

from lg.attention import (
    Causal,
    Chunked,
    Dilated,
    Documents,
    GlobalTokens,
    Pattern,
    PerHead,
    PredicateError,
    PrefixLM,
    ShiftedGroups,
    SinkWindow,
    Strided,
    Window,
    attend,
)
from lg.attention.pattern import NAMES
from lg.testing import check_pattern


def test_every_pattern_of_lg_has_an_example() -> None:
    shipped = {cls for cls in NAMES.values() if cls.__module__.startswith("lg.")}
    assert {type(p) for p in PATTERNS + COMPOSED} == shipped


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_named_patterns_are_exact_at_every_reading(pattern: Pattern) -> None:
    report = check_pattern(pattern)
    assert (report.empty, report.full_as_partial) == (0, 0)
    assert report.excess == 0
    assert (report.listed > 0) == (pattern != GlobalTokens(0))


@pytest.mark.parametrize("pattern", COMPOSED, ids=str)
def test_compositions_keep_the_contract(pattern: Pattern) -> None:
    assert check_pattern(pattern, lengths=(63, 1000)).listed > 0


def test_what_a_composition_lists_for_nothing_is_reported() -> None:
    report = check_pattern(Chunked(100) & ~Window(30), lengths=(1000,))
    assert 0 < report.excess == report.empty / report.listed < 0.5


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


def test_what_is_shipped_is_causal_but_for_prefixes_and_global_tokens() -> None:
    causal = {p for p in PATTERNS if not p.sees_later(1000, p.made_for or 3, **dict.fromkeys(p.attributes, 100))}
    assert set(PATTERNS) - causal == {PrefixLM(), GlobalTokens(70), ~Window(70), ~PrefixLM()}


def test_dilated_counts_keys_its_own_included() -> None:
    assert keys_seen(Dilated(window=3, dilation=4), 20) == [12, 16, 20]
    assert keys_seen(Dilated(window=3, dilation=4), 5) == [1, 5]


def test_chunks_see_nothing_of_each_other() -> None:
    assert keys_seen(Chunked(4), 9) == [8, 9]
    assert keys_seen(Chunked(4), 8) == [8]


def test_half_the_heads_see_groups_shifted_by_half_a_group_and_none_wraps_around() -> None:
    """LongLoRA's lengths for 16 tokens in groups of 4: 4, 4, 4, 4 and 2, 4, 4, 4, 2."""
    pattern, q = ShiftedGroups(group=4, num_kv_heads=4), torch.arange(16)
    for heads, firsts in (((0, 1), [0, 4, 8, 12]), ((2, 3), [0, 2, 6, 10, 14])):
        for h in heads:
            want = torch.tensor([max(f for f in firsts if f <= i) for i in range(16)])
            assert torch.equal(pattern.mask(q[:, None], q, h), (q >= want[:, None]) & (q <= q[:, None]))


@pytest.mark.parametrize(("heads", "last"), [(2, 1), (4, 2), (3, 1), (3, 2)])
def test_shifted_groups_attend_as_rolled_and_reshaped(heads: int, last: int) -> None:
    """LongLoRA's own way: the last heads' tokens rolled by half a group, all cut into groups, and rolled back.

    What a rolled group has of both ends of the sequence is kept apart here.
    """
    length, group, per_head = 24, 8, 2
    q, k, v = (torch.randn(1, n * heads, length, 4, dtype=torch.float64) for n in (per_head, 1, 1))
    pattern = ShiftedGroups(group, heads, None if last == heads // 2 else last)
    got = attend(q, k, v, pattern.tiles(Documents(length), heads), "dense")
    for h in range(heads):
        roll = group // 2 if h >= heads - last else 0
        mine = q[0, per_head * h : per_head * (h + 1)], k[0, h : h + 1], v[0, h : h + 1]
        cut_q, cut_k, cut_v = (x.roll(-roll, 1).unflatten(1, (-1, group)) for x in mine)
        place = torch.arange(length).roll(-roll).view(-1, group)
        # A token of the other end of the sequence is farther away than a group is long.
        near = (place[:, :, None] - place[:, None]).abs() < group
        seen = near & torch.ones(group, group, dtype=torch.bool).tril()
        scores = (cut_q @ cut_k.mT / 2).masked_fill(~seen, -torch.inf)
        want = (scores.softmax(-1) @ cut_v).flatten(1, 2).roll(roll, 1)
        torch.testing.assert_close(got[0, per_head * h : per_head * (h + 1)], want)


def test_a_prefix_is_seen_whole_and_by_all() -> None:
    documents = Documents(10, (0, 6), {"prefix": (3, 0)})
    seen = PrefixLM().tiles(documents).seen(torch.arange(10)[:, None], torch.arange(10))
    assert seen[0].nonzero().flatten().tolist() == [0, 1, 2]
    assert seen[4].nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
    assert seen[6].nonzero().flatten().tolist() == [6]


def test_global_tokens_see_all_and_are_seen_by_all() -> None:
    assert keys_seen(GlobalTokens(2), 1) == list(range(11))
    assert keys_seen(GlobalTokens(2), 7) == [0, 1]
    assert keys_seen((GlobalTokens(2) | Window(2)) & Causal(), 7) == [0, 1, 6, 7]


def test_each_head_follows_its_own_pattern() -> None:
    pattern = PerHead(patterns=(Causal(), Window(2)), heads=(1, 0, 1))
    assert [keys_seen(pattern, 5, h) for h in range(3)] == [[4, 5], [0, 1, 2, 3, 4, 5], [4, 5]]
    assert pattern.alike(3, 100) == [[0, 2], [1]]


def test_a_pattern_made_for_other_heads_is_refused() -> None:
    for pattern in (PerHead((Causal(),), (0, 0)), ShiftedGroups(4, 2), ~ShiftedGroups(4, 2) | Causal()):
        with pytest.raises(ValueError, match=r"is made for 2 KV heads, but the layer has 3"):
            pattern.tiles(Documents(10), 3)
    with pytest.raises(ValueError, match=r"made for 2 and 4 KV heads; they must be for the same number"):
        ShiftedGroups(4, 2) & ShiftedGroups(4, 4)


def test_an_attribute_that_documents_lack_is_named() -> None:
    with pytest.raises(ValueError, match=r"asks for doc.prefix, but these documents have only doc.length"):
        PrefixLM().tiles(Documents(10))
    assert (PrefixLM() & Causal()).attributes == ("prefix",)
    assert Causal().attributes == ()


def test_the_grid_is_the_block_that_a_pattern_counts_in() -> None:
    assert [p.grid for p in (Causal(), SinkWindow(100), Dilated(9, 3))] == [1, 1, 1]
    assert [p.grid for p in (Strided(block=64), Chunked(100), ShiftedGroups(8, 2))] == [64, 100, 8]
    assert (Strided(block=64) | Chunked(48)).grid == 192


def test_documents_off_the_grid_turn_full_tiles_partial() -> None:
    pattern = Strided(block=128, local_blocks=2, stride=4, head_step=0)
    on, off = (pattern.tiles(Documents(8192, (0, start))).table() for start in (4096, 4097))
    assert off.num_partial > 3 * on.num_partial


def test_what_a_later_query_may_still_see() -> None:
    assert Window(100).kept(now=1000, end=2000).runs() == [(901, 1000)]
    assert Causal().kept(now=1000, end=2000).runs() == [(0, 1000)]
    assert Chunked(64).kept(now=128, end=2000).runs() == []
    assert Chunked(64).kept(now=130, end=2000).runs() == [(128, 130)]
    strided = Strided(block=64, local_blocks=2, stride=4).kept(now=1024, end=4096, num_kv_heads=2)
    assert strided.runs(0) == [(0, 64), (256, 320), (512, 576), (768, 832), (960, 1024)]
    assert strided.num_tokens().tolist() == [320, 256]
    # Far from its end a document has keys that will come into sight again.
    assert (~Window(10)).kept(now=50, end=52).runs() == [(0, 42)]
    assert (~Window(10)).kept(now=50, end=60).runs() == [(0, 50)]


@pytest.mark.parametrize("now", [-1, 10, 11])
def test_a_time_outside_the_document_is_refused(now: int) -> None:
    with pytest.raises(ValueError, match=f"now={now} is not allowed"):
        Causal().kept(now, 10)


def test_which_chunks_need_which_under_a_window() -> None:
    chunks = [(0, 100), (100, 200), (200, 300)]
    tiles = Window(100).tiles(Documents(300, (0, 150)))
    assert tiles.needs(chunks, chunks)[0].int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    assert Window(1).tiles(Documents(300)).needs([(5, 9)], [(0, 5), (8, 9)]).tolist() == [[[False, True]]]
    for wrong in ((5, 5), (-1, 4), (200, 301)):
        with pytest.raises(ValueError, match=r"chunk .* must lie within 300 tokens"):
            tiles.needs([wrong], chunks)


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
    assert Strided(head_step=1).text == (
        "(k <= q) & ((q // 64 - k // 64 < 16) | ((k // 64 + (h * 1 + 0) % 128) % 128 == 0))"
    )


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
        (lambda: Dilated(window=0), r"Dilated.window=0"),
        (lambda: Dilated(window=3, dilation=0), r"Dilated.dilation=0"),
        (lambda: Chunked(chunk=0), r"Chunked.chunk=0"),
        (lambda: GlobalTokens(count=-1), r"GlobalTokens.count=-1"),
        (lambda: ShiftedGroups(group=5, num_kv_heads=2), r"ShiftedGroups.group=5 .* even .*init_args.group"),
        (lambda: ShiftedGroups(group=4, num_kv_heads=1), r"ShiftedGroups.num_kv_heads=1"),
        (lambda: ShiftedGroups(group=4, num_kv_heads=3, shifted=0), r"ShiftedGroups.shifted=0"),
        (lambda: ShiftedGroups(group=4, num_kv_heads=3, shifted=3), r"ShiftedGroups.shifted=3 .* below num_kv_heads=3"),
        (
            lambda: PerHead((Causal(),), (0, 1)),
            r"PerHead.heads=\[0, 1\] .* 1 patterns, counted from 0 .*init_args.heads",
        ),
        (lambda: PerHead((Causal(),), ()), r"PerHead.heads=\[\]"),
    ],
)
def test_numbers_that_make_no_pattern_are_refused(build: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build()


def predicate(lines: str) -> Pattern:
    """A pattern whose predicate is ``lines``."""
    scope: dict[str, Any] = {}
    exec(f"def sees(self, q, k, h):\n    return {lines}", {"torch": torch}, scope)
    return type("Mistaken", (Pattern,), {"sees": scope["sees"], "__module__": __name__})()


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("k <= q and q - k < 4", r"Mistaken.sees: `k <= q` is used as a single yes or no; .*use & \| ~"),
        ("not (k <= q)", r"`k <= q` is used as a single yes or no"),
        ("0 <= k <= q", r"`k >= 0` is used as a single yes or no; .*chained comparison"),
        ("q - k < 4 if h < 2 else k <= q", r"`h < 2` is used as a single yes or no"),
        ("(k <= q) & (k < 0.5)", r"`k` < 0.5: a predicate may combine positions with integers only"),
        ("k * 0.5 < q", r"`k` \* 0.5: "),
        ("k / 2 < q", r"`k / 2` is not allowed in a predicate; allowed are \+ - \* // %, comparisons and & \| ~"),
        ("k ** 2 < q", r"`k \*\* 2` is not allowed"),
        ("(q ^ k) < 4", r"`q \^ k` is not allowed"),
        ("(q << 1) > k", r"`q << 1` is not allowed"),
        ("-k < q", r"`-k` is not allowed"),
        ("abs(q - k) < 4", r"`abs\(\(q - k\)\)` is not allowed"),
        ("q.clamp(min=3) > k", r"`q.clamp` is not allowed"),
        ("(q & 1) == 0", r"`q & 1`: & combines comparisons only"),
        ("(q < k) + 1 < 2", r"`\(q < k\) \+ 1`: \+ combines positions and integers only"),
        ("~q < k", r"`~q`: ~ negates comparisons only"),
        ("q % (k + 1) == 0", r"`q % \(k \+ 1\)`: the right side of % must be a constant"),
        ("q % 0 == k", r"`q % 0`: what divides must be above 0"),
        ("k % -4 == -1", r"`k % \(-4\)`: what divides must be above 0"),
        ("(q - k) // -4 > -20", r"`\(q - k\) // \(-4\)`: what divides must be above 0"),
        ("q // k < 3", r"`q // k`: what divides must be above 0"),
        ("q // h < 3", r"`q // h`: what divides must be above 0"),
        ("q // (q - k) < 3", r"`q // \(q - k\)`: what divides must be above 0"),
        ("{'a': k <= q}['b']", r"Mistaken.sees: an operation that a predicate may not use.*'b'"),
        ("torch.minimum(q, k) < 4", r"Mistaken.sees: an operation that a predicate may not use.*minimum"),
        ("q - k", r"it must return a comparison of positions, not `q - k`"),
        ("q - k < self.width", r"Mistaken.sees: .*no attribute 'width'"),
        ("k in (1, 2)", r"`k == 1` is used as a single yes or no"),
    ],
)
def test_a_predicate_that_cannot_be_read_in_every_way_is_told_so_with_the_expression(lines: str, says: str) -> None:
    with pytest.raises(PredicateError, match=says):
        predicate(lines).tiles(Documents(100))


@pytest.mark.parametrize(
    "lines",
    [
        "(k <= q) & ((q - k) * (q - k) < 900)",
        "(q - k) * -1 > -20",
        "(k <= q) & ((q - k) // (k + 1) < 2)",
        "(q - k) * (k - 50) <= h * 100 - 300",
    ],
)
def test_numbers_below_zero_are_read_rightly(lines: str) -> None:
    assert check_pattern(predicate(lines), lengths=(100, 300), blocks=((32, 32), (16, 8))).listed > 0


def test_what_kernels_would_count_beyond_32_bits_is_refused() -> None:
    pattern = predicate("(k <= q) & (k * 7919 % 13 < 3)")
    assert pattern.tiles(200_000).table().num_partial > 0
    with pytest.raises(PredicateError, match=r"of 600,000 tokens `.*7919.*` reaches 4,751,392,081, beyond the 32 bits"):
        pattern.tiles(600_000)
    with pytest.raises(PredicateError, match="of 4 tokens `q \\+ 2147483647 > k` reaches 2,147,483,650"):
        predicate("q + 2147483647 > k").tiles(4)


@pytest.mark.parametrize("fields", [{"steps": list}, {"steps": dict}])
def test_a_pattern_that_cannot_be_told_from_another_is_refused(fields: dict[str, type]) -> None:
    @dataclass(frozen=True)
    class Unhashable(Pattern):
        steps: Any

        def sees(self, q: Any, k: Any, h: Any) -> Any:
            return k <= q

    with pytest.raises(PredicateError, match=r"Unhashable: unhashable type.*dataclass\(frozen=True\).*or tuples"):
        Unhashable(fields["steps"]()).tiles(10)


def test_parts_of_per_head_must_fit_its_heads() -> None:
    for part in (ShiftedGroups(16, 8), "Causal"):
        with pytest.raises(ValueError, match=r"PerHead.patterns: .* must be a pattern that fits 2 KV heads"):
            PerHead((part, Causal()), (0, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [2.5, "2", -1])
def test_attributes_of_documents_are_integers(value: Any) -> None:
    with pytest.raises(ValueError, match=r"document attribute prefix=.* must be one integer of at least 0"):
        Documents(10, (0,), {"prefix": [value]})


def test_in_a_composition_the_mistaken_part_is_named() -> None:
    with pytest.raises(PredicateError, match=r"Mistaken.sees: `k / 2` is not allowed"):
        (Causal() & predicate("k / 2 < q")).tiles(Documents(100))


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

    def tile(self, q: Any, k: Any, h: Any, doc: Any) -> Any:
        return Window(max(self.window - 40, 1)).tile(q, k, h, doc)


class Boastful(Window):
    """A window whose tile reading calls full what is not."""

    def tile(self, q: Any, k: Any, h: Any, doc: Any) -> Any:
        seen = super().tile(q, k, h, doc)
        return type(seen)(seen.can, seen.can)


class Miscounted(Window):
    """A window whose formula forgets the query itself."""

    def num_seen(self, q: Any, h: Any, doc: Any) -> Any:
        return super().num_seen(q, h, doc) - 1


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        (Unsound(100), "misses a tile"),
        (Boastful(100), "calls a tile full"),
        (Miscounted(100), "Miscounted.* is not what is seen"),
    ],
)
def test_check_pattern_catches_a_wrong_override(pattern: Pattern, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check_pattern(pattern, lengths=(1000,))
