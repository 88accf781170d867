"""What attention costs: formulas and counting agree, and the figures are those of arithmetic by hand."""

import pytest
import torch
from examples import COMPOSED, PATTERNS

from lg.attention import Causal, Dilated, Documents, Pattern, PrefixLM, SinkWindow, Strided, Window
from lg.attention.cost import AttentionCost, executed_pairs, flops, visible_pairs
from lg.attention.counting import count_pairs
from lg.testing.patterns import brute_force


@pytest.mark.parametrize("pattern", PATTERNS + COMPOSED, ids=str)
def test_visible_pairs_are_those_of_brute_force(pattern: Pattern) -> None:
    documents = Documents(300, (0, 7, 190), {"prefix": (3, 70, 200)})
    for queries in (None, (50, 220)):
        tiles = pattern.tiles(documents, pattern.made_for or 3, queries)
        assert visible_pairs(tiles).tolist() == brute_force(tiles).sum((1, 2)).tolist()


def test_a_million_tokens_of_many_heads() -> None:
    length = 1_048_576
    assert visible_pairs(Causal().tiles(Documents(length))).tolist() == [length * (length + 1) // 2]
    strided = Strided(block=64, local_blocks=16, stride=128, head_step=4).tiles(Documents(length), 2)
    assert visible_pairs(strided).tolist() == count_pairs(strided).tolist()


def test_executed_pairs_are_whole_tiles() -> None:
    # 300 tokens are three rows of one, two and three tiles; in tiles of 128 x 64, of two, four and five.
    tiles = Causal().tiles(Documents(300))
    assert executed_pairs(tiles).tolist() == [6 * 128 * 128]
    assert executed_pairs(tiles, 128, 64).tolist() == [11 * 128 * 64]


def test_flops_of_grouped_heads() -> None:
    seen_alike = flops(torch.tensor([100]), num_heads=8, head_width=16)
    assert (seen_alike.forward, seen_alike.backward, seen_alike.backward_executed) == (51_200, 102_400, 128_000)
    # Two KV heads, four query heads on each.
    assert flops(torch.tensor([30, 70]), num_heads=8, head_width=16).forward == 4 * 16 * (4 * 30 + 4 * 70)


def test_the_cost_of_a_layer() -> None:
    cost = AttentionCost(SinkWindow(window=1984, sinks=64), 131_072, num_heads=32, num_kv_heads=8, head_width=128)
    full = AttentionCost(Causal(), 131_072, num_heads=32, num_kv_heads=8, head_width=128)
    assert (cost.kept, full.kept) == (8 * 2048, 8 * 131_072)
    assert cost.kv_bytes() == 8 * 2048 * 2 * 128 * 2
    assert full.visible == 32 * 131_072 * 131_073 // 2
    assert round(cost.visible / full.visible, 4) == 0.0310
    assert cost.flops.forward == 4 * 128 * cost.visible
    assert cost.visible < cost.executed < 1.2 * cost.visible


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [(Causal(), 500), (Window(100), 100), (SinkWindow(window=100, sinks=7), 107), (Dilated(10, 3), 28)],
    ids=str,
)
def test_keys_kept_while_the_last_token_is_computed(pattern: Pattern, kept: int) -> None:
    assert AttentionCost(pattern, 500).kept == kept
    assert AttentionCost(pattern, 500, num_heads=6, num_kv_heads=3).kept == 3 * kept


def test_a_document_shorter_than_the_window() -> None:
    short = AttentionCost(Window(100), 1)
    assert (short.visible, short.executed, short.kept) == (1, 128 * 128, 1)


def test_attributes_of_the_document() -> None:
    assert AttentionCost(PrefixLM(), 10, attributes={"prefix": 4}).visible == 55 + 6
    with pytest.raises(ValueError, match=r"asks for doc\.prefix"):
        AttentionCost(PrefixLM(), 10)
