"""The needle on the board is that of the weights at hand, asks the same each time, and leaves training as it was."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import data, logged, model, trainer

from lg.attention import Causal, PrefixLM
from lg.attention.patterns import GlobalTokens
from lg.data import BestFit, Cut, Packing
from lg.evaluation import Needles, haystack, score
from lg.models.hybrid import HybridLM
from lg.monitor import LossByPosition, Needle, TextSamples
from lg.monitor.held_out import held_out_text

GRID: dict[str, Any] = {"lengths": (128, 200), "depths": (0.0, 1.0)}


def weights(module: HybridLM) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_the_board_shows_the_score_of_the_weights_at_hand(tmp_path: Path) -> None:
    module, source = model(), data()
    run = trainer(tmp_path, [Needle(**GRID)])
    run.fit(module, source)
    events = logged(run)
    hay = haystack(Needles(**GRID), source.tokenizer, held_out_text(source, 800))
    want = score(module.model.eval(), hay)
    assert events.Scalars("needle/gain_nats")[-1].value == pytest.approx(float(want.gain.mean()), rel=1e-4)
    assert events.Scalars("needle/accuracy_percent")[-1].value == pytest.approx(100 * float(want.accuracy.mean()))
    # Steps as Lightning counts them where it logs: those done before the running one.
    assert [image.step for image in events.Images("needle/gain")] == [1, 3]
    assert [event.step for event in events.Scalars("needle/gain_nats")] == [1, 3]


def test_a_learnt_answer_is_found() -> None:
    """Learnt by heart, so the accuracy can be high."""
    module, source = model(), data()
    source.setup()
    hay = haystack(Needles(**GRID), source.tokenizer, held_out_text(source, 800))
    optimizer = torch.optim.AdamW(module.model.parameters(), lr=1e-2)
    for _ in range(30):
        for packed in hay.packed:
            places = torch.cat(list(hay.answers(packed).values()))
            targets = torch.full_like(packed.tokens, -100)
            targets[0, places - 1] = packed.tokens[0, places]
            module.model.loss(packed.tokens, targets, packed.documents).div(len(places)).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = score(module.model, hay)
    assert found.accuracy.mean() > 0.5


def test_looking_leaves_training_as_it_was(tmp_path: Path) -> None:
    runs = []
    for callbacks in ([], [Needle(**GRID, every=1), TextSamples(16, 4, every=1), LossByPosition(first=16)]):
        module = model()
        trainer(tmp_path, callbacks, accumulate_grad_batches=2).fit(module, data())
        runs.append((weights(module), torch.get_rng_state()))
        assert all(part.training for part in module.modules())
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])


def test_it_looks_every_so_many_steps_and_logs_at_once(tmp_path: Path) -> None:
    run = trainer(tmp_path, [Needle(**GRID, every=3)], max_steps=7, accumulate_grad_batches=2, log_every_n_steps=50)
    run.fit(model(), data())
    assert [event.step for event in logged(run).Scalars("needle/gain_nats")] == [2, 5]
    assert [event.step for event in logged(run).Images("needle/gain")] == [2, 5]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_it_looks_in_the_precision_of_the_trainer(precision: Any, tmp_path: Path) -> None:
    gains = []
    for kind in ("32-true", precision):
        module = model()
        module.configure_model()
        run = trainer(tmp_path, [Needle(**GRID)], precision=kind)
        (result,) = run.validate(module, data(), verbose=False)
        gains.append(result["needle/gain_nats"])
    assert gains[0] != gains[1] == pytest.approx(gains[0], abs=0.02)


def test_validation_alone_tells_it_too(tmp_path: Path) -> None:
    (result,) = trainer(tmp_path, [Needle(**GRID)]).validate(model(), data(), verbose=False)
    assert result["needle/gain_nats"] == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("packing", [Cut(), BestFit()], ids=["cut", "best fit"])
def test_the_text_around_needles_is_held_out_and_has_no_ends(packing: Packing) -> None:
    source = data(packing=packing, document_mask=False)
    source.setup()
    text = held_out_text(source, 500)
    assert len(text) == 500 and (text != source.tokenizer.end).all()
    numbers = set(re.findall(rb"(\d+): the quick", source.tokenizer.decode(text.numpy())))
    rows = [source.tokenizer.decode(source.train_rows[n]["tokens"].numpy()) for n in range(len(source.train_rows))]
    trained = {number for row in rows for number in re.findall(rb"\b(\d+): the quick", row)}
    assert numbers and len(trained) > 30 and not numbers & trained


def fit(tmp_path: Path, callback: Needle, **changes: Any) -> dict[str, Any]:
    source = changes.pop("source", None) or data()
    run = trainer(tmp_path, [callback], max_steps=1, val_check_interval=1)
    run.fit(model(**changes), source)
    return logged(run).Tags()


def test_by_default_lengths_are_halved_until_they_keep_to_the_budget(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Rows of 1,024: 10 * (1,024 + 512 + 256) tokens for all, 10 * (512 + 256) = 7,680 for the next.
    callback = Needle(max_tokens=10_000)
    with caplog.at_level("INFO"):
        fit(tmp_path, callback, source=data(row_length=1024))
    assert any("lengths up to 512 of the rows' 1,024" in message for message in caplog.messages)
    assert callback._hay is not None and callback._hay.needles.lengths == (256, 512)
    assert callback._hay.needles.num_tokens == 7680


@pytest.mark.parametrize(
    ("callback", "source", "why"),
    [
        (Needle(max_tokens=100), {}, "100 tokens .* are too few"),
        (Needle(), {"row_length": 64}, "a needle of 64 tokens is not allowed"),
    ],
)
def test_it_stays_away_where_its_default_grid_has_no_room(
    callback: Needle, source: dict[str, int], why: str, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=f"Needle stays away: {why}"):
        tags = fit(tmp_path, callback, source=data(**source))
    assert "needle/gain" not in tags["images"]


def test_a_pattern_that_shows_the_answers_is_not_asked(tmp_path: Path) -> None:
    module, source = model(patterns={"local": GlobalTokens(1), "full": Causal()}), data()
    run = trainer(tmp_path, [Needle(**GRID)])
    with (
        pytest.warns(UserWarning, match=r"Needle stays away: GlobalTokens\(.*\) lets queries see later keys"),
        # Of all targets of the rows there is none left.
        pytest.raises(ValueError, match="lets every query see later keys"),
    ):
        run.validate(module, source, verbose=False)


def test_a_prefix_is_none_in_prompts(tmp_path: Path) -> None:
    tags = fit(tmp_path, Needle(**GRID), patterns={"local": PrefixLM(), "full": Causal()}, source=data(prefix=0.5))
    assert "needle/gain" in tags["images"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"lengths": ()}, r"Needle\.lengths: \(\)"),
        ({"lengths": (0,)}, r"Needle\.lengths: \(0,\)"),
        ({"depths": (1.5,)}, r"Needle\.depths: \(1\.5,\)"),
        ({"samples": 0}, r"Needle\.samples: 0"),
        ({"max_tokens": 0}, r"Needle\.max_tokens: 0"),
        ({"every": 0}, r"Needle\.every: 0"),
        ({"lengths": (1000,), "max_tokens": 9999}, r"Needle\.max_tokens: 9999 is not allowed; .* take 10000"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"trainer\.callbacks\.{complaint}"):
        Needle(**arguments)


def test_lengths_that_are_asked_for_must_have_room(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer\.callbacks\.Needle\.lengths: a needle of 40 tokens is not allowed"):
        fit(tmp_path, Needle(lengths=(40,)))
