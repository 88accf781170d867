"""What the model reads and writes, as text: a packed training row, and how it goes on from a held-out prompt."""

from __future__ import annotations

from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lg.attention import Documents
from lg.attention.part import Held
from lg.data import IGNORED, Batch, TextData, Tokenizer
from lg.models.hybrid import HybridLM
from lg.monitor.board import board, logged_step
from lg.monitor.held_out import longest_document, text_data
from lg.monitor.occasional import Occasional, asked_of_documents

_KEY = "trainer.callbacks.TextSamples"
# Tokens of a document that are shown: of its beginning and of its end; and documents of a row.
_HEAD, _TAIL, _MOST_DOCUMENTS = 240, 120, 8


class TextSamples(Occasional):
    """Logs texts: ``samples/training_row`` once, and ``samples/continuation`` again and again.

    The first is the first row that is trained on, with documents and padding apart. The second is what the model finds
    likeliest, token by token, after the beginning of a held-out document, beside what stands there. Each new token
    takes a forward pass over all, so both numbers should stay small. Stays away, and says so, where the data are not
    `TextData`.

    Args:
        prompt_tokens: of the held-out document.
        new_tokens: that the model writes.
        every: optimizer steps from one continuation to the next; ``null`` to write at each validation.

    Raises:
        ValueError: a number is below 1.
    """

    def __init__(self, prompt_tokens: int = 128, new_tokens: int = 64, every: int | None = None) -> None:
        super().__init__(every)
        for name, value in (("prompt_tokens", prompt_tokens), ("new_tokens", new_tokens)):
            if value < 1:
                raise ValueError(f"{_KEY}.{name}: {value} is not allowed; it must be at least 1")
        self.prompt_tokens = prompt_tokens
        self.new_tokens = new_tokens
        self._data: TextData | None = None
        self._row_is_shown = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Finds the data."""
        self._data = text_data(trainer)
        if self._data is None:
            rank_zero_warn("TextSamples stays away: it reads the texts of TextData")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Shows the first row."""
        writer = board(trainer)
        if writer is not None and self._data is not None and not self._row_is_shown:
            writer.add_text("samples/training_row", packed_row(batch, self._data.tokenizer), logged_step(trainer))
        self._row_is_shown = True

    def look(self, trainer: pl.Trainer, module: HybridLM) -> None:
        """Shows how the model goes on."""
        if self._data is None:
            return
        text = longest_document(self._data)
        prompt, truth = text[: self.prompt_tokens], text[self.prompt_tokens :][: self.new_tokens]
        if not len(prompt):
            return
        # On every rank: under FSDP they take part in one another's work.
        written = likeliest(module, prompt, self.new_tokens)
        writer = board(trainer)
        if writer is not None:
            decode = self._data.tokenizer
            parts = {
                f"held-out text, {len(prompt)} tokens": prompt,
                f"the model goes on, each time with the likeliest of all tokens, {len(written)} tokens": written,
                f"what stands there, {len(truth)} tokens": truth,
            }
            told = "\n\n".join(f"**{head}**\n\n{_quoted(ids, decode)}" for head, ids in parts.items())
            writer.add_text("samples/continuation", told, logged_step(trainer))


@torch.no_grad()
def likeliest(module: HybridLM, prompt: Tensor, new_tokens: int) -> Tensor:
    """The tokens that the model writes after a prompt, each the likeliest: int64 [new_tokens], on the host.

    Args:
        module: the model, in eval mode.
        prompt: int64 [L], at least one token.
        new_tokens: how many to write.
    """
    length = len(prompt) + new_tokens
    tokens = torch.zeros(1, length, dtype=torch.int64, device=module.device)
    tokens[0, : len(prompt)] = prompt.to(module.device)
    asked = sorted(asked_of_documents(module))
    for end in range(len(prompt), length):
        # What is not yet written lies apart as a second document, so that every pass has one shape.
        documents = Documents(length, [0, end], {name: [0, 0] for name in asked})
        last = torch.tensor([end - 1], device=module.device)
        tokens[0, end] = module.model.logits_at(last, tokens, documents).argmax()
    return tokens[0, len(prompt) :].cpu()


def packed_row(batch: Batch, tokenizer: Tokenizer) -> str:
    """The first row of a batch as Markdown: documents and padding apart, long ones cut in their middle.

    Of a sequence that ranks share, the first stretch that is held here.
    """
    held = cast("Held | None", batch.get("held"))
    first, end = held.ranges[0] if held is not None else (0, batch["tokens"].shape[1])
    tokens, targets = (batch[name][0, : end - first].cpu() for name in ("tokens", "targets"))
    starts = [0, *(start - first for start in batch["document_starts"] if first < start < end)]
    pieces = []
    padded = 0
    for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
        ids = tokens[start:end]
        where = f"tokens {start:,} to {end - 1:,}"
        if bool((ids == tokenizer.end).all() & (targets[start:end] == IGNORED).all()):
            padded += len(ids)
            pieces.append(f"**padding, {where}**")
        else:
            pieces.append(f"**document, {where}**\n\n{_quoted(ids, tokenizer)}")
    share = f"{padded:,} are padding ({100 * padded / len(tokens):.1f}%)"
    more = [f"and {len(pieces) - _MOST_DOCUMENTS} more"] if len(pieces) > _MOST_DOCUMENTS else []
    return "\n\n".join([f"{len(tokens):,} tokens, of which {share}", *pieces[:_MOST_DOCUMENTS], *more])


def _quoted(ids: Tensor, tokenizer: Tokenizer) -> str:
    """Text as it is, in Markdown: indented by four."""

    def text(part: Tensor) -> str:
        return tokenizer.decode(part.numpy()).decode(errors="replace")

    if len(ids) > _HEAD + _TAIL:
        told = f"{text(ids[:_HEAD])}\n[... {len(ids) - _HEAD - _TAIL:,} tokens ...]\n{text(ids[-_TAIL:])}"
    else:
        told = text(ids)
    # Of control characters, such as a document's end in bytes, a browser shows nothing; of blanks alone neither.
    shown = "".join(c if c.isprintable() or c in "\n\t" else f"[{ord(c):#04x}]" for c in told)
    shown = shown if shown.strip() else repr(shown)
    return "\n".join(f"    {line}" for line in shown.split("\n"))
