"""Two real processes train together: each document goes to one of them, and the run goes on to the bit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

OWN = '''
import json, os, signal
import lightning.pytorch as pl


class Noted(pl.Callback):
    """Writes down what each rank reads, and stops rank 0 in the middle of a step."""

    def __init__(self, file: str, stop: int = 0):
        self.file, self.stop = file, stop

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        with open(f"{self.file}{trainer.global_rank}", "a") as file:
            file.write(json.dumps([trainer.global_step, batch["tokens"].tolist()]) + "\\n")
        if batch_idx % 2 == 0 and trainer.global_step + 1 == self.stop and trainer.global_rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
'''


def write_config(folder: Path, streaming: bool) -> None:
    lines = [json.dumps({"text": f"document {n}: " + "abcdefgh "[n % 7 :] * (n % 11 + 2)}) for n in range(60)]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "own.py").write_text(OWN)
    source = {"class_path": "Jsonl", "init_args": {"path": str(folder / "texts.jsonl"), "streaming": streaming}}
    model = {
        "patterns": {"local": {"class_path": "SinkWindow", "init_args": {"window": 8}}, "full": "Causal"},
        "schedule": "local, full",
        "decoder": {"num_layers": 2, "width": 16, "num_heads": 2, "num_kv_heads": 1},
    }
    config = {
        "model": {"class_path": "HybridLM", "init_args": model},
        "data": {
            "class_path": "TextData",
            "init_args": {"source": source, "row_length": 48, "held_out": 0.2, "held_out_rows": 3, "block": 8},
        },
        "trainer": {
            "accelerator": "cpu", "devices": 2, "strategy": "ddp", "max_steps": 8, "accumulate_grad_batches": 2,
            "val_check_interval": 6, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0,
            "log_every_n_steps": 1, "enable_progress_bar": False, "enable_model_summary": False,
        },
        "weights_only": True,
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def fit(folder: Path, name: str, stop: int = 0) -> int:
    callbacks = [
        {"class_path": "own.Noted", "init_args": {"file": str(folder / name), "stop": stop}},
        {"class_path": "Checkpoints", "init_args": {"every": 100}},
    ]
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(folder), "name": f"logs_{name}"}}
    given = yaml.safe_load((folder / "config.yaml").read_text())
    given["trainer"] |= {"callbacks": callbacks, "logger": logger}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(given))
    return subprocess.run(
        [sys.executable, "-m", "lg", "fit", "--config", f"{name}.yaml", "--ckpt_path", "last"],
        cwd=folder, capture_output=True, timeout=240, check=False,
    ).returncode  # fmt: skip


def losses(folder: Path, name: str) -> dict[tuple[str, int], float]:
    board = EventAccumulator(str(folder / f"logs_{name}" / "version_0"), size_guidance={"scalars": 0})
    board.Reload()
    tags = ("train/loss_nats", "val/loss_nats")
    return {(tag, event.step): event.value for tag in tags for event in board.Scalars(tag)}


def read(folder: Path, name: str, rank: int) -> list[str]:
    return (folder / f"{name}{rank}").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_two_ranks_stop_together_and_go_on_to_the_bit(streaming: bool, tmp_path: Path) -> None:
    write_config(tmp_path, streaming)
    assert fit(tmp_path, "whole") == 0
    for rank in (0, 1):
        assert len(read(tmp_path, "whole", rank)) == 16
    # No document is in two ranks' rows of the first steps: each names its number.
    texts = [{text for line in read(tmp_path, "whole", rank) for text in names(line)} for rank in (0, 1)]
    if streaming:
        assert texts[0] and not texts[0] & texts[1]
    assert fit(tmp_path, "killed", stop=5) != 0
    stopped = [len(read(tmp_path, "killed", rank)) for rank in (0, 1)]
    # One more batch may have been read than was trained on.
    assert all(10 <= number <= 11 for number in stopped)
    assert fit(tmp_path, "killed") == 0
    assert losses(tmp_path, "killed") == losses(tmp_path, "whole")


def names(line: str) -> set[str]:
    """The numbers of the documents that begin in a batch."""
    _, rows = json.loads(line)
    text = "".join(bytes(row).decode() for row in rows)
    return {part.split(":")[0] for part in text.split("\0")[1:] if part.startswith("document ") and ":" in part}
