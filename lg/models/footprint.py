"""What training holds in the memory of each device, in bytes, told without one.

>>> from lg.models.memory import Memory
>>> from lg.models.presets import preset
>>> setup = Setup(preset("llama-2-7b"), Memory("halves"), PRECISIONS["bf16-true"], num_tokens=32768, num_shards=4)
>>> told = footprint(setup)
>>> [round(part / 2**30, 1) for part in (told.parameters, told.optimizer, told.activations, told.peak)]
[3.1, 6.3, 40.9, 59.1]

What autograd keeps is exact for halves that are not compiled, on a device whose RMSNorm is one kernel, as CUDA's is.
With an adapter it is an upper bound, since a frozen layer does not keep what it was shown. Weights, gradients and
AdamW's state are exact too, but for what rounds parts up. What exists only while something is computed,
`Footprint.exchange` and `Footprint.working`, is an estimate: the largest tensors of the moment, by count.

Names: W model width, H query heads, G KV heads, D head width, F MLP width, V vocabulary, e bytes of an element.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from lg.models.adapters import Counted
from lg.models.config import DecoderConfig
from lg.models.cost import ModelCost
from lg.models.loss import CHUNK_LOGITS, CHUNK_TOKENS
from lg.models.memory import Memory

_EXACT = 4
"""Bytes of float32: norms, rotation, softmax and sums over ranks are of no less."""


@dataclass(frozen=True)
class Precision:
    """How numbers are held.

    Attributes:
        weight: bytes of a weight, of its gradient, and of each of AdamW's two moments.
        element: bytes of an activation, and of a weight that computes: e.
    """

    weight: int
    element: int


PRECISIONS: Mapping[str, Precision] = {
    "32-true": Precision(4, 4),
    "bf16-true": Precision(2, 2),
    "bf16-mixed": Precision(4, 2),
}
"""By the trainer's name; bf16-mixed as `lg.parallel.HybridStrategy` does it, without autocast."""


@dataclass(frozen=True)
class Setup:
    """What one device has to do with a decoder.

    Attributes:
        config: its shape.
        memory: what is kept for the backward pass.
        precision: how numbers are held.
        num_tokens: tokens that the device holds.
        num_shards: devices that hold the weights together; None where they lie whole, and are not gathered.
        num_batches: batches whose gradients make one step.
        keys: tokens whose keys and values the device has at once in the layer that fetches most, own ones included, of
            the layers whose heads travel together; 0 where there are none.
        adapted: what an adapter adds and trains; None where all is trained.
        weights_in_host: whether the device's part of weights, gradients and moments waits in the host's memory.
        keys_by_heads: the same of the layers of which only so many KV heads travel at a time.
        heads_at_once: how many.
    """

    config: DecoderConfig
    memory: Memory
    precision: Precision
    num_tokens: int
    num_shards: int | None = None
    num_batches: int = 1
    keys: int = 0
    adapted: Counted | None = None
    weights_in_host: bool = False
    keys_by_heads: int = 0
    heads_at_once: int = 0

    @property
    def num_weights(self) -> int:
        """All weights."""
        return num_parameters(self.config) + (0 if self.adapted is None else self.adapted.added)

    @property
    def num_trained(self) -> int:
        """Those that have gradients, and moments."""
        return self.num_weights if self.adapted is None else self.adapted.trained


