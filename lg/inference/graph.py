"""A step in which every sequence reads one token, as a function of tensors on the device alone: one CUDA graph for each
number of sequences, so that no Python is on the path of a token.

A graph is recorded when so many sequences read together for the first time, and has no empty places, which would write
somewhere. Whatever changes from step to step lies in tensors that are written over in place before it is replayed:
tokens, slots, lengths, and the book of pages (`lg.inference.tables`). Lengths are counted on by the graph itself, and
the likeliest tokens take the place of those that were read: who goes on with them copies nothing.

Shapes: S sequences of a step, V vocabulary, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor

from lg.inference.cache import Cache
from lg.inference.paged import PagedAttention
from lg.inference.state import Piece, moved
from lg.models.block import Block
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder
from lg.models.rope import rotary_angles

Graphs = bool | Literal["auto"]
"""Whether steps of single tokens are such functions, recorded on CUDA devices; "auto": on these, where possible."""

# Kernels are compiled, and torch makes up its mind, before anything is recorded.
_WARM_UP = 2


def refusal(decoder: Decoder, states: Sequence[PagedAttention], max_length: int) -> str | None:
    """Why a step of single tokens cannot be a function of tensors on the device alone.

    Args:
        decoder: the model.
        states: of its layers.
        max_length: the most tokens that a sequence may grow to.
    """
    if _angles_change(decoder.config, max_length):
        return f"the angles of {decoder.config.rope_scaling} change with the length"
    dtype = decoder.embedding.weight.dtype
    refusals = (state.kernels_refuse(dtype) for state in states)
    return next((why for why in refusals if why), None)


def wanted(graphs: Graphs, decoder: Decoder, states: Sequence[PagedAttention], max_length: int) -> bool:
    """Whether steps of single tokens are to be such functions.

    Raises:
        ValueError: if they must be and cannot, or if it is not known what is asked for.
    """
    if graphs not in (True, False, "auto"):
        raise ValueError(f"graphs: {graphs!r} is not allowed; it must be True, False or 'auto'")
    on_cuda = decoder.embedding.weight.device.type == "cuda"
    # Autocast keeps casted weights where a graph would find them gone.
    if graphs is False or (graphs == "auto" and (not on_cuda or torch.is_autocast_enabled("cuda"))):
        return False
    why = refusal(decoder, states, max_length)
    if why and graphs is True:
        raise ValueError(f"graphs: True is not possible here: {why}")
    return why is None


class _Recorded:
    """The step of so many sequences.

    Attributes:
        tokens: read by the next step: int64 [S]; afterwards the likeliest that come next.
        slots: whose they are: int32 [S].
        lengths: of the sequences, these tokens included: int32 [S]; afterwards one more.
        logits: [S, V] of the step.
        graph: on CUDA devices, once it is recorded.
    """

    def __init__(self, num_rows: int, device: torch.device) -> None:
        self.tokens = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.slots, self.lengths = self._rows = torch.zeros(2, num_rows, dtype=torch.int32, device=device)
        self._on_device: tuple[list[int], list[int]] | None = None
        self.logits = torch.empty(0)
        self.graph: torch.cuda.CUDAGraph | None = None

    def tell(self, tokens: Tensor, pieces: Sequence[Piece]) -> None:
        """Puts there what the next step reads; what is there already is let be."""
        slots, lengths = [one.slot for one in pieces], [one.first + 1 for one in pieces]
        if self._on_device != (slots, lengths):
            self._rows.copy_(moved(torch.tensor([slots, lengths], dtype=torch.int32), self._rows.device))
        if tokens is not self.tokens:
            self.tokens.copy_(tokens)
        self._on_device = slots, [length + 1 for length in lengths]


class SingleTokens:
    """Steps in which every sequence reads one token.

    Args:
        decoder: the model.
        cache: what its layers keep.
        states: of the layers, whose kernels take the pages.
    """

    def __init__(self, decoder: Decoder, cache: Cache, states: Sequence[PagedAttention]) -> None:
        self._decoder = decoder
        self._cache = cache
        self._states = states
        self._device = decoder.embedding.weight.device
        self._of: dict[int, _Recorded] = {}
        # Graphs never run at the same time, and what one leaves behind no other reads: they share memory.
        self._pool = torch.cuda.graph_pool_handle() if self._device.type == "cuda" else None

    @property
    def num_recorded(self) -> int:
        """For how many numbers of sequences there is a step."""
        return len(self._of)

    def read(self, tokens: Tensor, pieces: Sequence[Piece]) -> tuple[Tensor, Tensor]:
        """Reads one token of each sequence, whose pages are taken.

        Args:
            tokens: int64 [S].
            pieces: whose they are, each of one token.

        Returns:
            Logits [S, V] of the token after each, and the likeliest of them, int64 [S]: these stay until the next step
            of so many sequences, which copies nothing if it is handed them.

        Raises:
            RuntimeError: if the step cannot be recorded.
        """
        assert len(tokens) == len(pieces) and all(piece.count == 1 for piece in pieces)
        if len(pieces) not in self._of:
            self._of[len(pieces)] = _Recorded(len(pieces), self._device)
        one = self._of[len(pieces)]
        for kind in self._cache.kinds:
            kind.tables.update(self._cache.told)
        one.tell(tokens, pieces)
        if self._pool is None:
            self._step(one)
            return one.logits, one.tokens
        with torch.cuda.device(self._device):
            if one.graph is None:
                try:
                    one.graph = self._recorded(one)
                except BaseException:
                    del self._of[len(pieces)]
                    raise
            one.graph.replay()
        # The next graph may write over them.
        return one.logits.clone(), one.tokens

    def _recorded(self, one: _Recorded) -> torch.cuda.CUDAGraph:
        now, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(now)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                # Nothing is counted on: the step that follows writes the same to the same places.
                self._logits(one)
        now.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._step(one)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RuntimeError(
                f"a step of {len(one.tokens)} sequences cannot be recorded as a CUDA graph; graphs=False reads without "
                f"one: {str(error).partition(chr(10))[0]}"
            ) from error
        return graph

    def _step(self, one: _Recorded) -> None:
        """What is recorded."""
        one.logits = self._logits(one)
        one.tokens.copy_(one.logits.argmax(-1))
        one.lengths.add_(1)

    def _logits(self, one: _Recorded) -> Tensor:
        """The decoder on one token of each sequence: [S, V]. Nothing here waits for the device, or asks it anything."""
        config = self._decoder.config
        positions = one.lengths - 1
        cos, sin = rotary_angles(
            positions, config.head_width, config.rope_theta, config.rope_scaling, self._cache.max_length
        )
        still = torch.ones_like(cos), torch.zeros_like(sin)
        rows = {id(kind): kind.tables.rows_of(one.slots, one.lengths) for kind in self._cache.kinds}
        x = self._decoder.embedding(one.tokens)
        for block, state in zip(cast("Sequence[Block]", self._decoder.blocks), self._states, strict=True):
            pre: Callable[..., tuple[Tensor, ...]] = block.pre
            q, k, v = (y.squeeze(0) for y in pre(x, *((cos, sin) if block.mixer.rotates else still)))
            x = block.post(x, state.together(q, k, v, rows[id(state.kind)]).flatten(1))
        out: Tensor = self._decoder.head(self._decoder.norm(x))
        return out


def _angles_change(config: DecoderConfig, max_length: int) -> bool:
    """Whether a position's angles are others in a longer sequence."""
    if config.rope_scaling is None:
        return False
    short, long = (
        config.rope_scaling.frequencies(config.head_width, config.rope_theta, length, torch.device("cpu"))
        for length in (1, max_length)
    )
    return not torch.equal(short, long)
