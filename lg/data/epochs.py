"""The order of training on documents that are all there: every epoch a new one, a function of seed and epoch alone."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lg.data.corpus import Corpus
from lg.data.loader import Feed, Recipes, RowBatches, State
from lg.data.mixture import appearances
from lg.data.order import micro_batches
from lg.data.packed import PackedRows
from lg.data.packing import Packing
from lg.data.positions import Drawing
from lg.data.rows import Batch, RowShape

_MOST_EMPTY = 1000  # epochs that may be too small for a batch, one after another

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepShape:
    """How rows make up an optimizer step.

    Attributes:
        batch_size: rows of a micro-batch.
        num_shards: ranks along the data axis.
        shard: which of them this one is.
        accumulate: micro-batches of a step, on each rank.
        balance: whether a step's micro-batches are sorted and dealt by what they cost.
    """

    batch_size: int
    num_shards: int = 1
    shard: int = 0
    accumulate: int = 1
    balance: bool = True

    @property
    def rows(self) -> int:
        """Rows of a whole step, on all ranks."""
        return self.batch_size * self.num_shards * self.accumulate


@dataclass(frozen=True, eq=False)
class Selection:
    """The documents to train on.

    Attributes:
        corpora: the tokenised documents, of each part of a mixture.
        documents: which of each corpus to take.
        rates: how often an epoch repeats each of these.
    """

    corpora: Sequence[Corpus]
    documents: Sequence[npt.NDArray[np.int64]]
    rates: Sequence[npt.NDArray[np.float64]]

    def of_epoch(self, seed: int, epoch: int) -> npt.NDArray[np.int64]:
        """The documents of an epoch as often as they appear in it, in an order drawn anew: corpus and document, [D, 2].

        Over the epochs each document appears as often as its rate says, to within one.
        """
        counts = np.split(
            appearances(self.rates, seed, epoch), np.cumsum([len(documents) for documents in self.documents])[:-1]
        )
        chosen = [np.repeat(documents, count) for documents, count in zip(self.documents, counts, strict=True)]
        corpus = np.repeat(np.arange(len(chosen)), [len(documents) for documents in chosen])
        drawn = np.random.default_rng((seed, epoch, 0)).permutation(len(corpus))
        return np.stack([corpus, np.concatenate(chosen)], axis=1)[drawn]


class Epochs(Feed):
    """Rows of whole documents, all of them in each epoch, packed and ordered anew.

    Args:
        selection: the documents.
        shape: of the rows.
        packing: how they are laid into rows; that of each corpus, if there are several.
        align: what their places are multiples of.
        step: how rows make up steps.
        seed: of every draw, with the epoch's number.
        num_workers: processes that make batches.
        drawing: positions that rows get, if they are not places.
    """

    def __init__(
        self,
        selection: Selection,
        shape: RowShape,
        packing: Packing | Sequence[Packing],
        align: int,
        step: StepShape,
        seed: int,
        num_workers: int,
        drawing: Drawing | None = None,
    ) -> None:
        self.selection = selection
        self.shape = shape
        self.packing = packing
        self.align = align
        self.step = step
        self.seed = seed
        self.num_workers = num_workers
        self.drawing = drawing
        self._rows: tuple[int, PackedRows] | None = None

    def rows(self, epoch: int) -> PackedRows:
        """The rows of an epoch, in their order."""
        if self._rows is None or self._rows[0] != epoch:
            documents = self.selection.of_epoch(self.seed, epoch)
            rows = PackedRows(
                self.selection.corpora, documents, self.shape, self.packing, self.align, (self.seed, epoch, 1)
            )
            self._rows = epoch, rows
        return self._rows[1]

    def beginning(self) -> State:
        """The first row of the first epoch."""
        step = dataclasses.asdict(self._step())
        return {"epoch": 0, "rows": 0, "grouped_from": 0, "step": step, "data": self._data()}

    def batches(self, state: State) -> Iterator[tuple[Batch, State]]:
        """The rest of an epoch; all of the next one, where nothing is left."""
        state = self._unfinished(state)
        rows, groups = self._groups(state)
        done = (state["rows"] - state["grouped_from"]) // self._rows_at_once
        own = groups[done:, self.step.shard]
        batches = RowBatches(rows.reader, Recipes(rows, own), self.num_workers)
        for number, batch in enumerate(batches, start=1):
            if self.drawing is not None:
                batch = self.drawing.onto(batch, [(self.seed, state["epoch"], 2, int(row)) for row in own[number - 1]])
            yield batch, {**state, "rows": state["rows"] + number * self._rows_at_once}

    def num_batches(self) -> int:
        """The micro-steps of the first epoch."""
        return len(self.rows(0)) // self._rows_at_once

    def accepted(self, state: State) -> State:
        """The same place; a new beginning, told, where the data are others.

        Steps may have changed: then rows go on where they were, in new groups, which is told too.
        """
        beginning = self.beginning()
        if "data" not in state or not isinstance(state["data"], dict):
            raise ValueError("ckpt_path: the checkpoint is of a stream, and data.init_args.source is none")
        changed = [key for key, value in beginning["data"].items() if state["data"].get(key) != value]
        if changed:
            told = ", ".join(f"{key} was {state['data'].get(key)}, is {beginning['data'][key]}" for key in changed)
            _log.warning("the checkpoint was trained on other data (%s): these are begun at their beginning", told)
            return beginning
        if state["step"] != beginning["step"]:
            _log.warning(
                "the checkpoint was trained with other steps (%s, now %s): rows go on where they were, in other groups",
                state["step"],
                beginning["step"],
            )
            return {**state, "step": beginning["step"], "grouped_from": state["rows"]}
        return state

    @property
    def _rows_at_once(self) -> int:
        return self.step.batch_size * self.step.num_shards

    def _unfinished(self, state: State) -> State:
        for epoch in range(state["epoch"], state["epoch"] + _MOST_EMPTY):
            if epoch != state["epoch"]:
                state = {**state, "epoch": epoch, "rows": 0, "grouped_from": 0}
            if len(self.rows(epoch)) - state["rows"] >= self._rows_at_once:
                return state
        raise ValueError(
            f"data.init_args.batch_size: {self.step.batch_size} is not allowed; {_MOST_EMPTY} epochs in a row have "
            "fewer rows than that on all ranks: lower it, or give data.init_args.source more text"
        )

    def _groups(self, state: State) -> tuple[PackedRows, npt.NDArray[np.int64]]:
        rows, first = self.rows(state["epoch"]), state["grouped_from"]
        step = self.step
        groups = micro_batches(rows.costs()[first:], step.batch_size, step.num_shards, step.accumulate, step.balance)
        return rows, groups + first

    def _step(self) -> StepShape:
        # The same on every rank: one of them saves for all.
        return dataclasses.replace(self.step, shard=0)

    def _data(self) -> dict[str, Any]:
        """What the order of rows hangs on, in figures that a user knows."""
        return {
            "documents": sum(map(len, self.selection.documents)),
            "tokens": sum(
                int(corpus.lengths[documents].sum())
                for corpus, documents in zip(self.selection.corpora, self.selection.documents, strict=True)
            ),
            "expected_tokens": round(
                sum(
                    float((corpus.lengths[documents] * rates).sum())
                    for corpus, documents, rates in zip(
                        self.selection.corpora, self.selection.documents, self.selection.rates, strict=True
                    )
                )
            ),
            "text": [corpus.folder.name for corpus in self.selection.corpora if corpus.folder],
            "row_length": self.shape.length,
            "document_mask": int(self.shape.document_mask),
            "packing": repr(self.packing),
            "align": self.align,
            "seed": self.seed,
        }
