"""A decoder that reads tokens of several sequences at a time and remembers what it must.

>>> import torch
>>> from lg.attention import Causal, SinkWindow
>>> from lg.models.decoder import Decoder
>>> from lg.models.presets import preset
>>> decoder = Decoder(preset("tiny"), [SinkWindow(window=64)] * 3 + [Causal()] * 3).eval()
>>> runner = Runner(decoder, max_length=1000)
>>> slot = runner.open(length=1000)
>>> prompt = torch.randint(256, (300,))
>>> runner.read(prompt, [(slot, 300)]).shape
torch.Size([1, 256])
>>> runner.read(torch.tensor([65]), [(slot, 1)]).shape
torch.Size([1, 256])

Shapes: N tokens of a step, S sequences, V vocabulary, W model width.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from lg.attention import Pattern
from lg.inference.ahead import read_together
from lg.inference.cache import Cache
from lg.inference.formats import Format, Plain
from lg.inference.graph import Graphs, SingleTokens, wanted
from lg.inference.paged import PagedAttention
from lg.inference.state import Piece, State, Step, moved
from lg.models.block import Attention, Block
from lg.models.decoder import Decoder
from lg.models.rope import rotary_angles


def patterns_of(decoder: Decoder) -> list[Pattern]:
    """What each layer sees.

    Raises:
        ValueError: if it is what cannot be known while a text is being written.
    """
    patterns = []
    for layer, block in enumerate(decoder.blocks):
        mixer = block.mixer
        if not isinstance(mixer, Attention):
            raise ValueError(
                f"layer {layer}: {type(mixer).__name__} keeps no state, so it cannot write; Attention is allowed"
            )
        if "length" in mixer.pattern.attributes:
            raise ValueError(
                f"layer {layer}: {mixer.pattern} asks for doc.length, which is not known while a text is written"
            )
        patterns.append(mixer.pattern)
    return patterns


class Runner:
    """Reads tokens and gives the logits of what comes next, with a cache of pages.

    Args:
        decoder: the model, in eval mode.
        max_length: the most tokens that a sequence may grow to.
        num_slots: the most sequences that are open at once.
        capacity: room for so many tokens in all sequences; by default for all slots at full length.
        formats: what keys and values are kept as; by default as the decoder computes them.
        rotated: whether keys are kept rotated. If not, they are rotated when they are read, by the sequence's length at
            that time. By default they are, unless the scaling of positions changes with the length.
        impl: what `attend` is asked for where many tokens are read at once.
        graphs: whether steps in which every sequence reads one token are functions of tensors on the device alone,
            which CUDA devices record as graphs (`lg.inference.graph`); "auto": on these, where it is possible.

    Raises:
        ValueError: if a layer sees what cannot be known while a text is being written, or if graphs are asked for and
            not possible.
    """

    def __init__(
        self,
        decoder: Decoder,
        max_length: int,
        num_slots: int = 1,
        capacity: int | None = None,
        formats: tuple[Format, Format] | None = None,
        rotated: bool | None = None,
        impl: str = "auto",
        graphs: Graphs = "auto",
    ) -> None:
        self.decoder = decoder
        config = decoder.config
        weight = decoder.embedding.weight
        formats = formats or (Plain(weight.dtype), Plain(weight.dtype))
        if rotated is None:
            rotated = config.rope_scaling is None or not config.rope_scaling.by_length
        patterns = patterns_of(decoder)
        self.cache = Cache(
            patterns, config.num_kv_heads, config.head_width, max_length, num_slots, capacity, formats, weight.device
        )
        of_pattern = {kind.pattern: kind for kind in self.cache.kinds}
        # Keys of layers that do not rotate are never to be.
        states = [
            PagedAttention(self.cache, layer, of_pattern[pattern], rotated or not block.mixer.rotates, impl)
            for layer, (pattern, block) in enumerate(
                zip(patterns, cast("Sequence[Block]", decoder.blocks), strict=True)
            )
        ]
        self.states: list[State] = [*states]
        single = wanted(graphs, decoder, states, max_length)
        self._single = SingleTokens(decoder, self.cache, states) if single else None

    @property
    def records(self) -> bool:
        """Whether steps of single tokens are functions of tensors on the device alone, recorded on CUDA devices."""
        return self._single is not None

    def open(self, length: int, doc: Mapping[str, int] | None = None) -> int | None:
        """A slot for a sequence that may grow to ``length`` tokens; None while there is no room for it.

        Args:
            length: tokens, at most ``max_length``.
            doc: attributes of the document that patterns ask for, as "prefix".

        Raises:
            ValueError: if a pattern asks for an attribute that is not told.
        """
        asked = self.check(doc or {})
        return self.cache.open(length, {name: value for name, value in (doc or {}).items() if name in asked})

    def check(self, doc: Mapping[str, int]) -> frozenset[str]:
        """The attributes of documents that patterns ask for.

        Raises:
            ValueError: if one of them is not told.
        """
        asked = frozenset(name for kind in self.cache.kinds for name in kind.pattern.attributes)
        if missing := asked - set(doc):
            raise ValueError(f"a pattern asks for doc.{min(missing)}, which must be told of each sequence")
        return asked

    def least(self, length: int, doc: Mapping[str, int] | None = None) -> tuple[int, Pattern]:
        """How many tokens of a sequence must be read at once, since they see forward, and the pattern that asks it."""
        heads = self.decoder.config.num_kv_heads
        return max(
            ((read_together(kind.pattern, heads, length, doc or {}), kind.pattern) for kind in self.cache.kinds),
            key=lambda found: found[0],
        )

    @torch.no_grad()
    def read(self, tokens: Tensor, counts: Sequence[tuple[int, int]]) -> Tensor:
        """Reads the next tokens of some sequences, and keeps what later ones may see.

        Args:
            tokens: int64 [N]: of all sequences, laid end to end.
            counts: slots, and how many tokens each gets.

        Returns:
            Logits [S, V] of the token after each sequence's last.
        """
        return self._read(tokens, counts)[0]

    @torch.no_grad()
    def likeliest(self, tokens: Tensor, counts: Sequence[tuple[int, int]]) -> Tensor:
        """The same, and which token is the likeliest after each sequence's last: int64 [S], on the device.

        They may be read next as they are; another call may write over them.
        """
        return self._read(tokens, counts)[1]

    def _read(self, tokens: Tensor, counts: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        pieces = self.cache.begin(counts)
        # Those that write are recorded, whoever has a prompt read beside them.
        alone = [row for row, piece in enumerate(pieces) if piece.count == 1] if self._single is not None else []
        if not alone:
            read = self._eager(tokens, pieces)
        elif len(alone) == len(pieces):
            read = self._recorded(tokens, pieces)
        else:
            read = self._apart(tokens, pieces, alone)
        self.cache.end(pieces)
        return read

    def _apart(self, tokens: Tensor, pieces: Sequence[Piece], alone: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Reads the rows of single tokens as one step, and the others as another."""
        ends = list(itertools.accumulate(piece.count for piece in pieces))
        others = sorted(set(range(len(pieces))) - set(alone))
        order = [*alone, *others]
        back = moved(torch.tensor(sorted(range(len(order)), key=order.__getitem__)), tokens.device)
        at = moved(torch.tensor([ends[row] - 1 for row in alone]), tokens.device)
        of_others = torch.cat([tokens[ends[row] - pieces[row].count : ends[row]] for row in others])
        parts = (
            self._recorded(tokens[at], [pieces[row] for row in alone]),
            self._eager(of_others, [pieces[row] for row in others]),
        )
        logits, likeliest = (torch.cat(both)[back] for both in zip(*parts, strict=True))
        return logits, likeliest

    def _recorded(self, tokens: Tensor, pieces: Sequence[Piece]) -> tuple[Tensor, Tensor]:
        assert self._single is not None
        return self._single.read(tokens, pieces)

    def _eager(self, tokens: Tensor, pieces: Sequence[Piece]) -> tuple[Tensor, Tensor]:
        hidden = self._hidden(tokens, pieces)
        last = list(itertools.accumulate(piece.count for piece in pieces))
        logits: Tensor = self.decoder.head(torch.stack([hidden[end - 1] for end in last]))
        return logits, logits.argmax(-1)

    def _hidden(self, tokens: Tensor, pieces: Sequence[Piece]) -> Tensor:
        """Final hidden states [N, W]."""
        assert len(tokens) == sum(piece.count for piece in pieces)
        step = Step(pieces, self._angles)
        own = [
            self._angles(torch.arange(one.first, one.first + one.count, device=tokens.device), one.first + one.count)
            for one in pieces
        ]
        cos, sin = (torch.cat(x) for x in zip(*own, strict=True))
        still = torch.ones_like(cos), torch.zeros_like(sin)
        x = self.decoder.embedding(tokens)
        for block, state in zip(cast("Sequence[Block]", self.decoder.blocks), self.states, strict=True):
            angles = (cos, sin) if block.mixer.rotates and state.rotated else still
            x = block.post(x, state.mix(block.pre(x, *angles), step))
        hidden: Tensor = self.decoder.norm(x)
        return hidden

    def _angles(self, positions: Tensor, length: int) -> tuple[Tensor, Tensor]:
        config = self.decoder.config
        return rotary_angles(positions, config.head_width, config.rope_theta, config.rope_scaling, length)