@dataclass(frozen=True)
class Footprint:
    """Bytes on one device.

    Attributes:
        parameters: its part of the weights; 0 where it waits in the host's memory, as the next two.
        gradients: its part of theirs; of all that are trained, in float32, where several batches make a step.
        optimizer: AdamW's two moments of its part.
        activations: what is kept from the forward to the backward pass.
        exchange: keys and values that are fetched, and their gradients, of the layer that fetches most; estimated.
        working: what else exists for a moment: weights gathered, what is computed again, a layer's gradients, or the
            chunk of the loss and the head's gradient, whichever is more; estimated.
        peak: the most at once. Unless several batches make a step, gradients come as activations go, and only the
            larger of the two counts.
        host: what waits in the host's memory, of the stream and of weights; no part of the peak.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    exchange: int
    working: int
    peak: int
    host: int


def footprint(setup: Setup) -> Footprint:
    """What one device holds."""
    weight = setup.precision.weight
    own, own_trained = (-(-number // (setup.num_shards or 1)) for number in (setup.num_weights, setup.num_trained))
    activations = setup.num_tokens * kept_per_token(setup.config, setup.memory, setup.precision.element)
    exchange = _exchange(setup)
    working = max(_in_a_block(setup), _in_the_loss(setup) - exchange)
    moments = 2 * own_trained * weight
    gradients, away = own_trained * weight, 0
    if setup.weights_in_host:
        own, moments, gradients, away = 0, 0, 0, own * weight + moments + gradients
    # Micro-batches before the last are not sent: each device adds up the gradients of all weights.
    if setup.num_batches > 1 and setup.num_shards is not None:
        gradients += setup.num_trained * _EXACT
    held = activations + gradients if setup.num_batches > 1 else max(activations, gradients)
    return Footprint(
        parameters=own * weight,
        gradients=gradients,
        optimizer=moments,
        activations=activations,
        exchange=exchange,
        working=working,
        peak=own * weight + moments + held + exchange + working,
        host=_stream_in_the_host(setup) + away,
    )


def longest(setup: Setup, limit: int, step: int, host_limit: int | None = None) -> int:
    """The most tokens on the device, a multiple of ``step``, with which the peak is within ``limit`` bytes.

    What waits in the host's memory is within ``host_limit`` bytes then; None for as many as it takes. Keys that are
    fetched are taken to grow with the tokens, which is more than those of a window do. 0 if none fit.
    """

    def fits(steps: int) -> bool:
        keys, by_heads = (n * steps * step // setup.num_tokens for n in (setup.keys, setup.keys_by_heads))
        held = footprint(replace(setup, num_tokens=steps * step, keys=keys, keys_by_heads=by_heads))
        return held.peak <= limit and (host_limit is None or held.host <= host_limit)

    least, most = 0, 1
    while fits(most):
        least, most = most, 2 * most
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if fits(middle) else (least, middle)
    return least * step


def num_parameters(config: DecoderConfig) -> int:
    """Weights of a decoder whose mixers are all attention; a tied head's count once."""
    embeddings = (1 if config.tied_embeddings else 2) * config.vocab_size * config.width
    return config.num_layers * _block_weights(config) + embeddings + config.width


def kept_per_token(config: DecoderConfig, memory: Memory, element: int) -> int:
    """Bytes that are kept for each token between the forward and the backward pass of the whole decoder."""
    # Behind the blocks: the last norm's input and scale, and the gradient that the loss has taken in advance. Once for
    # all layers: cosine and sine, token and target.
    once = _norm(config) + config.width * element + _EXACT * config.head_width + 16
    return config.num_layers * _kept_by_layer(config, memory, element) + once


def _kept_by_layer(c: DecoderConfig, memory: Memory, e: int) -> int:
    stream = 0 if memory.offload else c.width * e
    if memory.recompute == "blocks":
        return stream
    if memory.recompute == "halves":
        return stream + _attention(c, e)
    if memory.tile is None:
        return _before(c, e) + _attention(c, e) + _after(c, e)
    # In float32 the stream is what the first norm keeps.
    return _before(c, e) + _attention(c, e) + (stream if e != _EXACT else 0)


def _norm(c: DecoderConfig) -> int:
    """A norm keeps its input and one scale, in float32."""
    return _EXACT * (c.width + 1)


