"""The data as Lightning wants it: one source in, packed training and held-out rows out."""

import hashlib
from collections.abc import Iterable

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lg.data.packing import PackedRows, Row, collate, pack
from lg.data.source import Document, Source, Stdlib
from lg.data.tokenizer import Bytes, Tokenizer


class TextData(LightningDataModule):
    """Documents of a source, some of them held out, as batches of packed rows.

    A batch is one packed sequence (see :class:`~lg.data.packing.Batch`). Which documents are held
    out, and the rows they make, depend on their names and texts alone: runs with different seeds
    are judged on the same rows.

    Args:
        source: where the documents come from; ``null`` is ``Stdlib``, the interpreter's own
            standard library.
        tokenizer: what turns them into ids; ``null`` is ``Bytes``.
        row_length: tokens of a row.
        batch_size: rows of a batch, laid end to end.
        held_out: about this share of the documents (of their number, not of their bytes) is kept
            for validation.
        document_mask: whether attention and targets stop at the end of a document; if not, a row
            is one document.
        prefix: share of each document of a row that is its prefix (``doc.prefix``), for a model with
            `PrefixLM`; at 0 documents have none.
        num_workers: processes that prepare batches; the rows are in memory, so 0 is enough.
        seed: of the order of training documents and rows.

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
        document_mask: bool = True,
        prefix: float = 0.0,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _at_least("row_length", row_length, 1)
        _at_least("batch_size", batch_size, 1)
        _at_least("num_workers", num_workers, 0)
        _at_least("seed", seed, 0)
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
        self.document_mask = document_mask
        self.prefix = prefix
        self.num_workers = num_workers
        self.seed = seed
        self._rows: tuple[PackedRows, PackedRows] | None = None

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
        """The rows to train on; known after ``setup``."""
        return self._packed()[0]

    @property
    def val_rows(self) -> PackedRows:
        """The rows of the held-out documents; known after ``setup``."""
        return self._packed()[1]

    @property
    def bytes_per_token(self) -> float:
        """Bytes of held-out text a token stands for on average; known after ``setup``."""
        return self.val_rows.bytes_per_token

    def setup(self, stage: str | None = None) -> None:
        """Read, split and pack the source, once, whatever the stage.

        Raises:
            ValueError: the source is missing, or too small to fill a row on both sides.
        """
        if self._rows is not None:
            return
        train, held_out = _split(self.source.documents(), self.held_out)
        train_rows = pack(train, self.tokenizer, self.row_length, self.document_mask, self.seed, self.prefix)
        val_rows = pack(held_out, self.tokenizer, self.row_length, self.document_mask, 0, self.prefix)
        if len(val_rows) == 0:
            raise ValueError(
                f"data.init_args.held_out: {self.held_out} holds out too little, {len(held_out)} "
                f"documents with {val_rows.num_tokens} tokens; it must fill at least one row of "
                f"{self.row_length}: raise it, lower data.init_args.row_length, or give "
                "data.init_args.source more text"
            )
        if len(train_rows) < self.batch_size:
            raise ValueError(
                f"data.init_args.batch_size: {self.batch_size} is not allowed; the {len(train)} "
                f"documents to train on fill {len(train_rows)} rows of {self.row_length}, and it "
                "must be at most that: lower it or data.init_args.row_length, or give "
                "data.init_args.source more text"
            )
        self._rows = train_rows, val_rows

    def train_dataloader(self) -> DataLoader[Row]:
        """Whole batches in an order drawn from the seed, a new one each epoch."""
        return DataLoader(
            self.train_rows,
            batch_size=self.batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(self.seed),
            drop_last=True,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Row]:
        """Every held-out row, in one order; the last batch may have fewer rows."""
        return DataLoader(
            self.val_rows,
            batch_size=self.batch_size,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _packed(self) -> tuple[PackedRows, PackedRows]:
        if self._rows is None:
            raise RuntimeError("TextData has no rows before setup(); call it, or let the Trainer")
        return self._rows


def _split(documents: Iterable[Document], held_out: float) -> tuple[list[Document], list[Document]]:
    """Training and held-out documents, at least one on each side.

    A document's side hangs on its name only, so it keeps it when others are added.
    """
    sides: tuple[list[Document], list[Document]] = ([], [])
    for document in documents:
        sides[_place(document) < held_out].append(document)
    train, held = sides
    if len(train) + len(held) < 2:
        raise ValueError(
            f"data.init_args.source: {len(train) + len(held)} documents are not enough; at least "
            "2 are needed, one to train on and one to hold out"
        )
    if not held:
        held.append(train.pop(train.index(min(train, key=_place))))
    if not train:
        train.append(held.pop(held.index(max(held, key=_place))))
    return train, held


def _place(document: Document) -> float:
    """A number in [0, 1) drawn from the name, the same in every process (``hash`` is not)."""
    digest = hashlib.sha256(document.name.encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"data.init_args.{name}: {value} is not allowed; it must be at least {least}")
