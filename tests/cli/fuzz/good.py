"""A configuration of one small step, right as it is: what the cases tamper with."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import yaml

from lg.cli import main

Config = dict[str, Any]

TEXTS = [f"document {n}: " + "the quick brown fox "[n % 7 :] * (n % 5 + 2) for n in range(12)]

_CONFIG = """
seed_everything: 0
weights_only: true
model:
  class_path: HybridLM
  init_args:
    preset: tiny
    decoder: {num_layers: 1, width: 16, num_heads: 2, num_kv_heads: 1, ffn_width: 16}
    patterns:
      local:
        class_path: SinkWindow
        init_args: {window: 16, sinks: 2}
    schedule: 1*local
    learning_rate: 3e-3
    lr_schedule:
      class_path: WSD
      init_args: {warmup: 1, decay: 0.5}
data:
  class_path: TextData
  init_args:
    source:
      class_path: Folder
      init_args: {path: texts}
    tokenizer: Bytes
    row_length: 64
    batch_size: 1
    held_out: 0.2
    packing: Cut
    align: schedule
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 2
  val_check_interval: 1
  check_val_every_n_epoch: null
  limit_val_batches: 1
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  logger:
    class_path: TensorBoardLogger
    init_args: {save_dir: logs, name: fuzz, default_hp_metric: false}
  callbacks:
    - class_path: Checkpoints
      init_args: {every: 1}
"""


def config() -> Config:
    """The configuration, to be changed at will."""
    made: Config = yaml.safe_load(_CONFIG)
    return copy.deepcopy(made)


def text() -> str:
    """The configuration as a user writes it."""
    return _CONFIG


def write_texts(folder: Path = Path("texts")) -> None:
    """The documents that the configuration names."""
    folder.mkdir(parents=True)
    for number, content in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(content)


def fit(content: Config | str | bytes, *words: str) -> list[str]:
    """Writes a configuration and its documents, and gives the words that train it."""
    if not Path("texts").exists():
        write_texts()
    if isinstance(content, dict):
        content = yaml.safe_dump(content, sort_keys=False)
    if isinstance(content, str):
        content = content.encode()
    Path("c.yaml").write_bytes(content)
    return ["fit", "--config=c.yaml", *words]


def train(content: Config, *words: str) -> None:
    """Trains it to the end in a fork, so that a cache and checkpoints are there."""
    given = fit(content, *words)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = main(given)
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert status == 0, "the right configuration does not train"
