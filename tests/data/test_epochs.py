"""An epoch is a function of seed and epoch; every place in it can be returned to, with any number of workers."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from lg.data import BestFit, Bytes, Cut, Document, Loader, Packing, RowShape
from lg.data.corpus import Corpus
from lg.data.epochs import Epochs, Selection, StepShape

CORPORA = [
    Corpus.of([Document(f"{name}{n}", bytes([ord(name)]) * (n % 37 + 3)) for n in range(60)], Bytes())
    for name in ("a", "b")
]


def feed(
    seed: int = 0,
    step: StepShape = StepShape(2),  # noqa: B008  # frozen
    workers: int = 0,
    rates: Sequence[float] = (1.0, 1.0),
    packing: Packing = Cut(),  # noqa: B008
    align: int = 1,
) -> Epochs:
    documents = [np.arange(60), np.arange(60)]
    selection = Selection(CORPORA, documents, [np.full(60, rate) for rate in rates])
    return Epochs(selection, RowShape(64), packing, align, step, seed, workers)


def taken(loader: Loader, number: int) -> list[torch.Tensor]:
    """The tokens of the next batches, trained on."""
    batches: list[torch.Tensor] = []
    while len(batches) < number:
        for batch in loader:
            loader.consume()
            batches.append(batch["tokens"])
            if len(batches) == number:
                break
    return batches


def same(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_every_document_once_an_epoch_and_no_two_epochs_alike() -> None:
    loader = Loader(feed(step=StepShape(1)))
    epochs = []
    for _ in range(2):
        batches = []
        for batch in loader:
            loader.consume()
            batches.append(batch["tokens"])
        epochs.append(torch.cat(batches))
    for epoch in epochs:
        counts = torch.bincount(epoch.flatten(), minlength=256)
        assert counts[ord("a")] == counts[ord("b")] == sum(n % 37 + 3 for n in range(60))
    assert not torch.equal(*epochs)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 7, 34, 35, 36, 50])
def test_goes_on_from_what_was_consumed(stop: int, workers: int) -> None:
    packing = BestFit() if stop % 2 else Cut()
    whole = taken(Loader(feed(packing=packing)), 60)
    first = Loader(feed(workers=workers, packing=packing))
    before = taken(first, stop)
    iterator = iter(first)
    next(iterator, None)  # read ahead, not trained on
    second = Loader(feed(workers=0 if workers else 2, packing=packing))
    second.go_to(first.place())
    assert same(whole, before + taken(second, 60 - stop))


def test_shards_share_out_each_step() -> None:
    whole = taken(Loader(feed(step=StepShape(2, accumulate=4, balance=False))), 16)
    of_shards = [
        taken(Loader(feed(step=StepShape(2, num_shards=2, shard=shard, accumulate=2, balance=balance))), 8)
        for balance in (True, False)
        for shard in (0, 1)
    ]
    for balanced in (0, 2):
        for first in range(0, 8, 2):
            step = torch.cat([*of_shards[balanced][first : first + 2], *of_shards[balanced + 1][first : first + 2]])
            want = torch.cat(whole[2 * first : 2 * first + 4])
            assert sorted(step.tolist()) == sorted(want.tolist())


def test_length_counts_what_was_done_before() -> None:
    loader = Loader(feed())
    length = len(loader)
    taken(loader, 5)
    again = Loader(feed())
    again.go_to(loader.place())
    assert len(again) == length
    iterator = iter(again)
    next(iterator)
    assert len(again) == length
    assert len(list(iterator)) == length - 6


def test_an_iterator_made_before_the_state_is_loaded_starts_there() -> None:
    whole = taken(Loader(feed()), 8)
    loader = Loader(feed())
    taken(loader, 5)
    again = Loader(feed())
    iterator = iter(again)
    again.go_to(loader.place())
    assert torch.equal(next(iterator)["tokens"], whole[5])


def test_documents_appear_as_often_as_their_rate_says() -> None:
    data = feed(rates=(0.25, 2.5))
    seen = np.zeros((2, 60), np.int64)
    for epoch in range(8):
        np.add.at(seen, tuple(data.selection.of_epoch(0, epoch).T), 1)
    assert (seen[0] == 2).all()
    assert (seen[1] == 20).all()


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (feed(seed=1), "seed was 0, is 1"),
        (feed(align=8), "align was 1, is 8"),
        (feed(packing=BestFit()), r"packing was Cut\(\), is BestFit\(\)"),
    ],
)
def test_other_data_are_begun_at_their_beginning(other: Epochs, told: str, caplog: pytest.LogCaptureFixture) -> None:
    loader = Loader(feed())
    taken(loader, 3)
    again = Loader(other)
    again.go_to(loader.place())
    assert same(taken(again, 3), taken(Loader(other), 3))
    assert len(caplog.messages) == 1
    assert re.search(told, caplog.messages[0])


def test_other_steps_go_on_with_the_rows_that_are_left(caplog: pytest.LogCaptureFixture) -> None:
    def rows(batches: Sequence[Any]) -> list[list[int]]:
        return [row for batch in batches for row in batch.tolist()]

    whole = rows(taken(Loader(feed(step=StepShape(1))), 36))
    first = Loader(feed(step=StepShape(2)))
    before = rows(taken(first, 10))
    again = Loader(feed(step=StepShape(4)))
    again.go_to(first.place())
    after = rows(taken(again, 4))
    assert before + after == whole
    assert "in other groups" in caplog.text


def test_a_stream_is_not_gone_on_with() -> None:
    with pytest.raises(ValueError, match=r"ckpt_path: the checkpoint is of a stream"):
        Loader(feed()).go_to({"stream": {}, "rows": 1})


def test_making_iterators_draws_nothing() -> None:
    before = torch.get_rng_state()
    for workers in (0, 1):
        next(iter(Loader(feed(workers=workers))))
    assert torch.equal(before, torch.get_rng_state())
