"""What the dashboard shows is what happened: read back from a real run's TensorBoard files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lg.attention import Causal, SinkWindow
from lg.data import CountModel, Document, Source, TextData
from lg.models.hybrid import HybridLM
from lg.models.learning_rate import Constant
from lg.monitor import Compilation, CountBaseline, ModelCard, PatternSheet, Throughput
from lg.monitor.model_card import card

SHAPE: dict[str, int | float | bool] = {"num_layers": 3, "width": 32, "num_heads": 4, "num_kv_heads": 2}


@dataclass(frozen=True)
class Poems(Source):
    """Documents of random-looking but repeating text."""

    def documents(self) -> Iterator[Document]:
        for n in range(30):
            yield Document(f"poem {n}", b"the quick brown fox jumps over the lazy dog; " * (n % 5 + 4))


def model() -> HybridLM:
    pl.seed_everything(0, verbose=False)
    return HybridLM(
        patterns={"local": SinkWindow(window=16), "full": Causal()},
        schedule="local, full, local",
        decoder=SHAPE,
        lr_schedule=Constant(warmup=0),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[EventAccumulator, pl.Trainer, TextData]:
    """Eight optimizer steps of two micro-batches with every callback."""
    folder = tmp_path_factory.mktemp("logs")
    data = TextData(source=Poems(), row_length=128, batch_size=2)
    trainer = pl.Trainer(
        max_steps=8, accelerator="cpu", accumulate_grad_batches=2, val_check_interval=8, check_val_every_n_epoch=None,
        limit_val_batches=1, num_sanity_val_steps=0, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1, gradient_clip_val=1.0,
        logger=TensorBoardLogger(str(folder), default_hp_metric=False),
        callbacks=[
            Throughput(every=2), Compilation(), ModelCard(), PatternSheet(), CountBaseline(), LearningRateMonitor(),
        ],
    )  # fmt: skip
    trainer.fit(model(), data)
    board = EventAccumulator(str(trainer.log_dir), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    board.Reload()
    return board, trainer, data


Run = tuple[EventAccumulator, pl.Trainer, TextData]


def test_every_tag_says_its_unit(run: Run) -> None:
    tags = set(run[0].Tags()["scalars"])
    assert tags >= {
        "train/loss_nats", "train/bits_per_byte", "train/grad_norm", "val/loss_nats", "val/bits_per_byte",
        "val/count_model_bits_per_byte", "speed/tokens_per_s", "speed/step_s", "compile/graphs",
    }  # fmt: skip
    assert any(tag.startswith("lr-AdamW") for tag in tags)


def test_tokens_are_counted_once(run: Run) -> None:
    board = run[0]
    for tokens, seconds in zip(board.Scalars("speed/tokens_per_s"), board.Scalars("speed/step_s"), strict=True):
        # Two micro-batches of two rows of 128 tokens.
        assert tokens.value * seconds.value == pytest.approx(512, rel=1e-4)


def test_the_count_model_is_scored_on_the_rows_that_validation_reads(run: Run) -> None:
    board, _, data = run
    want = CountModel(2).fit(data.train_rows).bits_per_byte(data.val_rows, 2)
    assert board.Scalars("val/count_model_bits_per_byte")[0].value == pytest.approx(want, rel=1e-5)


def test_every_layer_is_drawn(run: Run) -> None:
    (image,) = run[0].Images("model/patterns")
    assert image.width > 3 * 128
    assert len(image.encoded_image_string) > 1000


def test_the_card_is_logged(run: Run) -> None:
    text = run[0].Tensors("model/card/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "local, full, local" in text


def test_nothing_compiles_on_a_cpu(run: Run) -> None:
    assert {event.value for event in run[0].Scalars("compile/graphs")} == {0.0}


def test_the_card_lists_layers_and_parameters() -> None:
    text = card(model())
    assert "schedule   local, full, local" in text
    assert "SinkWindow(window=16, sinks=4)  layers 0, 2" in text
    assert "tied to the embedding" in text
    total = sum(p.numel() for p in model().model.parameters())
    assert f"{total:,}" in text.splitlines()[-1]


def test_both_figures_are_printed_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {
        "max_steps": 1, "accelerator": "cpu", "val_check_interval": 1, "check_val_every_n_epoch": None,
        "limit_val_batches": 1, "num_sanity_val_steps": 0, "enable_checkpointing": False, "logger": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": tmp_path,
    }  # fmt: skip
    with caplog.at_level("INFO"):
        pl.Trainer(**options, callbacks=[CountBaseline()]).fit(model(), TextData(source=Poems(), row_length=128))
    told = next(message for message in caplog.messages if message.startswith("held-out bits per byte"))
    own, counted = (float(word) for word in told.replace(":", " ").split() if word[0].isdigit() and "." in word)
    assert 5.0 < own < 9.0
    assert 0.0 < counted < 2.0


def test_a_measurement_takes_at_least_one_step() -> None:
    with pytest.raises(ValueError, match=r"Throughput\.every: 0"):
        Throughput(every=0)
    with pytest.raises(ValueError, match=r"PatternSheet\.length: 0"):
        PatternSheet(length=0)
