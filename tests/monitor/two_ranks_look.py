"""What `test_looking_ranks` runs in one process and in two: the first writes the figures of a validation."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from small_run import data, model, trainer

from lg.monitor import LossByPosition, Needle, TextSamples

if __name__ == "__main__":
    out, ranks = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    callbacks = [LossByPosition(first=16), Needle(lengths=(128,)), TextSamples(16, 4)]
    run = trainer(out, callbacks, devices=ranks, strategy="ddp" if ranks > 1 else "auto", use_distributed_sampler=False)
    (figures,) = run.validate(model(), data(), verbose=False)
    if run.is_global_zero:
        (out / f"{ranks}.json").write_text(json.dumps(figures), encoding="utf-8")
