"""Drawings show the seen part of each layer."""

import numpy as np
import pytest
import torch
from PIL.Image import Image
from torch import Tensor

from lg.attention import Causal, Documents, Pattern, PrefixLM, SinkWindow, Strided, Window
from lg.attention.gallery import EXAMPLES, LENGTH
from lg.attention.picture import coverage, drawing, plausible, sheet, terminal

BLUE, ORANGE = (0, 114, 178), (213, 94, 0)


def brute_force(pattern: Pattern, documents: Documents, heads: int) -> Tensor:
    tiles = pattern.tiles(documents, heads)
    token = torch.arange(documents.length)
    return tiles.seen(token[:, None], token, torch.arange(tiles.heads)[:, None, None])


def test_coverage_is_one_below_the_diagonal_of_full_attention_and_nothing_above() -> None:
    drawn = coverage(Causal().tiles(Documents(4096)), cells=64)
    assert torch.equal(drawn[0], torch.ones(64, 64).tril(-1) + 0.5 * torch.eye(64))


@pytest.mark.parametrize("name", EXAMPLES)
def test_where_a_cell_is_a_token_coverage_is_what_is_seen(name: str) -> None:
    example = EXAMPLES[name]
    documents = plausible(example.small, LENGTH, (0, 5, 31))
    tiles = example.small.tiles(documents, example.num_kv_heads)
    assert torch.equal(coverage(tiles, LENGTH).bool(), brute_force(example.small, documents, example.num_kv_heads))


def test_heads_that_differ_are_drawn_apart() -> None:
    pattern = Strided(block=64, local_blocks=1, stride=8)
    drawn = coverage(pattern.tiles(Documents(4096), 8), 64)
    assert drawn.shape == (8, 64, 64)
    assert torch.equal(drawn[:, 63, :56].sum(1), torch.full((8,), 7.0))


def test_blocks_of_the_pattern_do_not_straddle_cells() -> None:
    """192 cells of a million tokens would be of 5,462 each, and stripes would fall into one, or into two."""
    drawn = coverage(Strided(block=64, local_blocks=16, stride=128).tiles(Documents(1 << 20)), 192)[0]
    assert drawn.shape[0] == -(-(1 << 20) // 5504)
    assert int((drawn[-1, :180] > 0).sum()) == 180 * 5504 // 8192 + 1


def test_a_million_tokens_are_drawn_from_the_table() -> None:
    assert coverage(Causal().tiles(Documents(1_048_576)), cells=64).shape == (1, 64, 64)


def test_attributes_are_a_third_of_each_document() -> None:
    assert plausible(PrefixLM(), 100, (0, 40)).attributes == {"prefix": (13, 20)}
    assert plausible(Causal(), 100).attributes == {}


# Characters


def dots(text: str) -> Tensor:
    """Braille read back: bool [4 * lines, 2 * characters]."""
    places = [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1)]
    lines = text.splitlines()
    seen = torch.zeros(4 * len(lines), 2 * len(lines[0]), dtype=torch.bool)
    for i, line in enumerate(lines):
        for j, character in enumerate(line):
            for bit, (row, column) in enumerate(places):
                seen[4 * i + row, 2 * j + column] = bool((ord(character) - 0x2800) >> bit & 1)
    return seen


@pytest.mark.parametrize("pattern", [Causal(), SinkWindow(window=5, sinks=2), PrefixLM()])
def test_a_dot_stands_where_something_is_seen(pattern: Pattern) -> None:
    # 22 is no multiple of the four dots of a line.
    documents = plausible(pattern, 22)
    drawn = dots(terminal(pattern.tiles(documents), 22))
    assert drawn.shape == (24, 22)
    assert torch.equal(drawn[:22], brute_force(pattern, documents, 1)[0])
    assert not drawn[22:].any()


def test_where_there_is_no_braille_there_is_ascii() -> None:
    text = terminal(Window(2).tiles(Documents(4)), encoding="latin-1")
    assert text == ":.\n ':."
    assert terminal(Window(2).tiles(Documents(4)), encoding="no-such-encoding") == text


def test_heads_stand_side_by_side_and_those_alike_once() -> None:
    tiles = Strided(block=4, local_blocks=1, stride=2).tiles(Documents(16), num_kv_heads=4)
    lines = terminal(tiles, 16).splitlines()
    assert {len(line) for line in lines} == {8 + 2 + 8}
    assert {len(line) for line in terminal(tiles, 16, most=1).splitlines()} == {8}


# Images


def inks(image: Image) -> set[tuple[int, ...]]:
    pixels = torch.from_numpy(np.array(image)).flatten(0, 1)
    return {tuple(colour) for colour in pixels.unique(dim=0).tolist()}


def test_a_drawing_shows_later_keys_in_another_ink() -> None:
    causal, prefix = (drawing(p.tiles(plausible(p, 48))) for p in (Causal(), PrefixLM()))
    assert BLUE in inks(causal) and ORANGE not in inks(causal)
    assert {BLUE, ORANGE} <= inks(prefix)


def test_a_drawing_has_a_square_for_each_head_and_lines_between_documents() -> None:
    pattern = Strided(block=4, local_blocks=1, stride=2)
    one, two = (drawing(pattern.tiles(Documents(48), heads), caption="") for heads in (1, 2))
    assert two.size[0] - one.size[0] == 384 + 22
    whole, packed = (drawing(Causal().tiles(Documents(4096, starts)), "") for starts in ((0,), (0, 1000)))
    assert whole.size == packed.size
    assert whole.tobytes() != packed.tobytes()


def test_a_drawing_is_wide_enough_for_its_caption_and_tall_enough_for_a_million() -> None:
    words = "a caption of many words, " * 8
    assert drawing(Causal().tiles(Documents(48)), words).size[0] > drawing(Causal().tiles(Documents(48))).size[0]
    # 191 cells of 86 blocks, two pixels each.
    assert drawing(Strided().tiles(Documents(1 << 20), 2)).size[1] == 2 * 191 + 44 + 40


def test_a_sheet_draws_each_layer_and_names_it() -> None:
    patterns = {"local": SinkWindow(window=256), "full": Causal()}
    image = sheet(["local", "full", "local"], patterns, length=4096)
    assert image.size[0] > 3 * 128
    # Both inks occur: the sheet is no blank.
    assert {BLUE, ORANGE} <= inks(image)


def test_a_sheet_draws_what_asks_for_attributes_and_leaves_other_mixers_blank() -> None:
    patterns: dict[str, object] = {"prefix": PrefixLM(), "other": "a mixer that is no pattern"}
    image = sheet(["other", "prefix"], patterns, length=1000, num_kv_heads=2)
    assert BLUE in inks(image)
    legend = image.crop((0, 0, image.size[0], image.size[1] - 46))
    assert ORANGE not in inks(legend)
