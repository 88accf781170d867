"""The order of training on documents that are read anew as training goes: blocks of them, packed one after another."""

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lg.data.corpus import Corpus, place
from lg.data.epochs import StepShape
from lg.data.loader import Feed, State, outlive_signals
from lg.data.mixture import Cursor, Interleaved
from lg.data.packing import Packed, Packing
from lg.data.positions import Drawing
from lg.data.rows import Batch, Piece, Row, RowShape, collate
from lg.data.source import Document, Source
from lg.data.tokenizer import Tokenizer

Item = npt.NDArray[np.integer[Any]]
"""The tokens of a document, or of what is left of one, its end included."""

_HELD_BACK = 4  # rows of a block that wait for the next one's documents, to be filled better

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive documents of a stream, tokenised.

    Attributes:
        number: counted from the first of the stream, over all shards.
        cursor: where the stream is before it.
        documents: those to train on.
    """

    number: int
    cursor: Cursor
    documents: Sequence[Item]


class Blocks(IterableDataset[Block]):
    """One shard's blocks of a stream without end, from a place on, whichever worker process makes them.

    Every process reads the whole stream and tokenises its own blocks: block n is the same for any number of them.

    Args:
        source: the stream.
        tokenizer: turns its documents into ids.
        held_out: documents whose place is below this share are left out.
        size: documents of a block, those held out included.
        number: of the first block to read.
        cursor: where the stream is before that.
        step: says which blocks are this shard's: each ``num_shards``-th.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        held_out: float,
        size: int,
        number: int,
        cursor: Cursor | None,
        step: StepShape,
    ) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self.held_out = held_out
        self.size = size
        self.number = number
        self.cursor = cursor
        self.step = step

    def __iter__(self) -> Iterator[Block]:
        """The blocks of this worker."""
        worker = get_worker_info()
        workers, own = (worker.num_workers, worker.id) if worker else (1, 0)
        reader = Interleaved(self.source.parts(), self.cursor)
        turn = 0
        for number in itertools.count(self.number):
            cursor = reader.cursor()
            documents = list(itertools.islice(reader, self.size))
            if number % self.step.num_shards != self.step.shard:
                continue
            if turn % workers == own:
                chosen = [document for document in documents if place(document.name) >= self.held_out]
                yield Block(number, cursor, self._tokenised(chosen))
            turn += 1

    def _tokenised(self, documents: Sequence[Document]) -> list[Item]:
        corpus = Corpus.of(documents, self.tokenizer)
        return np.split(corpus.tokens, corpus.starts[1:-1]) if documents else []


