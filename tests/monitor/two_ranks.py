"""What `test_ranks` runs in two processes: each writes what it has trained on, and the first what the board tells."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from kept_run import TimedWork, fitted
from lightning.pytorch.strategies import DDPStrategy
from small_run import model
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import init_device_mesh

from lg.attention import Documents
from lg.monitor import DataWait, GradientNorms, Memory, Padding, RunCard, Throughput
from lg.monitor.gradient_norms import _norm


class OneShard(DDPStrategy):
    """Its ranks read the same rows, as those of a context axis do."""

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": 1, "rank": 0}


def trained(folder: Path, strategy: DDPStrategy) -> dict[str, Any]:
    """Three steps: what this rank has read, and what is logged after the last."""
    callbacks = [Throughput(), TimedWork(), Padding(), DataWait(), Memory(), GradientNorms(), RunCard()]
    run = fitted(
        folder, model(), callbacks, max_steps=3, log_every_n_steps=3, devices=2, strategy=strategy,
        use_distributed_sampler=False,
    )  # fmt: skip
    work = run.callbacks["TimedWork"]
    assert isinstance(work, TimedWork)
    return {
        "num_text": {step: run.num_text([step]) for step in run.batches},
        "num_tokens": sum(batch["tokens"].numel() for batches in run.batches.values() for batch in batches),
        "first": [batch["tokens"][0, :8].tolist() for batch in run.batches[1]],
        "seconds": work.seconds[3],
        "logged": {tag: run.values(tag)[3] for tag in run.tags("")} if distributed.get_rank() == 0 else {},
    }


def sharded_norms() -> tuple[float, float]:
    """The norm of a gradient of which each rank holds a half (FSDP2), and that of the same on one rank."""
    norms = []
    for mesh in (init_device_mesh("cpu", (2,)), None):
        decoder = model().model
        if mesh is not None:
            fully_shard(decoder, mesh=mesh)
        tokens = torch.arange(256).view(1, 256)
        decoder(tokens, Documents(256)).square().sum().backward()
        norm = _norm(list(decoder.parameters()))
        assert norm is not None
        norms.append(float(norm))
    return norms[0], norms[1]


if __name__ == "__main__":
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    told = {kind.__name__: trained(out / kind.__name__, kind()) for kind in (DDPStrategy, OneShard)}
    rank = distributed.get_rank()
    sharded, whole = sharded_norms()
    assert math.isfinite(sharded)
    (out / f"{rank}.json").write_text(json.dumps({**told, "sharded": sharded, "whole": whole}), encoding="utf-8")
