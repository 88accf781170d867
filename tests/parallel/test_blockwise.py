"""A decoder is sharded while it is made: it begins as on one device, and no device ever holds all of it."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from lg.attention import Causal, SinkWindow
from lg.models.block import Layout, Mixer
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder
from lg.models.hybrid import HybridLM
from lg.models.memory import Memory
from lg.parallel import HybridStrategy
from lg.testing import run_ranks

SHAPE: dict[str, int | float | bool] = {
    "vocab_size": 80, "num_layers": 12, "width": 32, "num_heads": 4, "num_kv_heads": 2, "head_width": 8,
    "ffn_width": 64, "qkv_bias": True, "tied_embeddings": False,
}  # fmt: skip


class Decay(Mixer):
    """A mixer that is no attention and cannot be reset: its weights and its buffers are what its constructor makes."""

    def __init__(self, width: int, layer: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, width)
        self.rate = nn.Parameter(torch.rand(width) + layer)
        self.register_buffer("powers", torch.linspace(0, 1, width) ** (layer + 1))
        self.register_buffer("dice", torch.rand(3), persistent=False)

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        return (self.proj(x) * self.rate * self.powers,)

    def mix(self, inputs: tuple[Tensor, ...], layout: Layout) -> Tensor:
        return inputs[0].cumsum(0)

    def output(self, mixed: Tensor) -> Tensor:
        return mixed


@dataclass(frozen=True)
class DecaySpec:
    def build(self, config: DecoderConfig, layer: int) -> Mixer:
        return Decay(config.width, layer)


class ReadyMade(HybridLM):
    """Builds its decoder itself, and hands over all of it."""

    def configure_model(self) -> None:
        if self.decoder is None:
            mixers = [self.patterns[name] for name in self.schedule]
            self.decoder = Decoder(self.decoder_config, mixers, self.attention)


@dataclass(frozen=True)
class Begun:
    """A model before its first step.

    Attributes:
        state: weights and buffers, whole; the same on every rank.
        peak: bytes of tensors that were alive at once, at most, since before there was a model.
    """

    state: dict[str, Tensor]
    peak: int


class Living(TorchDispatchMode):
    """Adds up the storages of all tensors that are made inside, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, weakref.ref[Any]] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and not isinstance(tensor, DTensor) and not tensor.is_meta:
                storage = tensor.untyped_storage()
                self.storages[id(storage)] = weakref.ref(storage)
        alive = [storage for reference in self.storages.values() if (storage := reference()) is not None]
        self.storages = {id(storage): weakref.ref(storage) for storage in alive}
        self.peak = max(self.peak, sum(storage.nbytes() for storage in alive))
        return out


CASES: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"decoder": {**SHAPE, "tied_embeddings": True}},
    "own mixer": {"patterns": {"local": DecaySpec(), "full": Causal()}},
    "wrapped": {"memory": Memory(recompute="blocks", tile=16)},
    "half": {},
    "ready made": {},
}


def begun(name: str, devices: int, seed: int) -> Begun:
    torch.manual_seed(seed)
    options = {
        "patterns": {"local": SinkWindow(window=20, sinks=2), "full": Causal()}, "schedule": "4*local, 4*full, 4*local",
        "decoder": SHAPE, **CASES[name],
    }  # fmt: skip
    with Living() as living:
        module = (ReadyMade if name == "ready made" else HybridLM)(**options)
        trainer = pl.Trainer(
            accelerator="cpu", devices=devices, strategy=HybridStrategy() if devices > 1 else "auto", max_steps=0,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0, use_distributed_sampler=False,
            precision="bf16-true" if name == "half" else "32-true",
        )  # fmt: skip
        loader = DataLoader([0], batch_size=None)
        trainer.fit(module, loader, loader)
    assert module.decoder is not None
    tensors = {**dict(module.decoder.named_parameters()), **dict(module.decoder.named_buffers())}
    return Begun(
        {key: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for key, t in tensors.items()},
        living.peak,
    )


def all_begun(rank: int, devices: int) -> dict[str, Begun]:
    # Ranks are seeded apart: weights are those of the first.
    return {name: begun(name, devices, seed=rank) for name in CASES}


@pytest.fixture(scope="module")
def on_two() -> list[dict[str, Begun]]:
    return run_ranks(all_begun, 2, 2)


@pytest.fixture(scope="module")
def on_one() -> dict[str, Begun]:
    return all_begun(0, 1)


@pytest.mark.parametrize("name", CASES)
def test_weights_and_buffers_begin_as_on_one_device(
    name: str, on_one: dict[str, Begun], on_two: list[dict[str, Begun]]
) -> None:
    for rank in on_two:
        torch.testing.assert_close(rank[name].state, on_one[name].state, rtol=0, atol=0)


def bytes_of(state: dict[str, Tensor], prefix: str = "") -> int:
    return sum(t.numel() * t.element_size() for name, t in state.items() if name.startswith(prefix))


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"ready made"}))
def test_no_rank_ever_holds_more_than_its_shards_and_one_part(
    name: str, on_one: dict[str, Begun], on_two: list[dict[str, Begun]]
) -> None:
    state = on_one[name].state
    total, block, embedding = (bytes_of(state, prefix) for prefix in ("", "blocks.4.", "embedding."))
    assert total > 10 * block, "one part is little"
    # A tied embedding stays whole until the head is there.
    kept = embedding if name == "tied" else 0
    for rank in on_two:
        assert rank[name].peak < total / 2 + kept + 1.2 * block


def test_a_decoder_handed_over_whole_takes_all_its_memory(
    on_one: dict[str, Begun], on_two: list[dict[str, Begun]]
) -> None:
    total = bytes_of(on_one["ready made"].state)
    assert min(rank["ready made"].peak for rank in on_two) >= total, "or the memory is not counted"
