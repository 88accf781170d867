"""Rotary angles follow the positions that are given, everything else the places; a base too small for them is told."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lg.attention import Causal, Documents, SinkWindow, Window
from lg.data import E2LLM, Document, PoSE, Source, TextData, collate
from lg.data.positions import Drawing, Sentences
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder
from lg.models.hybrid import HybridLM
from lg.models.learning_rate import Constant
from lg.models.pretrained.out import save
from lg.models.rope_scaling import DynamicNTK, Linear, ntk_theta

SHAPE = DecoderConfig(
    num_layers=2, width=32, num_heads=4, num_kv_heads=2, head_width=8, ffn_width=48, vocab_size=256, rope_theta=1e4
)
DOCUMENTS = Documents(60, (0, 13, 40))


def logits(config: DecoderConfig, positions: torch.Tensor | None) -> torch.Tensor:
    torch.manual_seed(0)
    decoder = Decoder(config, [SinkWindow(window=8), Causal()])
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(3)
        return decoder.logits(torch.arange(60).view(2, 30), DOCUMENTS, positions=positions)


def test_places_as_positions_change_nothing() -> None:
    places = DOCUMENTS.positions.view(2, 30)
    assert torch.equal(logits(SHAPE, None), logits(SHAPE, places))
    assert torch.equal(logits(SHAPE, None), logits(SHAPE, places.float()))


def test_angles_are_of_the_positions() -> None:
    places = DOCUMENTS.positions.view(2, 30)
    want = logits(dataclasses.replace(SHAPE, rope_scaling=Linear(4.0)), None)
    torch.testing.assert_close(logits(SHAPE, places / 4), want)
    assert not torch.allclose(logits(SHAPE, None), want, atol=1e-3)
    # Distances alone matter.
    torch.testing.assert_close(logits(SHAPE, places + 100), logits(SHAPE, None), rtol=1e-3, atol=1e-3)


def test_what_layers_see_goes_by_places() -> None:
    still = dataclasses.replace(SHAPE, no_rope_layers=(0, 1))
    assert torch.equal(logits(still, None), logits(still, torch.randint(10**6, (2, 30))))


def module(**changes: Any) -> HybridLM:
    shape = {"num_layers": 2, "width": 32, "num_heads": 4, "num_kv_heads": 2, "head_width": 8, "ffn_width": 48}
    patterns = {"local": SinkWindow(window=8), "full": Causal()}
    return HybridLM(**{"patterns": patterns, "schedule": "local, full", "decoder": shape, **changes})


@dataclass(frozen=True)
class Texts(Source):
    """A few short ones."""

    def documents(self) -> Iterator[Document]:  # type: ignore[override]
        return (Document(f"{n}", b"This is it. So it is. " * 10) for n in range(20))


def rows(**options: Any) -> TextData:
    return TextData(Texts(), held_out=0.2, **options)


def test_a_batch_with_positions_is_trained_on_them() -> None:
    torch.manual_seed(0)
    data = rows(row_length=64)
    data.setup()
    batch: Any = collate([data.val_rows[0], data.val_rows[1]])
    placed: Any = Drawing(PoSE(1000), Sentences(data.tokenizer)).onto(batch, [(0,), (1,)])
    model = module()
    loss, count = model._loss(placed)
    documents = Documents(128, placed["document_starts"])
    assert torch.equal(
        loss, model.model.loss(placed["tokens"], placed["targets"], documents, positions=placed["positions"])
    )
    assert loss != model._loss(batch)[0] and count == model._loss(batch)[1]


def test_fractions_are_not_rounded_unseen() -> None:
    # Of the model's type 828.25, 828.5 and 829 would be one position.
    options: dict[str, Any] = {
        "max_steps": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0,
    }  # fmt: skip
    with pytest.raises(
        ValueError, match=r"trainer.precision: 'bf16-true' is not allowed where positions are fractions"
    ):
        pl.Trainer(**options, precision="bf16-true").fit(module(), rows(row_length=64, positions=E2LLM(5)))
    pl.Trainer(**options, precision="bf16-true").fit(module(), rows(row_length=64, positions=PoSE(128)))
    pl.Trainer(**options, precision="bf16-mixed").fit(module(), rows(row_length=64, positions=E2LLM(5)))


def told(folder: Path, caplog: pytest.LogCaptureFixture, data: TextData | None = None, **changes: Any) -> list[str]:
    options: dict[str, Any] = {
        "max_steps": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 1,
    }  # fmt: skip
    caplog.clear()
    with caplog.at_level(logging.WARNING, "lg"):
        model = module(pretrained=str(folder), **{"decoder": None, **changes})
        pl.Trainer(**options).fit(model, data or rows(row_length=256))
    return [record.getMessage() for record in caplog.records if "rope_theta" in record.getMessage()]


@pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint")
def test_other_positions_are_told_when_training_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {
        "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "limit_val_batches": 0,
    }  # fmt: skip
    first = pl.Trainer(**options, max_steps=1)
    first.fit(module(lr_schedule=Constant(warmup=0)), rows(row_length=64, positions=PoSE(128)))
    first.save_checkpoint(tmp_path / "step.ckpt")
    for positions, scaling, said in (
        (PoSE(128), None, []),
        (
            PoSE(256),
            DynamicNTK(2.0, 64),
            [
                "data.init_args.positions: the checkpoint was trained with PoSE(target=128, chunks=2), and training "
                "goes on with PoSE(target=256, chunks=2)",
                "the checkpoint was trained with other values of model.init_args: decoder.rope_scaling was None, is "
                "{'class_path': 'lg.models.rope_scaling.DynamicNTK', 'init_args': {'factor': 2.0, 'original_length': "
                "64}}",
                "model.init_args.rope_scaling: a model with DynamicNTK(factor=2.0, original_length=64) cannot be "
                "exported (lg export); with NTK, of one factor, it can",
            ],
        ),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "lg"):
            pl.Trainer(**options, max_steps=2).fit(
                module(lr_schedule=Constant(warmup=0), rope_scaling=scaling), rows(row_length=64, positions=positions),
                ckpt_path=tmp_path / "step.ckpt", weights_only=True,
            )  # fmt: skip
        told = [record.getMessage() for record in caplog.records]
        assert sorted(one for one in told if "learning rate" not in one) == sorted(said)


def test_a_base_too_small_for_the_rows_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "tiny"
    sees = [Window(window=8), Causal()]
    save(folder, Decoder(SHAPE, sees).state_dict(), SHAPE, sees, 64)
    (message,) = told(folder, caplog)
    least = ntk_theta(1e4, 4, 8)
    assert least == pytest.approx(1e4 * 4 ** (8 / 6)) and f"{least:.3g}" == "6.35e+04"
    assert message.startswith(
        "model.init_args.decoder.rope_theta: 10000 is small for 256 positions, where tiny is made for 64: by the NTK "
        "rule, theta * (L / L0) ** (D / (D - 2)), it is 6.35e+04, and 1.27e+05, twice that, is ProLong's"
    )
    assert not told(folder, caplog, decoder={"rope_theta": 7e4})
    assert not told(folder, caplog, rope_scaling=Linear(4.0))
    assert not told(folder, caplog, rows(row_length=64))
    (message,) = told(folder, caplog, rows(row_length=64, positions=PoSE(128)))
    assert "is small for 128 positions" in message


def test_the_rule_gives_what_prolong_tells() -> None:
    assert ntk_theta(5e5, 8, 128) == pytest.approx(4.13e6, rel=2e-3)
    assert ntk_theta(5e5, 1, 128) == 5e5
