"""What is done to a decoder from outside so that many devices train it as one: one function, in one order.

Before it, `lg.models.wrap` has had activations recomputed and the blocks' halves compiled; the decoder itself stays
plain single-device code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from lg.attention import Pattern
from lg.parallel.exchange import ContextAttend
from lg.parallel.mesh import Meshes


class Policy(NamedTuple):
    """How weights are held.

    Attributes:
        types: in which types weights are gathered and gradients are reduced.
        in_host: whether each rank's shards, their gradients and the optimizer's state lie in the host's memory, where
            the optimizer then works; weights are copied to the device for as long as a layer needs them.
    """

    types: MixedPrecisionPolicy
    in_host: bool = False

    def where(self, device_type: str) -> OffloadPolicy:
        """What FSDP is told of the place."""
        # Only what is pinned is copied while the device computes; without a device there is nothing to pin for.
        return CPUOffloadPolicy(pin_memory=device_type != "cpu") if self.in_host else OffloadPolicy()


# What a decoder is driven by instead of a call: FSDP must gather weights around these too.
_METHODS = ("loss", "logits", "logits_at", "token_losses")


class _Config(Protocol):
    @property
    def num_kv_heads(self) -> int: ...


class _Attention(Protocol):
    attend: Callable[..., Tensor]


class Shardable(Protocol):
    """What a decoder must have: an `nn.Module` with these parts, driven by `loss`, `logits`, `logits_at` and
    `token_losses`.

    Each block's ``mixer`` has a ``pattern`` and calls its ``attend`` (as `lg.attention.attend`), if the tokens of a
    sequence are to lie on several ranks.
    """

    config: _Config
    embedding: nn.Module
    blocks: nn.ModuleList
    head: nn.Module


def shard_part(part: nn.Module, meshes: Meshes, policy: Policy) -> None:
    """Leaves each rank its shards of rank 0's weights, gathered just before the part is needed; on all ranks.

    The memory of the whole weights is free afterwards. So a decoder that is sharded part by part, while it is made,
    never takes more than its shards and one part.

    Args:
        part: an embedding, a block or a head, whose weights are on the device that computes; or the decoder, for what
            remains of it. Weights that are sharded already stay as they are.
        meshes: of the run.
        policy: how weights are held.
    """
    take_from_rank_0(part)
    # Also the last part, which is needed again at once: what validation left gathered would be stale after new weights
    # were loaded.
    fully_shard(
        part,
        mesh=meshes.weights,
        mp_policy=policy.types,
        offload_policy=policy.where(meshes.weights.device_type),
        reshard_after_forward=True,
    )


def shard(decoder: nn.Module, meshes: Meshes, policy: Policy, exchange_groups: int = 1) -> None:
    """Changes a decoder in place, on all ranks; a second time does nothing.

    In this order: where several ranks share a sequence, each attention fetches what its pattern needs of the others;
    the embedding, the head and each block are sharded, unless `shard_part` has done so while the decoder was made, then
    what is left; the next block's weights are gathered while one computes.

    Args:
        decoder: a `Shardable`, whose weights are on the device that computes.
        meshes: of the run.
        policy: how weights are held.
        exchange_groups: as `HybridStrategy` has them.

    Raises:
        ValueError: if a mixer cannot work on a part of a sequence, but is asked to.
    """
    if isinstance(decoder, FSDPModule):
        return
    parts = cast(Shardable, decoder)
    context = meshes.data["context_parallel"]
    if context.size() > 1:
        patterns(decoder)  # refuses what has none
        for block in parts.blocks:
            cast(_Attention, block.mixer).attend = ContextAttend(context.get_group(), exchange_groups)
    own = [] if _tied(parts) else [parts.embedding, parts.head]
    for part in (*own, *parts.blocks, decoder):
        if not isinstance(part, FSDPModule):
            shard_part(part, meshes, policy)
    for method in _METHODS:
        register_fsdp_forward_method(decoder, method)
    for block, following in pairwise(parts.blocks):
        # What the host does between two blocks must not delay the second one's weights.
        cast(FSDPModule, block).set_modules_to_forward_prefetch([cast(FSDPModule, following)])


def patterns(decoder: nn.Module) -> list[Pattern]:
    """What each layer sees.

    Raises:
        ValueError: if a layer's mixer is not made from a pattern, or does not let its attention be replaced.
    """
    found = []
    for number, block in enumerate(cast(Shardable, decoder).blocks):
        mixer = block.mixer
        pattern = getattr(mixer, "pattern", None)
        if not isinstance(pattern, Pattern) or not hasattr(mixer, "attend"):
            raise ValueError(
                f"trainer.strategy.init_args.context_parallel_size: a size above 1 is not allowed; layer {number} is "
                f"{type(mixer).__name__}, which has no pattern that tells what it needs of other ranks"
            )
        found.append(pattern)
    return found


@torch.no_grad()
def take_from_rank_0(module: nn.Module) -> None:
    """Gives every rank what the first has and is not sharded yet: replicas that begin apart would stay apart."""
    for tensor in (*module.parameters(), *module.buffers()):
        if not isinstance(tensor, DTensor):
            dist.broadcast(tensor, 0)


@torch.no_grad()
def to_device(module: nn.Module, decoder: nn.Module, device: torch.device) -> None:
    """Moves all of a module but the shards of its decoder, which stay where they are.

    Args:
        module: has ``decoder`` as its child of that name.
        decoder: whose shards lie in the host's memory.
        device: which computes.
    """
    setattr(module, "decoder", None)  # noqa: B010  # as no child, it stays where it is
    try:
        module.to(device)
    finally:
        module.decoder = decoder
    for tensor in (*decoder.parameters(), *decoder.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.to(device)


def unsharded(module: nn.Module, decoder: nn.Module) -> Iterator[nn.Parameter]:
    """What a module trains beside its sharded decoder: whole on every rank."""
    inside = set(map(id, decoder.parameters()))
    return (p for p in module.parameters() if id(p) not in inside and p.requires_grad)


def _tied(parts: Shardable) -> bool:
    return any(weight is other for weight in parts.embedding.parameters() for other in parts.head.parameters())
