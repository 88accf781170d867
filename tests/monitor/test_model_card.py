"""The card tells what was built."""

from pathlib import Path

from kept_run import fitted
from small_run import model, text

from lg.monitor import ModelCard
from lg.monitor.model_card import card


def test_the_card_lists_layers_and_parameters() -> None:
    built = model(schedule="local, full, local", decoder={"num_layers": 3})
    told = card(built)
    assert "schedule   local, full, local" in told
    assert "SinkWindow(window=32, sinks=4)  layers 0, 2" in told
    assert "tied to the embedding" in told
    total = sum(p.numel() for p in built.model.parameters())
    assert f"{total:,}" in told.splitlines()[-1]


def test_the_card_is_logged(tmp_path: Path) -> None:
    run = fitted(tmp_path, model(), [ModelCard()], max_steps=1)
    (told,) = text(run.board, "model/card")
    assert "local, full" in told