def _before(c: DecoderConfig, e: int) -> int:
    """What the half of a block before attention keeps for a token: the norm, its output, norms of heads."""
    heads = _EXACT * (c.num_heads + c.num_kv_heads) * (c.head_width + 1) if c.qk_norm else 0
    return _norm(c) + c.width * e + heads


def _attention(c: DecoderConfig, e: int) -> int:
    """q, k, v and the output, which the output projection takes as it is; the log-sum-exp of each query in float32."""
    return 2 * (c.num_heads + c.num_kv_heads) * c.head_width * e + _EXACT * c.num_heads


def _after(c: DecoderConfig, e: int) -> int:
    """What the half behind attention keeps: the norm, its output, gate, silu(gate), up and their product."""
    return _norm(c) + c.width * e + 4 * c.ffn_width * e


def _block_weights(c: DecoderConfig) -> int:
    matrices = ModelCost(c, 1, ()).block_weights // c.num_layers
    biases = (c.num_heads + 2 * c.num_kv_heads) * c.head_width if c.qkv_bias else 0
    return matrices + biases + 2 * c.width + (2 * c.head_width if c.qk_norm else 0)


def _exchange(setup: Setup) -> int:
    """Keys and values as fetched, their gradients, and these as they travel; each as large.

    By groups of heads, also those of the next group as they travel, both ways; and attention's output a second time,
    as the groups' own. Of the layer where that is most.
    """
    c, head = setup.config, setup.config.head_width * setup.precision.element
    whole = 3 * setup.keys * 2 * c.num_kv_heads * head
    if not setup.keys_by_heads:
        return whole
    return max(whole, 5 * setup.keys_by_heads * 2 * setup.heads_at_once * head + setup.num_tokens * c.num_heads * head)


def _stream_in_the_host(setup: Setup) -> int:
    """The stream that each block begins with."""
    c = setup.config
    return setup.num_tokens * c.num_layers * c.width * setup.precision.element if setup.memory.offload else 0


def _in_a_block(setup: Setup) -> int:
    """While one block goes backward."""
    c, memory, e, n = setup.config, setup.memory, setup.precision.element, setup.num_tokens
    at_once = min(memory.tile or n, n)
    # The gradient of the stream, coming in and going out, and streams on their way from the host.
    streams = (4 if memory.offload else 2) * n * c.width * e
    again = n * (_before(c, e) + _attention(c, e)) if memory.recompute == "blocks" else 0
    # Gradients of gate, up and their product, and of the norm; and what is computed again for them.
    mlp = at_once * (3 * c.ffn_width * e + 2 * _norm(c))
    if memory.recompute != "nothing" or memory.tile is not None:
        mlp += at_once * _after(c, e)
    # Gradients of the output, q, k and v; then those of the rotation, in float32.
    heads = (c.num_heads + c.num_kv_heads) * c.head_width
    attention = n * 2 * heads * e
    projections = n * (heads * (2 * _EXACT + e) + (_before(c, e) if memory.recompute == "halves" else 0))
    # This block's weights and the next one's; gradients as computed, and in float32 as they are sent.
    weights = 0 if setup.num_shards is None else _block_weights(c) * (3 * e + _EXACT)
    return streams + again + max(mlp, attention, projections) + weights


def _in_the_loss(setup: Setup) -> int:
    """While a chunk of logits exists, and the head's gradient."""
    c, e, n = setup.config, setup.precision.element, setup.num_tokens
    chunk = min(n, max(CHUNK_TOKENS, CHUNK_LOGITS // c.vocab_size))
    gathered = 0 if setup.num_shards is None else e
    gradient = _EXACT + e if setup.adapted is None or setup.adapted.head else 0
    head = c.vocab_size * c.width * (gradient + gathered)
    # Logits, the same in float32 where they are not, and their logarithms; masked states, and their gradient.
    of_chunk = c.vocab_size * (e + _EXACT * (1 if e == _EXACT else 2)) + 2 * c.width * e
    return chunk * of_chunk + n * c.width * e + head
