"""What ``trainer.predict`` does with documents: the model writes on from the beginning of each.

>>> import torch
>>> from lg.attention import Causal, SinkWindow
>>> from lg.models.presets import preset
>>> decoder = Decoder(preset("tiny"), [SinkWindow(window=64)] * 3 + [Causal()] * 3).eval()
>>> (one,) = WriteOn(prompt_tokens=100, max_new_tokens=5)(decoder, [torch.randint(256, (103,)), torch.arange(100)])
>>> len(one.prompt), len(one.written.tokens), len(one.stood)
(100, 5, 3)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lg.inference import room
from lg.inference.formats import Format
from lg.inference.generate import Progress, Written, stream
from lg.inference.runner import Runner, patterns_of
from lg.inference.sampling import GREEDY, Sampling
from lg.inference.scheduler import Scheduler
from lg.inference.text import Tokenizer
from lg.models.decoder import Decoder


@dataclass
class Continued:
    """A document that was written on from its beginning.

    Attributes:
        prompt: ids of its beginning.
        written: what the model wrote after it.
        stood: ids of what stands there, at most as many as could be written.
    """

    prompt: list[int]
    written: Written
    stood: list[int]


class WriteOn:
    """Writes on from the beginnings of documents, as many at once as memory allows.

    As `HybridLM.write_on` it is what ``trainer.predict`` does with each batch of ``predict_dataloader``: a list of
    documents, int64 [L] each, or one tensor of them. `TextData` gives its held-out documents so, and heeds
    ``prompt_tokens``, ``num_documents`` and ``batch_size``; of other data, what is too short is passed over.

    It computes in the type of the weights, whatever autocast says.

    Args:
        prompt_tokens: of each document.
        max_new_tokens: the most that are written after it.
        num_documents: the most documents that are taken; by default all.
        batch_size: documents of a batch.
        sampling: how tokens are chosen. With a seed, each text is what it would be alone.
        tokenizer: what the text of `Written` is told by; by default there are ids only.
        stop: ids that end a text.
        stop_strings: strings that end it.
        prefix: tokens of the prompt that see one another, where a pattern asks for ``doc.prefix``.
        formats: what keys and values are kept as; by default as the model computes them.

    Attributes:
        on_progress: called with all that is new, if it is set.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        prompt_tokens: int = 128,
        max_new_tokens: int = 128,
        num_documents: int | None = None,
        batch_size: int = 32,
        sampling: Sampling = GREEDY,
        tokenizer: Tokenizer | None = None,
        stop: Collection[int] = (),
        stop_strings: Sequence[str] = (),
        prefix: int | None = None,
        formats: tuple[Format, Format] | None = None,
    ) -> None:
        least = {"prompt_tokens": prompt_tokens, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
        for name, value in {**least, "num_documents": num_documents}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} is not allowed; it must be at least 1")
        if prefix is not None and not 0 <= prefix <= prompt_tokens:
            raise ValueError(f"prefix: {prefix} is not allowed; it must be from 0 to prompt_tokens, {prompt_tokens}")
        self.prompt_tokens = prompt_tokens
        self.max_new_tokens = max_new_tokens
        self.num_documents = num_documents
        self.batch_size = batch_size
        self.sampling = sampling
        self.tokenizer = tokenizer
        self.stop = frozenset(stop)
        self.stop_strings = tuple(stop_strings)
        self.prefix = prefix
        self.formats = formats
        self.on_progress: Callable[[Progress], None] | None = None

    def __call__(self, decoder: Decoder, documents: Sequence[Tensor] | Tensor) -> list[Continued]:
        """Writes on.

        Args:
            decoder: the model, in eval mode.
            documents: a batch.

        Returns:
            Of each document that has more tokens than the prompt, in order.

        Raises:
            ValueError: the batch is no list of documents, there is no memory for one of them, or the model cannot
                write.
        """
        device = decoder.embedding.weight.device
        texts = [text for text in self._checked(documents) if len(text) > self.prompt_tokens]
        if not texts:
            return []
        end = self.prompt_tokens + self.max_new_tokens
        continued = [
            Continued(text[: self.prompt_tokens].tolist(), Written(), _ids(text, self.prompt_tokens, end))
            for text in texts
        ]
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            for piece in stream(
                self._scheduler(decoder, len(texts)), [one.prompt for one in continued], self.max_new_tokens,
                self.sampling, self.tokenizer, self.stop, self.stop_strings, self._doc(decoder),
            ):  # fmt: skip
                continued[piece.prompt].written.add(piece)
                if self.on_progress is not None:
                    self.on_progress(piece)
        return continued

    def _checked(self, documents: Sequence[Tensor] | Tensor) -> list[Tensor]:
        texts = list(documents) if isinstance(documents, Sequence | Tensor) else [documents]
        for text in texts:
            if not isinstance(text, Tensor) or text.dtype != torch.int64 or text.ndim != 1:
                raise ValueError(
                    f"data.predict_dataloader: {type(documents).__name__} is not allowed as a batch; a "
                    "list of documents is needed, int64 [L] each"
                )
        return texts

    def _doc(self, decoder: Decoder) -> dict[str, int]:
        asks = any("prefix" in pattern.attributes for pattern in patterns_of(decoder))
        if asks and self.prefix is None:
            raise ValueError("prefix: needed; layers ask how many tokens of the prompt see one another")
        if not asks and self.prefix is not None:
            raise ValueError(f"prefix: {self.prefix} is not allowed; no layer asks for it")
        return {} if self.prefix is None else {"prefix": self.prefix}

    def _scheduler(self, decoder: Decoder, most: int) -> Scheduler:
        length = self.prompt_tokens + self.max_new_tokens
        free = int(room.SHARE * room.free_memory(decoder.embedding.weight.device))
        slots = room.largest_batch(decoder, length, self.formats, free, most)
        if not slots:
            needed = room.room_bytes(decoder, length, formats=self.formats)
            raise ValueError(
                f"prompt_tokens: {self.prompt_tokens:,}, and {self.max_new_tokens:,} of max_new_tokens, are not "
                f"allowed; keys and values of one document would take {needed / 1e9:,.1f} GB, where there are "
                f"{free / 1e9:,.1f} GB for them; fewer are needed"
            )
        return Scheduler(Runner(decoder, length, slots, formats=self.formats))


def _ids(text: Tensor, first: int, end: int) -> list[int]:
    ids: list[int] = text[first:end].tolist()
    return ids
