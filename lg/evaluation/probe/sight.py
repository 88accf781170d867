"""Lets layers of a decoder see less for a while, or attend in another way: the same model, changed and put back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager

from lg.attention import Documents, Pattern, Tiles
from lg.models.block import Attend, Attention, Block
from lg.models.decoder import Decoder


def attentions(decoder: Decoder) -> list[Attention]:
    """The attention of each layer.

    Raises:
        ValueError: if a layer has another mixer, which no pattern restricts.
    """
    found = []
    for layer, block in enumerate(decoder.blocks):
        assert isinstance(block, Block)
        if not isinstance(block.mixer, Attention):
            raise ValueError(
                f"layer {layer} is {type(block.mixer).__name__}, which cannot be probed; it does not attend"
            )
        found.append(block.mixer)
    return found


@contextmanager
def restricted(decoder: Decoder, local: Pattern, full: Collection[int]) -> Iterator[None]:
    """Inside it, layers see the local pattern, all but those whose numbers are ``full``."""
    with ExitStack() as stack:
        for layer, mixer in enumerate(attentions(decoder)):
            if layer not in full:
                stack.enter_context(mixer.seeing(local))
        yield


@contextmanager
def attending(decoder: Decoder, by: Callable[[int, Attend], Attend]) -> Iterator[None]:
    """Inside it, layer ``n`` attends by ``by(n, attend)``, where ``attend`` is how it did before."""
    mixers = attentions(decoder)
    before = [mixer.attend for mixer in mixers]
    try:
        for layer, mixer in enumerate(mixers):
            mixer.attend = by(layer, before[layer])
        yield
    finally:
        for mixer, attend in zip(mixers, before, strict=True):
            mixer.attend = attend


class LocalTiles:
    """The local pattern's tiles, built once for all layers of a forward pass.

    Args:
        local: the pattern.
        num_kv_heads: KV heads of a layer.
    """

    def __init__(self, local: Pattern, num_kv_heads: int) -> None:
        self._local = local
        self._num_kv_heads = num_kv_heads
        self._last: tuple[Documents, Tiles] | None = None

    def beside(self, tiles: Tiles) -> Tiles:
        """Its tiles on the documents of others."""
        if self._last is None or self._last[0] is not tiles.documents:
            self._last = tiles.documents, self._local.tiles(tiles.documents, self._num_kv_heads)
        return self._last[1]
