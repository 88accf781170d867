"""``lg predict``: a model writes on from the beginnings of held-out documents, into a file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, TextIO

import lightning.pytorch as pl

from lg.cli.kept_as import KV, formats_of
from lg.cli.progress import ProgressLine
from lg.cli.trouble import Refused
from lg.cli.written import file_for
from lg.data import TextData
from lg.folder import aside
from lg.inference import Continued, Sampling, WriteOn
from lg.inference.generate import Progress
from lg.models.hybrid import HybridLM
from lg.parallel import HybridStrategy


@dataclass
class Predict:
    """What is written, after which prompts, and where to.

    Args:
        out: a .jsonl file: an object for each document, with prompt, written, stood, tokens, logprobs and finish.
        prompt_tokens: of each document's beginning; shorter documents are passed over.
        max_new_tokens: the most that are written after it.
        num_documents: the most documents; null for all that are held out.
        batch_size: documents at once, where memory holds as many.
        temperature: 0, which always takes the likeliest token.
        top_k: draw from the so many likeliest tokens only.
        top_p: draw from the likeliest tokens that have this share together.
        min_p: draw from tokens that are at least so many times as likely as the likeliest.
        repetition_penalty: above 1, what the text has already is less likely.
        seed: of the draws; null for another one each time.
        stop: texts that end what is written.
        prefix: tokens of the prompt that see one another, for a model with PrefixLM.
        kv: type of keys and values; auto, as the weights, or float32, bfloat16, float16, int8, int8_int4, int4.
    """

    out: str | None = None
    prompt_tokens: int = 128
    max_new_tokens: int = 128
    num_documents: int | None = None
    batch_size: int = 32
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: list[str] = field(default_factory=list)
    prefix: int | None = None
    kv: str = "auto"

    def __post_init__(self) -> None:
        """Refuses what can be refused before anything is built.

        Raises:
            Refused: naming the option.
        """
        if self.out is None:
            raise Refused("out: needed; a .jsonl file for what is written")
        try:
            path = file_for(self.out, "out", ".jsonl")
            self.write_on(None)
        except ValueError as error:
            raise Refused(str(error)) from error
        if path is None:
            raise Refused("out: '' is not allowed; it must be a .jsonl file in a folder that exists")
        if self.kv not in KV:
            raise Refused(f"kv: {self.kv!r} is not allowed; allowed are {', '.join(KV)}")
        if "" in self.stop:
            raise Refused("stop: '' is not allowed; it would end every text")
        self.path = path

    @classmethod
    def of(cls, config: Any) -> Predict:
        """From what was parsed."""
        return cls(**{one.name: config[one.name] for one in fields(cls)})

    def write_on(self, tokenizer: Any) -> WriteOn:
        """What `HybridLM` is to do with documents.

        Raises:
            ValueError: naming the option that is out of its range.
        """
        sampling = Sampling(
            self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty, self.seed
        )  # fmt: skip
        return WriteOn(
            self.prompt_tokens, self.max_new_tokens, self.num_documents, self.batch_size, sampling, tokenizer,
            () if tokenizer is None else {tokenizer.end}, self.stop, self.prefix,
        )  # fmt: skip

    @contextmanager
    def running(
        self, trainer: pl.Trainer, model: pl.LightningModule, data: pl.LightningDataModule, checkpoint: str | None
    ) -> Iterator[None]:
        """Around ``Trainer.predict``: what it makes goes to the file, which is there when all of it is.

        Raises:
            Refused: if this run cannot predict, or nothing was written.
        """
        if not isinstance(model, HybridLM) or type(model).predict_step is not HybridLM.predict_step:
            raise Refused(
                f"model.class_path: {type(model).__name__} is not allowed; a HybridLM without a predict_step of its "
                "own is needed (from Python, trainer.predict takes any)"
            )
        if trainer.world_size > 1 or isinstance(trainer.strategy, HybridStrategy):
            raise Refused(
                f"trainer.strategy: {type(trainer.strategy).__name__} on {trainer.world_size} devices is not allowed; "
                "one device writes: --trainer.strategy=auto --trainer.devices=1"
            )
        if checkpoint is None and model.pretrained is None:
            raise Refused(
                "ckpt_path: needed; without one the model has learnt nothing: a checkpoint, or last for the newest one"
            )
        if self.num_documents is not None and not isinstance(data, TextData):
            raise Refused(
                f"num_documents: {self.num_documents} is not allowed; {type(data).__name__} says itself which documents"
                " it gives, and trainer.limit_predict_batches how many batches"
            )
        tokenizer = getattr(data, "tokenizer", None)
        if self.stop and tokenizer is None:
            raise Refused(f"stop: {self.stop} is not allowed; {type(data).__name__} has no tokenizer")
        model.write_on = self.write_on(tokenizer)
        with ExitStack() as stack:
            with self.writing():
                part = stack.enter_context(aside(self.path))
                file = stack.enter_context(part.open("w", encoding="utf-8"))
            written = _File(file, model.write_on, self)
            if (bar := trainer.progress_bar_callback) is not None:
                # It knows of batches only.
                bar.disable()
                model.write_on.on_progress = written.show
            trainer.callbacks.append(written)  # type: ignore[attr-defined]  # its connectors set it
            yield
            if not written.num_documents:
                raise Refused(
                    f"prompt_tokens: {self.prompt_tokens} is not allowed; no document that the data give has more"
                )
        print(f"{written.num_documents:,} documents are written on in {self.path}")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around what writes to the file.

        Raises:
            Refused: if it cannot be written.
        """
        try:
            yield
        except OSError as error:
            raise Refused(f"out: {str(self.path)!r} cannot be written: {error.strerror}") from error


