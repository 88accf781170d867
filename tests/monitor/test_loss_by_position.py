"""The loss by position is that of dense logits, summed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from small_run import data, logged, model, trainer

from lg.attention import Causal, Documents, PrefixLM
from lg.data import IGNORED, TextData
from lg.models.hybrid import HybridLM
from lg.monitor import LossByPosition
from lg.monitor.loss_by_position import bucket_sums, drawings, tag


def by_hand(module: HybridLM, source: TextData, first: int) -> dict[str, float]:
    """The mean over targets of each bucket, from whole logits, one token after the other."""
    losses: dict[int, list[float]] = {}
    for batch in source.val_dataloader():
        tokens, targets = batch["tokens"], batch["targets"].flatten()
        documents = Documents(tokens.numel(), batch["document_starts"], batch["document_attributes"])
        log_p = module.model.logits(tokens, documents).flatten(0, 1).log_softmax(-1)
        start = 0
        for place, target in enumerate(targets.tolist()):
            start = place if place in batch["document_starts"] else start
            if target == IGNORED:
                continue
            position = place - start
            bucket = 0 if position < first else 1 + int(math.log2(position // first))
            losses.setdefault(bucket, []).append(-float(log_p[place, target]))
    return {tag(bucket, first): sum(own) / len(own) for bucket, own in losses.items()}


@pytest.mark.parametrize("document_mask", [True, False])
@torch.no_grad()
def test_it_equals_dense_logits_by_hand(document_mask: bool, tmp_path: Path) -> None:
    module, source = model(), data(document_mask=document_mask, batch_size=2)
    (result,) = trainer(tmp_path, [LossByPosition(first=16)]).validate(module, source, verbose=False)
    want = by_hand(module, source, 16)
    got = {name: value for name, value in result.items() if name.startswith("loss_by_position")}
    assert got == pytest.approx(want, rel=1e-4)
    assert list(got) == [
        "loss_by_position/00000-00015_nats", "loss_by_position/00016-00031_nats", "loss_by_position/00032-00063_nats",
        "loss_by_position/00064-00127_nats", "loss_by_position/00128-00255_nats",
    ]  # fmt: skip


def test_the_buckets_together_are_the_held_out_loss(tmp_path: Path) -> None:
    """All in one bucket, targets that would leak left out as in the loss."""
    module = model(patterns={"local": PrefixLM(), "full": Causal()})
    callback = LossByPosition(first=1024)
    (result,) = trainer(tmp_path, [callback]).validate(module, data(prefix=0.5), verbose=False)
    assert result["loss_by_position/00000-01023_nats"] == pytest.approx(result["val/loss_nats"], rel=1e-5)


def test_a_target_that_is_certain_counts() -> None:
    losses, counted = torch.tensor([0.0, 1.0, 0.0, 5.0]), torch.tensor([True, True, False, True])
    sums, counts = bucket_sums(losses, counted, Documents(4, [0, 2]).positions, 1)
    # Positions 0, 1, 0, 1; the third is no target.
    assert sums[:3].tolist() == [0.0, 6.0, 0.0] and counts[:3].tolist() == [1.0, 2.0, 0.0]


def test_buckets_double() -> None:
    sums, _ = bucket_sums(torch.ones(1000), torch.ones(1000, dtype=torch.bool), Documents(1000).positions, 100)
    assert sums[:5].tolist() == [100, 100, 200, 400, 200]
    assert [tag(n, 100) for n in (0, 3)] == [
        "loss_by_position/00000-00099_nats", "loss_by_position/00400-00799_nats",
    ]  # fmt: skip


def test_every_validation_is_drawn_and_a_resumed_run_draws_the_earlier_ones_too(tmp_path: Path) -> None:
    first = LossByPosition(first=16)
    run = trainer(tmp_path, [first])
    run.fit(model(), data())
    events = logged(run)
    assert [image.step for image in events.Images("loss_by_position/over_training")] == [1, 3]
    assert len(events.Scalars("loss_by_position/00128-00255_nats")) == 2
    run.save_checkpoint(tmp_path / "last.ckpt")

    second = LossByPosition(first=16)
    again = trainer(tmp_path, [second], max_steps=6)
    again.fit(model(), data(), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True)
    history = second.state_dict()["history"]
    assert list(history) == [2, 4, 6]
    assert {step: history[step] for step in (2, 4)} == first.state_dict()["history"]
    # Means of other buckets cannot be drawn together with these.
    other = LossByPosition(first=8)
    other.load_state_dict(second.state_dict())
    assert other.state_dict()["history"] == {}


def test_many_validations_are_drawn_as_a_few_lines() -> None:
    history = {step: [3.0 - step / 100, math.nan, 2.0] for step in range(0, 200, 10)}
    assert {image.size for image in drawings(history, 128).values()} == {(336, 215)}


def test_another_validation_step_is_let_be(tmp_path: Path) -> None:
    class Own(HybridLM):
        """Tells callbacks nothing."""

        def validation_step(self, batch: object, batch_idx: int) -> None:  # type: ignore[override]
            super().validation_step(batch, batch_idx)  # type: ignore[arg-type]

    module = Own(patterns={"full": Causal()}, schedule="6*full")
    with pytest.warns(UserWarning, match="LossByPosition stays away"):
        (result,) = trainer(tmp_path, [LossByPosition()]).validate(module, data(), verbose=False)
    assert not any(name.startswith("loss_by_position") for name in result)


def test_the_first_bucket_has_a_token() -> None:
    with pytest.raises(ValueError, match=r"trainer\.callbacks\.LossByPosition\.first: 0"):
        LossByPosition(first=0)
