"""Reads from a Trainer, on its devices, what a plan of its run needs to know."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from lg.attention import Documents, Pattern
from lg.models.adapters import Adapter
from lg.models.config import DecoderConfig
from lg.models.devices import Device, of_kind
from lg.models.footprint import PRECISIONS
from lg.models.planned import Planned, Share, Training

_HOST_SHARE = 0.5
"""Of the host's memory, what its devices may fill together: torch rounds each piece up to a power of two."""
_CGROUP = Path("/sys/fs/cgroup/memory.max")


@runtime_checkable
class Sharing(Protocol):
    """A strategy that shards weights, and sequences: `lg.parallel.HybridStrategy`."""

    context_parallel_size: int
    data_replicate_size: int
    offload_weights: bool
    exchange_groups: int

    def share(self, documents: Documents, layers: Sequence[Pattern], num_kv_heads: int) -> Share:
        """What a device has of a batch."""


def own_device(trainer: pl.Trainer, unknown: Device | None) -> Device | None:
    """This rank's device, with the memory that it really has; None if it is no GPU.

    Args:
        trainer: its processes started.
        unknown: stands for a GPU whose rates are not known, but for its memory.
    """
    device = trainer.strategy.root_device
    if device.type != "cuda":
        return None
    told = torch.cuda.get_device_properties(device)
    kind = of_kind(told.name) or unknown
    return kind and replace(kind, memory=int(told.total_memory))


def planned_run(
    trainer: pl.Trainer,
    config: DecoderConfig,
    layers: Sequence[Pattern],
    compile: bool,
    on: Device,
    adapter: Adapter | None = None,
) -> Planned:
    """A plan of what the trainer is about to run; the same on all ranks, which must all ask for it.

    Args:
        trainer: attached to a module, its processes started.
        config: the decoder's shape.
        layers: what each layer sees: `plannable` ones.
        compile: whether blocks are compiled.
        on: this rank's device. The least memory that one has counts for all.
        adapter: what is trained in place of all weights.

    Raises:
        ValueError: naming what cannot be planned.
    """
    run = _training(trainer)
    data = getattr(trainer, "datamodule", None)
    rows, row_length = (getattr(data, name, None) for name in ("batch_size", "row_length"))
    if not isinstance(rows, int) or not isinstance(row_length, int):
        raise ValueError("data: a data module must tell batch_size, in rows, and row_length, in tokens")
    share = None
    if isinstance(trainer.strategy, Sharing) and run.context > 1:
        documents = Documents(rows * row_length, range(0, rows * row_length, row_length))
        share = trainer.strategy.share(documents, layers, config.num_kv_heads)
    per_device = int(_HOST_SHARE * host_memory()) // trainer.num_devices
    own = torch.tensor([on.memory, per_device], dtype=torch.int64, device=trainer.strategy.root_device)
    memory, host = torch.as_tensor(trainer.strategy.reduce(own, reduce_op="min")).tolist()
    device = replace(on, memory=memory)
    return Planned(config, layers, compile, run, rows, row_length, share, device, host, adapter)


def _training(trainer: pl.Trainer) -> Training:
    strategy, precision = trainer.strategy, str(trainer.precision)
    if isinstance(strategy, Sharing):
        context, replicas = strategy.context_parallel_size, strategy.data_replicate_size
    elif isinstance(strategy, SingleDeviceStrategy):
        context, replicas = 1, 1
    else:
        name = type(strategy).__name__
        raise ValueError(f"trainer.strategy: {name} cannot be planned; allowed: auto, lg.parallel.HybridStrategy")
    sharded = isinstance(strategy, Sharing)
    # On one device alone a mixed precision is autocast's, which keeps other activations.
    if precision not in PRECISIONS or (precision == "bf16-mixed" and not sharded):
        raise ValueError(
            f"trainer.precision: {precision!r} cannot be planned here; allowed: 32-true, bf16-true, and bf16-mixed "
            "with lg.parallel.HybridStrategy"
        )
    in_host = isinstance(strategy, Sharing) and strategy.offload_weights
    groups = strategy.exchange_groups if isinstance(strategy, Sharing) else 1
    batches = trainer.accumulate_grad_batches
    return Training(trainer.world_size, context, replicas, precision, batches, sharded, in_host, groups)


def host_memory() -> int:
    """Bytes of memory that this process may share with others of its machine, or of its container."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        told = _CGROUP.read_text().strip()
    except OSError:
        return whole
    return min(whole, int(told)) if told.isdecimal() else whole
