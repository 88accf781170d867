"""Random tokens: the same ones every time, of the shape that training takes."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from lg.data import RandomTokens


def test_rows_are_those_of_the_seed() -> None:
    first, again, other = (
        list(islice(RandomTokens(100, batch_size=2, vocab_size=7, seed=seed).train_dataloader(), 2))
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(a["tokens"], b["tokens"]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0]["tokens"], other[0]["tokens"])
    assert not torch.equal(first[0]["tokens"], first[1]["tokens"])
    batch = first[0]
    assert batch["tokens"].shape == batch["targets"].shape == (2, 100) and batch["document_starts"] == [0, 100]
    assert torch.equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
    assert int(batch["tokens"].min()) >= 0 and int(batch["tokens"].max()) < 7


@pytest.mark.parametrize(("name", "value"), [("row_length", 1), ("batch_size", 0)])
def test_what_cannot_be_is_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"data\.init_args\.{name}: {value} is not allowed"):
        RandomTokens(**{"row_length": 8, name: value})
