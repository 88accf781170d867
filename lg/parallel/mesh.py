"""Which ranks read the same batch, and which hold the same weights: the axes of a run, from its sizes.

Ranks are laid out as [data_replicate, data_shard, context], the last axis fastest, so that a context group, which
talks most, is of one host where it can be. Two meshes lie on them: one of the data, one of the weights.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

_KEY = "trainer.strategy.init_args"


class Meshes(NamedTuple):
    """The ranks of a run, as its data and as its weights see them.

    Attributes:
        data: axes "data_parallel" (ranks that differ in it read different batches) and "context_parallel" (those share
            one, and each holds a part of its tokens).
        weights: the axis "weight_shard" (each rank holds a part of the weights), after "data_replicate" (those hold
            the same part) where that is larger than 1.
    """

    data: DeviceMesh
    weights: DeviceMesh

    def num_collectives(self) -> int:
        """How many this rank has begun, of whatever group: as many as the others, where none is ahead."""
        meshes = [mesh.get_group(axis) for mesh in self for axis in mesh.mesh_dim_names or ()]
        groups = {group.group_name: group for group in (dist.group.WORLD, *meshes) if group is not None}
        return sum(cast(Any, group)._get_sequence_number_for_group() for group in groups.values())


def check_sizes(
    num_devices: int, num_nodes: int, context_parallel_size: int, data_replicate_size: int, exchange_groups: int = 1
) -> None:
    """Refuses sizes that the processes of a run do not divide into, and those below 1.

    Raises:
        ValueError: with the arithmetic.
    """
    sizes = {
        "context_parallel_size": context_parallel_size,
        "data_replicate_size": data_replicate_size,
        "exchange_groups": exchange_groups,
    }
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{_KEY}.{name}: {size} is not allowed; it must be at least 1")
    world, group = num_devices * num_nodes, context_parallel_size * data_replicate_size
    if world % group:
        raise ValueError(
            f"{_KEY}.context_parallel_size: {context_parallel_size} is not allowed with data_replicate_size "
            f"{data_replicate_size}; their product {group} must divide the {world} processes (trainer.devices "
            f"{num_devices} x trainer.num_nodes {num_nodes})"
        )


def build_meshes(device_type: str, world_size: int, context_parallel_size: int, data_replicate_size: int) -> Meshes:
    """The meshes of a run of ``world_size`` processes, whose sizes were checked; to be called by all of them."""
    data_size, shard_size = world_size // context_parallel_size, world_size // data_replicate_size
    data = init_device_mesh(
        device_type, (data_size, context_parallel_size), mesh_dim_names=("data_parallel", "context_parallel")
    )
    if data_replicate_size == 1:
        return Meshes(data, init_device_mesh(device_type, (shard_size,), mesh_dim_names=("weight_shard",)))
    axes = ("data_replicate", "weight_shard")
    return Meshes(data, init_device_mesh(device_type, (data_replicate_size, shard_size), mesh_dim_names=axes))
