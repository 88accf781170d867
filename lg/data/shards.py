"""Which ranks read which rows: the data axis of any strategy, and what only one rank knows told to all."""

import io
from typing import Any

import lightning.pytorch as pl
import torch


def data_axis(trainer: pl.Trainer | None) -> tuple[int, int]:
    """The number of shards of the data, and which of them this rank reads.

    Ranks that differ in another axis only (context, tensor) read the same shard. A strategy says which axis is the
    data's in ``distributed_sampler_kwargs``, as Lightning's all do; one without it runs on one device.
    """
    axis: dict[str, int] | None = getattr(getattr(trainer, "strategy", None), "distributed_sampler_kwargs", None)
    return (axis["num_replicas"], axis["rank"]) if axis else (1, 0)


def of_every_rank(trainer: pl.Trainer, state: Any) -> list[Any]:
    """The plain data that each rank hands in, by global rank; to be called by all of them."""
    if trainer.world_size == 1:
        return [state]
    buffer = io.BytesIO()
    torch.save(state, buffer)
    strategy = trainer.strategy
    own = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8).to(strategy.root_device)
    sizes = strategy.all_gather(torch.tensor([len(own)], device=own.device)).flatten().tolist()
    padded = torch.zeros(max(sizes), dtype=torch.uint8, device=own.device)
    padded[: len(own)] = own
    everyone = strategy.all_gather(padded).view(len(sizes), -1).cpu().numpy()
    return [
        torch.load(io.BytesIO(data[:size].tobytes()), weights_only=True)
        for data, size in zip(everyone, sizes, strict=True)
    ]
