"""Drawings show the seen part of each layer."""

import numpy as np
import torch

from lg.attention import Causal, SinkWindow, Strided
from lg.attention.picture import coverage, sheet


def test_coverage_is_one_below_the_diagonal_of_full_attention_and_nothing_above() -> None:
    drawn = coverage(Causal(), 4096, cells=64)
    assert torch.equal(drawn, torch.ones(64, 64).tril(-1) + 0.5 * torch.eye(64))


def test_heads_that_differ_are_averaged() -> None:
    pattern = Strided(block=64, local_blocks=1, stride=8)
    one, eight = coverage(pattern, 4096, 64, 1), coverage(pattern, 4096, 64, 8)
    assert one[63, :56].sum() == 7
    assert torch.allclose(eight[63, :56], torch.full((56,), 1 / 8))


def test_a_sheet_draws_each_layer_and_names_it() -> None:
    patterns = {"local": SinkWindow(window=256), "full": Causal()}
    image = sheet(["local", "full", "local"], patterns, length=4096)
    pixels = torch.from_numpy(np.array(image)).flatten(0, 1)
    assert image.size[0] > 3 * 128
    # Both inks occur: the sheet is no blank.
    assert len(pixels.unique(dim=0)) >= 5


def test_a_million_tokens_are_drawn_from_the_table() -> None:
    assert coverage(Causal(), 1_048_576, cells=64).shape == (64, 64)
