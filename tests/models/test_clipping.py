"""Gradients are clipped as torch does it."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from lg.models.clipping import clip_by_norm, whole_norm


def weights() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(5).double())]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return [*parameters, torch.nn.Parameter(torch.randn(2))]


@pytest.mark.parametrize("most", [0.1, 100.0, math.inf])
def test_all_are_scaled_alike(most: float) -> None:
    ours, theirs = weights(), weights()
    norm = clip_by_norm(ours, most)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs, most), check_dtype=False)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_without_gradients_the_norm_is_0() -> None:
    assert clip_by_norm([torch.nn.Parameter(torch.ones(2))], 1.0) == 0


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
    dist.destroy_process_group()


class Sent(TorchDispatchMode):
    """Counts what is sent."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "c10d" in str(func)
        return func(*args, **(kwargs or {}))


def test_nothing_of_shards_is_sent_before_their_norm_is_where_ranks_talk(
    mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Shards of offload_weights lie in the host's memory, of which NCCL sends nothing.
    shards = [torch.randn(3, 4), torch.randn(2, 4)]
    parameters = [*weights()[:1]]
    for shard in shards:
        sharded = DTensor.from_local(shard, mesh, [Replicate(), Shard(0)], run_check=False)
        parameters.append(torch.nn.Parameter(sharded))
        parameters[-1].grad = sharded.clone()
    monkeypatch.setattr(DTensor, "full_tensor", DTensor.to_local)
    with Sent() as sent:
        norm = clip_by_norm(parameters, math.inf)
        other = whole_norm([parameter.grad for parameter in parameters if parameter.grad is not None], torch.float64)
    expected = torch.cat([parameters[0].grad.flatten(), *(shard.flatten() for shard in shards)]).norm()
    torch.testing.assert_close(norm, expected)
    torch.testing.assert_close(other, expected.double(), rtol=1e-5, atol=0.0)
    assert sent.count == 0
