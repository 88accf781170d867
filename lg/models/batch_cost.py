"""What training on one packed batch costs: the work that is useful, the work that is done, and that of full attention.

>>> from lg.attention import Causal, Documents, SinkWindow
>>> from lg.attention.attend import IMPLEMENTATIONS
>>> from lg.models.presets import preset
>>> patterns = [SinkWindow(window=256)] * 4 + [Causal()] * 2
>>> costs = BatchCosts(preset("tiny"), patterns, lambda pattern, documents: IMPLEMENTATIONS["gather"])
>>> cost = costs.of(Documents(4096, (0, 3000, 4000)), padded=[False, False, True])
>>> [round(flops / 1e9, 1) for flops in (cost.visible, cost.executed, cost.dense_equivalent)]
[29.2, 46.6, 41.5]

As in `lg.models.cost`, work is that of matrix products, forward and backward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from lg.attention import Documents, Pattern
from lg.attention.cost import Flops, flops, visible_pairs
from lg.attention.impl import Implementation
from lg.models.adapters import Counted, adapter_work
from lg.models.config import DecoderConfig
from lg.models.cost import ModelCost


@dataclass(frozen=True)
class BatchCost:
    """Floating-point operations of the forward and the backward pass of one batch.

    Attributes:
        visible: useful work: weights times tokens of text, and attention on exactly the pairs of query and key that
            each layer sees in the documents of text.
        executed: what runs: padding too, tiles whole, scores that a backward pass computes again, and the activations
            that checkpointing does.
        dense_equivalent: useful work, had every layer full causal attention: half of each document's square.
    """

    visible: int
    executed: int
    dense_equivalent: int


@dataclass(frozen=True)
class BatchCosts:
    """Counts batches for one decoder.

    Attributes:
        config: its shape.
        patterns: what each layer sees, first layer first.
        implementation: what computes a pattern's attention on some documents.
        recomputed_weights: weights that a token is multiplied with once more in the backward pass
            (`lg.models.wrap.recomputed_weights`).
        attention_again: whether the backward pass computes attention's output a second time.
        adapted: what an adapter adds and trains; None where all is trained.
    """

    config: DecoderConfig
    patterns: Sequence[Pattern]
    implementation: Callable[[Pattern, Documents], Implementation]
    recomputed_weights: int = 0
    attention_again: bool = False
    adapted: Counted | None = None

    def of(self, documents: Documents, padded: Sequence[bool], num_padding: int | None = None) -> BatchCost:
        """The cost of one batch.

        Args:
            documents: where documents lie in the batch's tokens.
            padded: which of them are padding.
            num_padding: tokens that are no text; by default those of padded documents. Rows without a document mask
                have padding inside a document, where it is seen as any token is.
        """
        text = _without(documents, padded)
        if num_padding is None:
            num_padding = documents.length - (text.length if text else 0)
        linear = self._linear(documents.length - num_padding)
        visible, dense = linear, linear
        if text is not None:
            lengths = text.attribute("length")
            for pattern, num_layers in self._layers.items():
                tiles = pattern.tiles(text, self.config.num_kv_heads)
                visible += num_layers * _useful(self._flops(visible_pairs(tiles)))
            triangle = (lengths * (lengths + 1) // 2).sum(0, keepdim=True)
            dense += len(self.patterns) * _useful(self._flops(triangle))
        return BatchCost(visible, self._executed(documents), dense)

    def _executed(self, documents: Documents) -> int:
        total = self._linear(documents.length) + 2 * self.recomputed_weights * documents.length
        for pattern, num_layers in self._layers.items():
            tiles = pattern.tiles(documents, self.config.num_kv_heads)
            pairs, scores_again = self.implementation(pattern, documents).executed(tiles)
            work = self._flops(pairs)
            forward = (1 + self.attention_again) * work.forward
            total += num_layers * (forward + (work.backward_executed if scores_again else work.backward))
        return total

    @cached_property
    def _layers(self) -> Counter[Pattern]:
        return Counter(self.patterns)

    def _linear(self, num_tokens: int) -> int:
        """Work of projections, MLPs and head: six a weight and token, four if it is frozen."""
        return ModelCost(self.config, num_tokens, ()).training_flops + num_tokens * adapter_work(self.adapted)

    def _flops(self, pairs: Tensor) -> Flops:
        return flops(pairs, self.config.num_heads, self.config.head_width)


def _useful(work: Flops) -> int:
    return work.forward + work.backward


def _without(documents: Documents, padded: Sequence[bool]) -> Documents | None:
    """The documents that are no padding, laid end to end; None if there are none.

    Pairs are counted from the start of a document, so it does not matter where it lies.
    """
    kept = [number for number, pad in enumerate(padded) if not pad]
    if len(kept) == len(padded):
        return documents
    if not kept:
        return None
    lengths = documents.attribute("length")[kept]
    starts: list[int] = (lengths.cumsum(0) - lengths).tolist()
    attributes = {name: [values[number] for number in kept] for name, values in documents.attributes.items()}
    return Documents(int(lengths.sum()), starts, attributes)
