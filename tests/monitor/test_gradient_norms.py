"""The norm of each part is that of the mean gradient, taken by hand, and the parts make up the whole."""

import math
from pathlib import Path

import pytest
import torch
from kept_run import Run, fitted
from small_run import SHAPE, model

from lg.attention import Causal, Documents, SinkWindow
from lg.models.hybrid import HybridLM
from lg.monitor import GradientNorms

PARTS = ("local", "full", "embedding", "norm")


class Extra(HybridLM):
    """Has a parameter beside the decoder."""

    def configure_model(self) -> None:
        super().configure_model()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def _loss(self, batch: object) -> tuple[torch.Tensor, torch.Tensor]:
        loss, num_targets = super()._loss(batch)  # type: ignore[arg-type]
        return loss * self.scale, num_targets


def by_hand(run: Run, the_model: HybridLM) -> dict[str, float]:
    """Norms of the gradient of the mean loss of the first step, with whole logits."""
    batches = run.batches[1]
    num_targets = sum(int((batch["targets"] != -100).sum()) for batch in batches)
    for batch in batches:
        documents = Documents(batch["tokens"].numel(), batch["document_starts"])
        logits = the_model.model.logits(batch["tokens"], documents).flatten(0, 1)
        targets = batch["targets"].flatten()
        (torch.nn.functional.cross_entropy(logits, targets, reduction="sum") / num_targets).backward()
    squares: dict[str, float] = {}
    for name, parameter in the_model.model.named_parameters():
        part, *rest = name.split(".")
        key = the_model.schedule[int(rest[0])] if part == "blocks" else part
        assert parameter.grad is not None
        squares[key] = squares.get(key, 0.0) + float(parameter.grad.double().square().sum())
    return {key: math.sqrt(square) for key, square in squares.items()}


@pytest.mark.parametrize("tied", [True, False])
def test_norms_are_those_of_the_mean_gradient_before_clipping(tied: bool, tmp_path: Path) -> None:
    decoder = {**SHAPE, "num_layers": 3, "tied_embeddings": tied}
    run = fitted(tmp_path, model(decoder=decoder, schedule="local, full, local"), [GradientNorms()], max_steps=1)
    want = by_hand(run, model(decoder=decoder, schedule="local, full, local"))
    assert set(want) == {*PARTS, *(() if tied else ("head",))}
    told = {tag: run.values(tag)[1] for tag in run.tags("grad_norm/")}
    assert told == pytest.approx({f"grad_norm/{name}": norm for name, norm in want.items()}, rel=1e-4)


def test_their_squares_add_up_to_the_whole(run: Run) -> None:
    whole = run.values("train/grad_norm")
    parts = [run.values(f"grad_norm/{name}") for name in PARTS]
    for step in (2, 4, 6, 8, 10):
        assert math.hypot(*(part[step] for part in parts)) == pytest.approx(whole[step], rel=1e-5)
        # Gradients are clipped to a thousandth.
        assert whole[step] > 1


def test_what_a_subclass_adds_is_told_apart(tmp_path: Path) -> None:
    plain = model()
    extra = Extra(plain.patterns, ", ".join(plain.schedule), decoder=SHAPE)  # type: ignore[arg-type]
    run = fitted(tmp_path, extra, [GradientNorms()], max_steps=1)
    norms = [run.values(f"grad_norm/{name}")[1] for name in (*PARTS, "other")]
    assert norms[-1] > 0
    assert math.hypot(*norms) == pytest.approx(run.values("train/grad_norm")[1], rel=1e-5)


def test_low_precision_is_summed_in_float32(tmp_path: Path) -> None:
    run = fitted(tmp_path, model(), [GradientNorms()], max_steps=1, precision="bf16-true")
    norms = [run.values(f"grad_norm/{name}")[1] for name in PARTS]
    # The whole is taken by torch in bfloat16, which has eight bits.
    assert math.hypot(*norms) == pytest.approx(run.values("train/grad_norm")[1], rel=1e-2)
    assert any(norm != float(torch.tensor(norm).bfloat16()) for norm in norms)


def test_a_pattern_must_not_be_called_as_another_part(tmp_path: Path) -> None:
    named = model(patterns={"head": SinkWindow(window=16), "full": Causal()}, schedule="head, full")
    with pytest.raises(ValueError, match=r"model\.init_args\.patterns\.head: GradientNorms shows another part"):
        fitted(tmp_path, named, [GradientNorms()], max_steps=1)