class _File(pl.Callback):
    """A line for each document, and how far all is."""

    def __init__(self, file: TextIO, write_on: WriteOn, asked: Predict) -> None:
        self.num_documents = self._num_ended = 0
        self._file = file
        self._write_on = write_on
        self._asked = asked
        self._line = ProgressLine()
        self._tokens = 0  # of the batch
        self._begun = 0  # batches
        self._most = math.inf
        self._of = math.inf

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keys and values are kept in the type of the weights, which is known now."""
        assert isinstance(pl_module, HybridLM)
        self._write_on.formats = formats_of(self._asked.kv, pl_module.model.embedding.weight.dtype)

    def on_predict_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Counts from here."""
        self._begun += 1
        self._tokens, self._most = 0, self._write_on.max_new_tokens * max(len(batch), 1)
        self._of = sum(trainer.num_predict_batches)

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Sequence[Continued],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes what there is."""
        with self._asked.writing():
            for one in outputs:
                self._file.write(json.dumps(self._object(one), ensure_ascii=False) + "\n")
                self.num_documents += 1
            self._file.flush()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leaves the line of the terminal empty, however it ended."""
        self._line.clear()

    def show(self, piece: Progress) -> None:
        """Says how far all is."""
        self._tokens += piece.event.token is not None
        self._num_ended += piece.finish is not None
        share = (self._begun - 1 + self._tokens / self._most) / self._of
        self._line.show(f"writing: {share:.0%}, {self._num_ended:,} documents done")

    def _object(self, one: Continued) -> dict[str, Any]:
        tokenizer: Any = self._write_on.tokenizer
        written = one.written

        def text(ids: list[int]) -> str | list[int]:
            return ids if tokenizer is None else tokenizer.decode(ids).decode(errors="replace")

        return {
            "document": self.num_documents,
            "prompt": text(one.prompt),
            "written": written.tokens if tokenizer is None else written.text,
            "stood": text(one.stood),
            "tokens": written.tokens,
            "logprobs": written.logprobs,
            "finish": written.finish,
        }
