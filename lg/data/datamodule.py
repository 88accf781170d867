"""The data as Lightning wants it: one source in, packed training and held-out rows out, in an order that resumes."""

import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader

from lg.data.cache import cached
from lg.data.corpus import Corpus
from lg.data.epochs import Epochs, Selection, StepShape
from lg.data.files import Stdlib
from lg.data.loader import Feed, Loader, Recipes, RowBatches
from lg.data.mixture import Upsample, rates
from lg.data.packed import PackedRows
from lg.data.packing import KEY as PACKING_KEY
from lg.data.packing import Cut, Packing
from lg.data.positions import Drawing, Positions, Sentences
from lg.data.rows import Batch, RowShape
from lg.data.shards import data_axis, of_every_rank
from lg.data.source import Part, Source
from lg.data.stream import Stream, held_out_documents
from lg.data.tokenizer import Bytes, Tokenizer
from lg.data.whole import WholeDocuments

_log = logging.getLogger(__name__)


class TextData(LightningDataModule):
    """Documents of a source, some of them held out, as batches of packed rows.

    A batch is one packed sequence (see :class:`~lg.data.rows.Batch`). Which documents are held out, and the rows they
    make, depend on their names and texts alone: runs with different seeds are judged on the same rows.

    Documents are tokenised once, into a cache on disk; a streamed source is read and tokenised as training goes. Every
    draw is a function of the seed and of the epoch, so that a run resumed from a checkpoint reads what it would have
    read, whatever the number of workers.

    Args:
        source: where the documents come from; ``null`` is ``Stdlib``, the interpreter's own standard library.
        tokenizer: what turns them into ids; ``null`` is ``Bytes``.
        row_length: tokens of a row.
        batch_size: rows of a batch, laid end to end.
        held_out: about this share of the documents (of their number, not of their bytes) is kept for validation.
        held_out_rows: at most so many rows are made of them; ``null`` for all, and 64 for a stream.
        document_mask: whether attention and targets stop at the end of a document; if not, a row is one document.
        packing: how documents are laid into rows; ``null`` is ``Cut``. A ``Mixture`` may say for each of its sources
            another one.
        align: every document begins at a multiple of it; ``schedule`` takes the largest block that a pattern of the
            model counts in, since stripes off that grid make partial tiles of full ones; without a mask, 1.
        upsample: gives long documents a larger share of each source; ``null`` leaves it as it is.
        prefix: share of each document of a row that is its prefix (``doc.prefix``), for a model with `PrefixLM`; at 0
            documents have none.
        balance: whether the micro-batches of a step are sorted and dealt to the ranks by the sum of squared lengths.
        num_workers: processes that prepare batches; reading from the cache takes so little that 0 is enough.
        seed: of the order of training documents and rows.
        cache: the folder of tokenised documents; ``null`` is ``$LG_CACHE``, or ``lg`` in the user's cache folder.
        processes: that tokenise; ``null`` for as many as there are cores.
        block: documents of a stream that are shuffled and packed together.
        positions: what rows to train on read their rotary positions as; ``null`` for places in the documents, as
            held-out rows always do.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        source: Source | None = None,
        tokenizer: Tokenizer | None = None,
        row_length: int = 4096,
        batch_size: int = 1,
        held_out: float = 0.05,
        held_out_rows: int | None = None,
        document_mask: bool = True,
        packing: Packing | None = None,
        align: int | Literal["schedule"] = "schedule",
        upsample: Upsample | None = None,
        prefix: float = 0.0,
        balance: bool = True,
        num_workers: int = 0,
        seed: int = 0,
        cache: str | None = None,
        processes: int | None = None,
        block: int = 256,
        positions: Positions | None = None,
    ) -> None:
        super().__init__()
        least = {"row_length": 1, "batch_size": 1, "held_out_rows": 1, "num_workers": 0, "seed": 0, "processes": 1}
        given = {
            "row_length": row_length, "batch_size": batch_size, "held_out_rows": held_out_rows,
            "num_workers": num_workers, "seed": seed, "processes": processes, "block": block,
            "align": None if align == "schedule" else align,
        }  # fmt: skip
        for name, value in given.items():
            if value is not None and value < least.get(name, 1):
                raise ValueError(
                    f"data.init_args.{name}: {value} is not allowed; it must be at least {least.get(name, 1)}"
                )
        if not 0 < held_out < 1:
            raise ValueError(
                f"data.init_args.held_out: {held_out} is not allowed; it must be a share above 0 and below 1"
            )
        if not 0 <= prefix <= 1:
            raise ValueError(f"data.init_args.prefix: {prefix} is not allowed; it must be a share from 0 to 1")
        self.source = Stdlib() if source is None else source
        self.tokenizer = Bytes() if tokenizer is None else tokenizer
        self.row_length = row_length
        self.batch_size = batch_size
        self.held_out = held_out
        self.held_out_rows = held_out_rows
        self.document_mask = document_mask
        self.packing = Cut() if packing is None else packing
        self.align = align
        self.upsample = upsample
        self.prefix = prefix
        self.balance = balance
        self.num_workers = num_workers
        self.seed = seed
        self.cache = cache
        self.processes = processes
        self.block = block
        self.positions = positions
        self.num_positions = row_length if positions is None else positions.num_positions(row_length)
        self._feed: Feed | None = None
        self._val_rows: PackedRows | None = None
        self._train: Loader | None = None
        self._saved: Any = None

    @property
    def vocab_size(self) -> int:
        """The number of token ids; known before ``setup``."""
        return self.tokenizer.vocab_size

    @property
    def document_attributes(self) -> tuple[str, ...]:
        """What batches tell of each document, besides where it begins; known before ``setup``."""
        return ("prefix",) if self.prefix else ()

    @property
    def train_rows(self) -> PackedRows:
        """The rows of the first epoch; known after ``setup``, and not for a stream."""
        feed = self._ready(self._feed)
        if not isinstance(feed, Epochs):
            raise ValueError("data.init_args.source: a stream's rows are not known before they are read")
        return feed.rows(0)

    @property
    def val_rows(self) -> PackedRows:
        """The rows of the held-out documents; known after ``setup``."""
        rows: PackedRows = self._ready(self._val_rows)
        return rows

    @property
    def bytes_per_token(self) -> float:
        """Bytes of held-out text a token stands for on average; known after ``setup``."""
        return self.val_rows.bytes_per_token

    def setup(self, stage: str | None = None) -> None:
        """Tokenise the source, or open the cache where that was done; split and pack it. Once, whatever the stage.

        Raises:
            ValueError: the source is missing, or too small to fill a batch.
        """
        if self._feed is not None:
            return
        align = self._aligned()
        shape = RowShape(self.row_length, self.tokenizer.end, self.document_mask, self.prefix)
        num_shards, shard = data_axis(self.trainer)
        accumulate = int(self.trainer.accumulate_grad_batches) if self.trainer else 1
        step = StepShape(self.batch_size, num_shards, shard, accumulate, self.balance)
        if self.source.streamed:
            self._set_up_stream(shape, align, step)
        else:
            self._set_up_epochs(shape, align, step)

    def _set_up_epochs(self, shape: RowShape, align: int, step: StepShape) -> None:
        parts = self.source.parts()
        corpora = []
        for part in parts:
            with part.placed():
                corpora.append(cached(part.source, self.tokenizer, self.cache, self.processes))
        packings = [part.packing or self.packing for part in parts]
        kept = [
            self._kept(corpus, packing, part, align)
            for corpus, packing, part in zip(corpora, packings, parts, strict=True)
        ]
        train, held = split(
            [corpus.places for corpus in corpora], self.held_out, [np.flatnonzero(each) for each in kept]
        )
        lengths = [corpus.lengths[documents] for corpus, documents in zip(corpora, train, strict=True)]
        rates_of_parts = rates(
            lengths, parts, self.upsample, [each[documents] for each, documents in zip(kept, train, strict=True)]
        )
        packing = packings if any(part.packing for part in parts) else self.packing
        feed = Epochs(
            Selection(corpora, train, rates_of_parts), shape, packing, align, step, self.seed, self.num_workers,
            self._drawing(),
        )  # fmt: skip
        val_rows = self._held_out_rows(corpora, held, shape, packing, align)
        rows = feed.rows(0)
        if len(rows) < step.batch_size * step.num_shards:
            raise ValueError(
                f"data.init_args.batch_size: {self.batch_size} is not allowed; the {sum(map(len, train))} documents to "
                f"train on fill {len(rows)} rows of {self.row_length}, and it must be at most that"
                f"{f' on {step.num_shards} ranks' if step.num_shards > 1 else ''}: lower it or "
                "data.init_args.row_length, or give data.init_args.source more text"
            )
        _log.info(
            "an epoch: %d tokens of %d documents in %d rows of %d, %.1f%% padding; %d rows held out",
            rows.num_tokens, len(rows.documents_D2), len(rows), self.row_length,
            100 * rows.padding_share, len(val_rows),
        )  # fmt: skip
        self._feed, self._val_rows = feed, val_rows

    def _set_up_stream(self, shape: RowShape, align: int, step: StepShape) -> None:
        if self.upsample is not None:
            raise ValueError(
                "data.init_args.upsample: a stream's lengths are not known before it is read; null is needed, or a "
                "source that is not streamed"
            )
        if self.packing.selects:
            raise ValueError(
                f"data.init_args.packing: {self.packing} is not allowed for a stream, for it leaves out documents by "
                "their lengths, which are not known before they are read; Cut or BestFit is needed, or a source that "
                "is not streamed"
            )
        most = self.held_out_rows or 64
        documents = held_out_documents(self.source, self.tokenizer, self.held_out, most * self.row_length)
        corpus = Corpus.of(documents, self.tokenizer)
        self._val_rows = self._held_out_rows([corpus], [np.arange(len(documents))], shape, self.packing, align, most)
        self._feed = Stream(
            self.source, self.tokenizer, self.held_out, shape, self.packing, align, step, self.seed,
            self.num_workers, self.block, self._drawing(),
        )  # fmt: skip

    def _drawing(self) -> Drawing | None:
        return None if self.positions is None else Drawing(self.positions, Sentences(self.tokenizer))

    def _kept(self, corpus: Corpus, packing: Packing, part: Part, align: int) -> npt.NDArray[np.int64]:
        """Tokens of each document of a part that its packing keeps, and what it leaves out told.

        Raises:
            ValueError: it keeps nothing.
        """
        key = part.packing_key if part.packing else PACKING_KEY
        try:
            packing.check(self.row_length, align)
        except ValueError as error:
            raise ValueError(str(error).replace(PACKING_KEY, key)) from error
        lengths = corpus.lengths
        kept = packing.kept(lengths, self.row_length)
        if not packing.selects or not len(corpus):
            return kept
        longest, out, lost = int(lengths.max()), int((kept == 0).sum()), 1 - kept.sum() / lengths.sum()
        if out == len(corpus):
            raise ValueError(
                f"{key}: {packing} is not allowed; it leaves out every document of {part.key}, of which there are "
                f"{len(corpus)}, the longest of {longest} tokens"
            )
        _log.info(
            "%s: %s leaves out %d of %d documents, and %.1f%% of the tokens", part.key, packing, out, len(corpus),
            100 * lost,
        )  # fmt: skip
        return kept

    def _held_out_rows(
        self,
        corpora: Sequence[Corpus],
        documents: Sequence[npt.NDArray[np.int64]],
        shape: RowShape,
        packing: Packing | Sequence[Packing],
        align: int,
        most: int | None = None,
    ) -> PackedRows:
        # An order of its own, the same for every seed.
        corpus = np.repeat(np.arange(len(documents)), [len(numbers) for numbers in documents])
        all_D2 = np.stack([corpus, np.concatenate(documents)], axis=1)
        drawn = np.random.default_rng(0).permutation(len(all_D2))
        return PackedRows(corpora, all_D2[drawn], shape, packing, align, 0, most or self.held_out_rows)

    def _aligned(self) -> int:
        """The grid of document starts, as a number.

        Raises:
            ValueError: a row is not a whole number of its steps.
        """
        if self.align == "schedule" and not self.document_mask:
            # Rows are the documents then, whatever they are made of.
            return 1
        if self.align == "schedule":
            align = int(getattr(getattr(self.trainer, "lightning_module", None), "grid", 1))
            whose = "schedule, the largest block of the model's patterns"
        else:
            align, whose = self.align, str(self.align)
        if self.row_length % align:
            raise ValueError(
                f"data.init_args.row_length: {self.row_length} is not allowed; it must be a multiple of {align} "
                f"(data.init_args.align is {whose})"
            )
        return align

    def train_dataloader(self) -> Loader:
        """This rank's batches, one object for the whole run: it knows how far training has got.

        Raises:
            ValueError: a stream is to be read for a number of epochs.
        """
        if self._train is None:
            epochs = self.trainer.max_epochs if self.trainer else None
            if self.source.streamed and epochs not in (None, -1):
                raise ValueError(
                    f"trainer.max_epochs: {epochs} is not allowed; a stream has no end, so trainer.max_steps alone "
                    "must say where training ends"
                )
            self._train = Loader(self._ready(self._feed))
            if self._saved is not None:
                self._train.go_to(self._saved)
        return self._train

    def val_dataloader(self) -> RowBatches:
        """This rank's share of the held-out rows, in one order.

        Every rank has as many batches, since they compute together: one without a row has one that is all padding.
        """
        rows = self.val_rows
        num_shards, shard = data_axis(self.trainer)
        at_once = self.batch_size * num_shards
        numbers = [
            range(first + shard * self.batch_size, min(first + (shard + 1) * self.batch_size, len(rows)))
            for first in range(0, len(rows), at_once)
        ]
        return RowBatches(rows.reader, Recipes(rows, numbers), self.num_workers)

    def predict_dataloader(self) -> DataLoader[Tensor]:
        """Held-out documents, whole, as lists of int64 [L]; which, and how many at once, the model's `write_on` says.

        Raises:
            ValueError: none is longer than the prompts that it asks for.
        """
        asked = getattr(getattr(self.trainer, "lightning_module", None), "write_on", None)
        longer_than, most = getattr(asked, "prompt_tokens", 0), getattr(asked, "num_documents", None)
        documents = WholeDocuments(self.val_rows, longer_than, most)
        return DataLoader(documents, batch_size=getattr(asked, "batch_size", self.batch_size), collate_fn=list)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Notes that a batch is being trained on: Lightning calls this for each batch just before its step."""
        if self._train is not None and self.trainer is not None and self.trainer.training:
            self._train.consume()
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the training data are: consumed, not read ahead; of each shard, where they differ."""
        if self._train is None or self.trainer is None:
            return {}
        state = self._train.place()
        told = {"positions": repr(self.positions)}
        if not self.source.streamed:
            return {"train": state, **told}
        num_shards, shard = data_axis(self.trainer)
        of_ranks = dict(of_every_rank(self.trainer, [shard, state]))
        return {"shards": [of_ranks[number] for number in range(num_shards)], **told}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from where the checkpoint was saved, if anything trains.

        Raises:
            ValueError: the checkpoint is of a stream that another number of ranks read.
        """
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            # Lightning hands it to whatever reads a checkpoint; what is held out is the same on any number of ranks.
            return
        before, now = state_dict.get("positions"), repr(self.positions)
        if before not in (None, now):
            _log.warning(
                "data.init_args.positions: the checkpoint was trained with %s, and training goes on with %s",
                before,
                now,
            )
        state = state_dict.get("train")
        if "shards" in state_dict:
            num_shards, shard = data_axis(self.trainer)
            if len(state_dict["shards"]) != num_shards:
                raise ValueError(
                    f"ckpt_path: {len(state_dict['shards'])} ranks were reading the stream when the checkpoint was "
                    f"saved, and {num_shards} are not allowed; a stream goes on with as many as read it"
                )
            state = state_dict["shards"][shard]
        self._saved = state
        if self._train is not None and state is not None:
            self._train.go_to(state)

    def _ready(self, value: Any) -> Any:
        if value is None:
            raise RuntimeError("TextData has no rows before setup(); call it, or let the Trainer")
        return value