class Stream(Feed):
    """Rows of a stream without end: when the source is read through, it begins again.

    A block of documents is shuffled, and packed together with what the block before left over. Every draw is a function
    of the seed and the block's number. The place of training is a block's number, where the stream was before it, what
    was left over (a few rows' tokens), and how many rows of it were trained on.

    Args:
        source: what is read.
        tokenizer: turns its documents into ids.
        held_out: documents whose place is below this share are left out.
        shape: of the rows.
        packing: how documents are laid into rows.
        align: what their places are multiples of.
        step: how rows make up steps; a shard has each ``num_shards``-th block.
        seed: of every draw.
        num_workers: processes that read and tokenise.
        block: documents of a block.
        drawing: positions that rows get, if they are not places.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        held_out: float,
        shape: RowShape,
        packing: Packing,
        align: int,
        step: StepShape,
        seed: int,
        num_workers: int,
        block: int,
        drawing: Drawing | None = None,
    ) -> None:
        self.source = source
        self.tokenizer = tokenizer
        self.held_out = held_out
        self.shape = shape
        self.packing = packing
        self.align = align
        self.step = step
        self.seed = seed
        self.num_workers = num_workers
        self.block = block
        self.drawing = drawing

    def beginning(self) -> State:
        """The first row of the first block."""
        return {"block": 0, "cursor": None, "left_over": _saved([]), "rows": 0, "micro_batches": 0, **self._told()}

    def num_batches(self) -> None:
        """A stream has no end."""
        return None

    def accepted(self, state: State) -> State:
        """The same place; a new beginning, told, where the data are others."""
        if "stream" not in state:
            raise ValueError("ckpt_path: the checkpoint is not of a stream, and data.init_args.source is one")
        own = self._data()
        changed = [key for key, value in own.items() if state["stream"].get(key) != value]
        if changed:
            told = ", ".join(f"{key} was {state['stream'].get(key)}, is {own[key]}" for key in changed)
            _log.warning("the checkpoint was trained on another stream (%s): this one is begun at its beginning", told)
            return self.beginning()
        if state["micro_batches"] and state["step"] != self._told()["step"]:
            _log.warning("the checkpoint was saved inside a step, and steps are others now: that step is begun again")
            return {**state, **self._told(), "micro_batches": 0}
        return {**state, **self._told()}

    def batches(self, state: State) -> Iterator[tuple[Batch, State]]:
        """Micro-batches without end, those of a step sorted by cost, the dearest first (see `micro_batches`)."""
        rows, done = self._rows(state), state["micro_batches"]
        state = {**state, "micro_batches": 0}
        size, at_once = self.step.batch_size, self.step.batch_size * self.step.accumulate
        while step := list(itertools.islice(rows, at_once)):
            micro = [step[first : first + size] for first in range(0, at_once, size)]
            if self.step.balance:
                micro.sort(key=lambda batch: -sum(cost for _, cost, _ in batch))
            # A step's rows are out of order: inside it a place is that before the step, and how far it has got.
            for number, batch in enumerate(micro, start=1):
                if number > done:
                    after = step[-1][2] if number == len(micro) else {**state, "micro_batches": number}
                    yield self._positioned(collate([row for row, _, _ in batch]), [at for _, _, at in batch]), after
            state, done = step[-1][2], 0

    def _positioned(self, batch: Batch, places: Sequence[State]) -> Batch:
        """The batch with drawn positions, if there are any; a place is that behind each of its rows."""
        if self.drawing is None:
            return batch
        return self.drawing.onto(batch, [(self.seed, place["block"], 2, place["rows"]) for place in places])

    def _rows(self, state: State) -> Iterator[tuple[Row, float, State]]:
        """Rows, what attention over each costs, and the place behind each."""
        left_over, skip = _loaded(state["left_over"]), state["rows"]
        for block in self._blocks(state):
            place = {**state, "block": block.number, "cursor": block.cursor, "left_over": _saved(left_over)}
            drawn = np.random.default_rng((self.seed, block.number)).permutation(len(block.documents))
            items = [*left_over, *(block.documents[index] for index in drawn)]
            packed = self.packing.pack(np.array([len(item) for item in items], np.int64), self.shape.length, self.align)
            ready, waiting = _ready(packed)
            left_over = [items[packed.item[piece]][packed.begin[piece] :] for piece in waiting]
            ready = [ready[n] for n in np.random.default_rng((self.seed, block.number, 1)).permutation(len(ready))]
            for number, pieces in enumerate(ready[skip:], start=skip + 1):
                yield self._row(items, packed, pieces), self._cost(packed, pieces), {**place, "rows": number}
            skip = 0

    def _blocks(self, state: State) -> Iterator[Block]:
        blocks = Blocks(
            self.source, self.tokenizer, self.held_out, self.block, state["block"], state["cursor"], self.step
        )
        return iter(
            DataLoader(
                blocks,
                batch_size=None,
                num_workers=self.num_workers,
                collate_fn=_as_it_is,  # type: ignore[arg-type]  # without batches it is given what the stream gives
                # Its own, so that making an iterator draws nothing from the run's random numbers.
                generator=torch.Generator(),
                worker_init_fn=outlive_signals,
            )
        )

    def _row(self, items: Sequence[Item], packed: Packed, pieces: Sequence[int]) -> Row:
        made = []
        for piece in pieces:
            begin, length = int(packed.begin[piece]), int(packed.length[piece])
            tokens = items[packed.item[piece]][begin : begin + length + 1]
            made.append(Piece(int(packed.place[piece]), length, tokens))
        return self.shape.row(made)

    def _cost(self, packed: Packed, pieces: Sequence[int]) -> float:
        if not self.shape.document_mask:
            return float(self.shape.length) ** 2
        return float((packed.length[np.array(pieces)].astype(np.float64) ** 2).sum())

    def _data(self) -> dict[str, Any]:
        """What the order of rows hangs on, in words that a user knows."""
        return {
            "source": _named(self.source),
            "row_length": self.shape.length,
            "document_mask": self.shape.document_mask,
            "held_out": self.held_out,
            "packing": repr(self.packing),
            "align": self.align,
            "block": self.block,
            "seed": self.seed,
        }

    def _told(self) -> dict[str, Any]:
        """What a saved place tells of the run: its data, and its steps, the same on every rank."""
        return {"stream": self._data(), "step": dataclasses.asdict(dataclasses.replace(self.step, shard=0))}


def held_out_documents(source: Source, tokenizer: Tokenizer, share: float, num_tokens: int) -> list[Document]:
    """The first documents of a stream that are held out, until they have so many tokens or the stream has ended.

    Raises:
        ValueError: none is, or all are.
    """
    held: list[Document] = []
    seen: set[tuple[str, int]] = set()
    trained = False
    reader = Interleaved(source.parts())
    for document in reader:
        if all(part["passes"] for part in reader.cursor().values()):
            break  # each part was read through
        known = (document.name, hash(document.text))
        if known in seen:
            continue  # a part that ended has begun again
        seen.add(known)
        if place(document.name) >= share:
            trained = True
            continue
        held.append(document)
        num_tokens -= len(tokenizer.encode(document.text)) + 1
        if num_tokens <= 0 and trained:
            return held
    if not held or not trained:
        raise ValueError(
            f"data.init_args.held_out: {share} holds out {'all' if held else 'none'} of the stream's documents; "
            f"it must leave some on either side: {'lower' if held else 'raise'} it, or give data.init_args.source "
            "more documents"
        )
    return held


def _ready(packed: Packed) -> tuple[list[list[int]], list[int]]:
    """The pieces of each row that can be trained on, and those that wait: of the emptiest rows, to be filled better.

    A row that is not filled to its end holds the last pieces of documents only, so that what waits are whole rests.
    """
    rows: list[list[int]] = [[] for _ in range(packed.num_rows)]
    for piece, row in enumerate(packed.row.tolist()):
        rows[row].append(piece)
    empty = [packed.row_length - int(packed.place[row[-1]] + packed.length[row[-1]]) for row in rows]
    emptiest = sorted(range(len(rows)), key=lambda number: (-empty[number], number))[:_HELD_BACK]
    waiting = {number for number in emptiest if empty[number] > packed.row_length // 32}
    ready = [row for number, row in enumerate(rows) if number not in waiting]
    return ready, [piece for number in sorted(waiting) for piece in rows[number]]


def _saved(items: Sequence[Item]) -> dict[str, Any]:
    """Items as plain data for a checkpoint."""
    together = np.concatenate([np.zeros(0, np.int32), *items]).astype(np.int32)
    return {"tokens": torch.from_numpy(together), "lengths": [len(item) for item in items]}


def _loaded(saved: dict[str, Any]) -> list[Item]:
    ends = np.cumsum(saved["lengths"], dtype=np.int64)[:-1]
    return list(np.split(saved["tokens"].numpy(), ends)) if saved["lengths"] else []


def _named(source: Source) -> str:
    """A source in words that are the same in each process: one without a text of its own by its class."""
    own = type(source)
    return repr(source) if own.__repr__ is not object.__repr__ else f"{own.__module__}.{own.__qualname__}"


def _as_it_is(block: Block) -> Block:
    return block
