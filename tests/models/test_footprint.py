"""What a plan says is kept is what autograd keeps, and what it says of weights is what a decoder has."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lg.attention import Causal, Documents
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder
from lg.models.footprint import PRECISIONS, Precision, Setup, footprint, kept_per_token, longest, num_parameters
from lg.models.memory import Memory
from lg.models.presets import preset
from lg.models.wrap import wrap

N = 512
SHAPES = {
    "grouped": DecoderConfig(2, 64, 4, 2, 16, 96, 61),
    "heads wider than the stream": DecoderConfig(3, 48, 4, 4, 16, 160, 61, qkv_bias=True),
    "norms of heads, tied": DecoderConfig(3, 64, 6, 1, 8, 128, 61, qk_norm=True, tied_embeddings=True),
}
MEMORIES = [
    Memory(),
    Memory("nothing", tile=64),
    Memory("halves"),
    Memory("halves", tile=64),
    Memory("blocks"),
    Memory("blocks", tile=64),
]


def kept(config: DecoderConfig, memory: Memory, dtype: torch.dtype) -> int:
    """Bytes that autograd keeps of a forward pass, weights excepted; each storage once."""
    torch.manual_seed(0)
    decoder = Decoder(config, [Causal()] * config.num_layers).to(dtype)
    wrap(decoder, memory, compile=False)
    own = {p.untyped_storage().data_ptr() for p in decoder.parameters()}
    storages: dict[int, tuple[torch.Tensor, int]] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        # Norms' weights, copied to float32, are kept too; they do not grow with the tokens.
        if storage.data_ptr() not in own and storage.nbytes() >= N:
            storages[storage.data_ptr()] = (x, storage.nbytes())
        return x

    tokens = torch.randint(61, (1, N))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        decoder.loss(tokens, tokens, Documents(N))
    return sum(size for _, size in storages.values())


def only_on_a_cpu(config: DecoderConfig, memory: Memory) -> int:
    """Bytes a token: where RMSNorm is no single kernel, autograd keeps what was normed, too, in float32."""
    norms = 0
    if memory.recompute == "nothing":
        norms = config.width * (1 if memory.tile else 2)
        if config.qk_norm:
            norms += (config.num_heads + config.num_kv_heads) * config.head_width
    return 4 * (config.num_layers * norms + config.width)


@pytest.mark.parametrize("memory", MEMORIES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_what_is_kept(shape: str, memory: Memory, precision: str) -> None:
    config, element = SHAPES[shape], PRECISIONS[precision].element
    dtype = torch.float32 if element == 4 else torch.bfloat16
    # Held, but not by autograd: the gradient that the loss has taken, targets, and in checkpoints the angles.
    beside = config.width * element + 8 + (4 * config.head_width if memory.recompute == "blocks" else 0)
    told = kept_per_token(config, memory, element) - beside + only_on_a_cpu(config, memory)
    assert kept(config, memory, dtype) / N == pytest.approx(told, rel=0.02)


class Alive(TorchDispatchMode):
    """Counts bytes of the tensors that operations make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            storage = x.untyped_storage() if isinstance(x, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage._cdata)
        return out

    def _gone(self, storage: int) -> None:
        self.now -= self.sizes.pop(storage)


@pytest.mark.parametrize("memory", MEMORIES, ids=str)
def test_the_peak_is_estimated(memory: Memory) -> None:
    config, num_tokens, held = DecoderConfig(4, 128, 4, 2, 32, 384, 256), 1536, PRECISIONS["32-true"]
    decoder = Decoder(config, [Causal()] * 4)
    wrap(decoder, memory, compile=False)
    tokens, alive = torch.randint(256, (1, num_tokens)), Alive()
    with alive:
        decoder.loss(tokens, tokens, Documents(num_tokens)).backward()
    told = footprint(Setup(config, memory, held, num_tokens))
    beside_weights = told.peak - told.parameters - told.optimizer + num_tokens * only_on_a_cpu(config, memory)
    assert 0.9 < beside_weights / alive.most < 1.25


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters(shape: str) -> None:
    config = SHAPES[shape]
    decoder = Decoder(config, [Causal()] * config.num_layers)
    assert num_parameters(config) == sum(p.numel() for p in decoder.parameters())


def test_published_sizes() -> None:
    assert num_parameters(preset("llama-2-7b")) == 6_738_415_616
    assert num_parameters(preset("llama-3-8b")) == 8_030_261_248


SETUP = Setup(preset("llama-3-8b"), Memory("halves"), PRECISIONS["bf16-mixed"], 16384, num_shards=8)


def test_parts_are_shared_out() -> None:
    told = footprint(SETUP)
    assert told.parameters == 4 * 8_030_261_248 // 8 == told.gradients == told.optimizer // 2
    whole = footprint(replace(SETUP, num_shards=None))
    assert (whole.parameters, whole.activations) == (8 * told.parameters, told.activations)
    assert whole.working < told.working  # nothing is gathered
    # Micro-batches add up gradients of all weights, in float32, beside the activations of the next one.
    more = footprint(replace(SETUP, num_batches=4))
    assert more.gradients - told.gradients == 4 * 8_030_261_248
    assert more.peak == told.peak + more.gradients


def test_the_peak_is_the_sum_of_what_is_held_at_once() -> None:
    told = footprint(replace(SETUP, keys=131072))
    held = max(told.activations, told.gradients)
    assert told.peak == told.parameters + told.optimizer + held + told.exchange + told.working
    # Three times keys and values of 8 heads of 128, in bfloat16.
    assert told.exchange == 3 * 131072 * 2 * 8 * 128 * 2
    by_groups = replace(SETUP, keys_by_heads=131072, heads_at_once=2)
    # Of two heads five times, and attention's output: 32 heads.
    of_groups = 5 * 131072 * 2 * 2 * 128 * 2 + SETUP.num_tokens * 32 * 128 * 2
    assert footprint(by_groups).exchange == of_groups
    # The larger of both counts.
    assert footprint(replace(by_groups, keys=16384)).exchange == of_groups
    assert footprint(replace(by_groups, keys=131072)).exchange == told.exchange > of_groups
    assert footprint(SETUP).exchange == 0


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=list(PRECISIONS))
def test_less_is_kept_the_more_is_computed_again(precision: Precision) -> None:
    setup = replace(SETUP, precision=precision, num_tokens=65536)
    memories = [Memory(), Memory("halves"), Memory("halves", offload=True), Memory("blocks"), Memory("blocks", True)]
    kept = [footprint(replace(setup, memory=memory)).activations for memory in memories]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == len(kept)
    # A tile spares the wide activations of all tokens.
    assert footprint(replace(setup, memory=Memory("halves", tile=4096))).peak < footprint(setup).peak


@pytest.mark.parametrize("memory", MEMORIES, ids=str)
def test_the_longest_is_the_last_that_fits(memory: Memory) -> None:
    setup, limit = replace(SETUP, memory=memory, keys=32768), 70 * 2**30
    tokens = longest(setup, limit, 128)

    def peak(n: int) -> int:
        return footprint(replace(setup, num_tokens=n, keys=2 * n)).peak

    assert tokens > 0 and peak(tokens) <= limit < peak(tokens + 128)
    assert longest(setup, 2**30, 128) == 0  # not even the weights
