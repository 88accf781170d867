"""A rank's part of a batch: every token is held once, in order, and padding is a document that counts nowhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from lg.attention import Causal, Window
from lg.parallel.batch import check_alike, own_part
from lg.testing import RankFailed, run_ranks

LAYERS = [Window(window=100), Causal()]


def batch(length: int = 700) -> dict[str, Any]:
    return {
        "tokens": torch.arange(length).view(2, -1),
        "targets": torch.arange(length).view(2, -1) + 1,
        "positions": torch.arange(length).view(2, -1) / 4,
        "document_starts": [0, 300],
        "document_attributes": {"prefix": [3, 4]},
        "document_padding": [False, True],
        "num_padding": 7,
        "num_align": 2,
    }


def test_every_token_is_held_once() -> None:
    whole = batch()
    parts = [own_part(whole, LAYERS, 2, 3, rank) for rank in range(3)]
    tokens, targets, positions = torch.full((768,), -1), torch.full((768,), -1), torch.full((768,), -1.0)
    for own, held in parts:
        assert own["tokens"].shape == own["targets"].shape == own["positions"].shape == (1, 256)
        tokens[held.tokens], targets[held.tokens] = own["tokens"][0], own["targets"][0]
        positions[held.tokens] = own["positions"][0]
    assert tokens.tolist() == [*range(700), *[0] * 68]
    assert targets.tolist() == [*range(1, 701), *[-100] * 68]
    assert positions.tolist() == [*(n / 4 for n in range(700)), *[0.0] * 68]
    assert whole["tokens"].shape == (2, 350) and whole["document_starts"] == [0, 300]


def test_padding_is_a_document_of_its_own() -> None:
    own, held = own_part(batch(), LAYERS, 2, 3, 1)
    assert held.split.length == 768
    assert own["document_starts"] == [0, 300, 700]
    assert own["document_attributes"] == {"prefix": [3, 4, 0]}
    assert own["document_padding"] == [False, True, True]
    assert (own["num_padding"], own["num_align"]) == (75, 2)


def test_what_fits_is_not_padded() -> None:
    own, held = own_part(batch(512), LAYERS, 2, 4, 0)
    assert held.split.length == 512 and own["document_starts"] == [0, 300] and own["num_padding"] == 7


def read(rank: int, changed: str) -> None:
    own = batch()
    check_alike(own, dist.group.WORLD, torch.device("cpu"))
    if rank == 1 and changed == "tokens":
        own["tokens"] = own["tokens"].flip(0)
    if rank == 1 and changed == "documents":
        own["document_starts"] = [0, 301]
    if rank == 1 and changed == "positions":
        own["positions"][1, 7] += 0.25
    check_alike(own, dist.group.WORLD, torch.device("cpu"))


@pytest.mark.parametrize("changed", ["tokens", "documents", "positions"])
def test_ranks_that_read_other_data_are_refused(changed: str) -> None:
    with pytest.raises(RankFailed, match="ValueError: data: the ranks that share a sequence"):
        run_ranks(read, 2, changed)
