"""Whether the model finds what it was told far back, as a picture over length and depth, while it trains."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from PIL.Image import Image

from lg.attention import Pattern
from lg.data import TextData
from lg.evaluation import Haystack, Needles, Score, haystack, score
from lg.models.hybrid import HybridLM
from lg.monitor.board import board, logged_step
from lg.monitor.chart import Cells, heat_map, tokens
from lg.monitor.held_out import held_out_text, text_data
from lg.monitor.occasional import Occasional, asked_of_documents

_KEY = "trainer.callbacks.Needle"
_FULL_COLOUR = 2.3
"""Nats at which a cell is darkest: ln 10, a digit that was a guess and is known."""


class Needle(Occasional):
    """Hides numbers in held-out text and logs what the model makes of the question for them (`lg.evaluation.needle`).

    ``needle/gain_nats`` is what the needle makes the answer likelier by, a token, and ``needle/accuracy_percent`` the
    share of the answer's tokens that are the likeliest; both are means over the grid. The image ``needle/gain`` shows
    the gain by length and depth. Prompts are the same each time, and in a resumed run; nothing is generated, and no
    draw of the training's is used up. Stays away, and says so, where the data are not `TextData`.

    Args:
        lengths: tokens of a prompt; by default the length of a row, its half, quarter and eighth, but no fewer than
            256, halved until they keep to ``max_tokens``.
        depths: places of the needle in the text, from 0, its beginning, to 1.
        samples: questions for each length and depth.
        max_tokens: that all prompts of one look have at most; a question has two prompts.
        every: optimizer steps from one look to the next; ``null`` to look at each validation.
        seed: of names, numbers, and the text around them.

    Raises:
        ValueError: an argument is out of its range, or lengths do not keep to ``max_tokens``.
    """

    def __init__(
        self,
        lengths: tuple[int, ...] | None = None,
        depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0),
        samples: int = 1,
        max_tokens: int = 2**22,
        every: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(every)
        if lengths is not None and (not lengths or min(lengths) < 1):
            raise ValueError(f"{_KEY}.lengths: {lengths} is not allowed; numbers of at least 1 are needed, or null")
        if not depths or not all(0 <= depth <= 1 for depth in depths):
            raise ValueError(f"{_KEY}.depths: {depths} is not allowed; shares from 0 to 1 are needed")
        for name, value in (("samples", samples), ("max_tokens", max_tokens)):
            if value < 1:
                raise ValueError(f"{_KEY}.{name}: {value} is not allowed; it must be at least 1")
        if lengths is not None and (needed := Needles(lengths, depths, samples).num_tokens) > max_tokens:
            raise ValueError(
                f"{_KEY}.max_tokens: {max_tokens} is not allowed; these lengths, depths and samples take {needed}"
            )
        self.lengths = lengths
        self.depths = depths
        self.samples = samples
        self.max_tokens = max_tokens
        self.seed = seed
        self._hay: Haystack | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Writes the prompts.

        Raises:
            ValueError: a length leaves no room for sentence, question and answer.
        """
        data = text_data(trainer)
        if data is None or not isinstance(pl_module, HybridLM):
            rank_zero_warn("Needle stays away: it needs a HybridLM, and TextData to hide numbers in")
            return
        lengths = self.lengths or self._usual_lengths(data.row_length)
        if not lengths:
            rank_zero_warn(f"Needle stays away: {self.max_tokens} tokens (max_tokens) are too few for its grid")
            return
        hay = self._haystack(Needles(lengths, self.depths, self.samples, seed=self.seed), data, pl_module)
        if hay is None:
            return
        told = _shown_answers(hay, pl_module)
        if told:
            rank_zero_warn(f"Needle stays away: {told} lets queries see later keys, so it would show the answers")
            return
        self._hay = hay

    def look(self, trainer: pl.Trainer, module: HybridLM) -> None:
        """Scores the grid, and draws it."""
        if self._hay is None:
            return
        found = score(module.model, self._hay)
        gain, accuracy = float(found.gain.mean()), float(found.accuracy.mean())
        self.tell(trainer, module, {"needle/gain_nats": gain, "needle/accuracy_percent": 100 * accuracy})
        writer = board(trainer)
        if writer is not None:
            image = np.asarray(drawing(found, trainer.global_step))
            writer.add_image("needle/gain", image, logged_step(trainer), dataformats="HWC")

    def _usual_lengths(self, row_length: int) -> tuple[int, ...]:
        longest = row_length
        while longest >= 256 or longest == row_length:
            lengths = tuple(n for n in (longest // 8, longest // 4, longest // 2, longest) if n >= min(256, longest))
            if Needles(lengths, self.depths, self.samples).num_tokens <= self.max_tokens:
                if longest < row_length:
                    rank_zero_info(
                        f"Needle asks at lengths up to {longest:,} of the rows' {row_length:,}: {_KEY}.max_tokens is "
                        f"{self.max_tokens:,}"
                    )
                return lengths
            longest //= 2
        return ()

    def _haystack(self, needles: Needles, data: TextData, module: HybridLM) -> Haystack | None:
        filler = held_out_text(data, 4 * max(needles.lengths))
        if not len(filler):
            rank_zero_warn("Needle stays away: the held-out rows have no text")
            return None
        try:
            return haystack(needles, data.tokenizer, filler, asked_of_documents(module))
        except ValueError as error:
            if self.lengths is not None:
                raise ValueError(f"{_KEY}.lengths: {error}") from error
            rank_zero_warn(f"Needle stays away: {error}, and rows are no longer (data.init_args.row_length)")
            return None


def drawing(found: Score, step: int) -> Image:
    """The gain by length, to the right, and depth, downward."""
    cells = Cells(
        [f"{depth:.0%}" for depth in found.depths], [tokens(length) for length in found.lengths], found.gain.tolist()
    )
    title = f"Needle: what being told gains, step {step:,}"
    return heat_map(cells, ("prompt, tokens", "depth of the needle"), "nats a token", _FULL_COLOUR, title)


def _shown_answers(hay: Haystack, module: HybridLM) -> Pattern | None:
    """A pattern that shows some answer before it is asked for, if there is one."""
    heads = module.decoder_config.num_kv_heads
    for name in dict.fromkeys(module.evaluated_schedule):
        pattern = module.patterns[name]
        if not isinstance(pattern, Pattern):
            continue
        for packed in hay.packed:
            leaks = pattern.tiles(packed.documents, heads).leaks()
            if any(leaks[places - 1].any() for places in hay.answers(packed).values()):
                return pattern
    return None