def split(
    places: Sequence[npt.NDArray[np.float64]],
    held_out: float,
    among: Sequence[npt.NDArray[np.int64]] | None = None,
) -> tuple[list[npt.NDArray[np.int64]], list[npt.NDArray[np.int64]]]:
    """The numbers of the documents of each corpus to train on, and of those held out; at least one on each side in all.

    Args:
        places: of each corpus, the place in [0, 1) of each document, which hangs on its name only, so that it keeps its
            side when others are added.
        held_out: documents below this place are held out.
        among: the numbers of the documents of each corpus that there are to split; None for all.

    Raises:
        ValueError: there are fewer than two documents.
    """
    among = [np.arange(len(of_corpus)) for of_corpus in places] if among is None else among
    together = np.concatenate([of_corpus[numbers] for of_corpus, numbers in zip(places, among, strict=True)])
    if len(together) < 2:
        raise ValueError(
            f"data.init_args.source: {len(together)} documents are not enough; at least 2 are needed, one to train on "
            "and one to hold out"
        )
    if together.min() == together.max():
        raise ValueError(
            "data.init_args.source: all documents have one name; they need two, to tell which are held out"
        )
    held = together < held_out
    # Documents of one name are on one side: parts of a mixture may share them.
    if not held.any():
        held = together == together.min()
    if held.all():
        held = together != together.max()
    sides = np.split(held, np.cumsum([len(numbers) for numbers in among])[:-1])
    return (
        [numbers[~side] for numbers, side in zip(among, sides, strict=True)],
        [numbers[side] for numbers, side in zip(among, sides, strict=True)],
    )
