"""HybridLM trains as one would by hand, whatever the micro-batches, and its checkpoints stand alone."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from lg.attention import Causal, Documents, Pattern, PrefixLM, ShiftedGroups, SinkWindow, Strided
from lg.attention.gallery import EXAMPLES
from lg.attention.schedule import Interleave, MiddleFull
from lg.data import Bytes, Document, Source, TextData, collate
from lg.models.checkpoint import FORMAT
from lg.models.hybrid import HybridLM
from lg.models.learning_rate import WSD, Constant
from lg.models.loss import IGNORED

SHAPE: dict[str, int | float | bool] = {
    "num_layers": 2, "width": 32, "num_heads": 4, "num_kv_heads": 2, "head_width": 8, "ffn_width": 48,
}  # fmt: skip


@dataclass(frozen=True)
class Poems(Source):
    """Forty short documents of different lengths."""

    def documents(self) -> Any:
        for n in range(40):
            yield Document(f"poem {n}", b"the quick brown fox jumps over the lazy dog; " * (n % 5 + 1))


def build(**changes: Any) -> HybridLM:
    pl.seed_everything(0, verbose=False)
    arguments: dict[str, Any] = {
        "patterns": {"local": SinkWindow(window=16, sinks=2), "full": Causal()},
        "schedule": "local, full",
        "decoder": SHAPE,
        "learning_rate": 1e-2,
        "lr_schedule": Constant(warmup=0),
    }
    return HybridLM(**{**arguments, **changes})


def data(**changes: Any) -> TextData:
    return TextData(**{"source": Poems(), "row_length": 64, **changes})


def trainer(tmp_path: Path, **changes: Any) -> pl.Trainer:
    options: dict[str, Any] = {
        "max_steps": 3, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0,
        "gradient_clip_val": 1.0, "default_root_dir": tmp_path, "log_every_n_steps": 1,
    }  # fmt: skip
    return pl.Trainer(**{**options, **changes})


class Keep(pl.Callback):
    """Keeps what is logged, and the gradients, after each batch."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.gradients: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.gradients.append(torch.cat([p.grad.flatten() for p in pl_module.parameters() if p.grad is not None]))
        self.logged.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def rows_of_unequal_targets() -> list[Any]:
    """Rows of which one predicts nearly everything and the next nearly nothing."""
    source = data()
    source.setup()
    rows = [source.train_rows[n] for n in range(4)]
    for row in rows[1::2]:
        row["targets"][5:] = -100
    return rows


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_the_gradient_is_the_mean_over_all_valid_targets_however_the_step_is_cut(tmp_path: Path) -> None:
    rows = rows_of_unequal_targets()
    seen = []
    for batch_size, accumulate in ((4, 1), (2, 2), (1, 4)):
        model, keep = build(), Keep()
        loader = DataLoader(rows, batch_size=batch_size, collate_fn=collate)  # type: ignore[arg-type]
        trainer(tmp_path, max_steps=1, accumulate_grad_batches=accumulate, callbacks=[keep]).fit(model, loader)
        seen.append((keep.gradients[-1], keep.logged[-1]["train/loss_nats"], keep.logged[-1]["train/grad_norm"]))

    # By hand: the mean of the cross-entropy over the step, clipped at norm 1.
    model = build()
    batch = collate(rows)
    loss = torch.nn.functional.cross_entropy(
        model.model.logits(batch["tokens"], Documents(256, batch["document_starts"])).flatten(0, 1),
        batch["targets"].flatten(),
    )
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    norm = gradient.norm()
    for got, got_loss, got_norm in seen:
        assert got_loss == pytest.approx(float(loss.detach()), rel=1e-5)
        assert got_norm == pytest.approx(float(norm), rel=1e-4)
        torch.testing.assert_close(got, gradient / norm.clamp(min=1.0), rtol=1e-4, atol=1e-6)


def test_validation_is_a_mean_over_targets_not_over_batches(tmp_path: Path) -> None:
    rows = rows_of_unequal_targets()
    losses = []
    for batch_size in (1, 4):
        model = build()
        loader = DataLoader(rows, batch_size=batch_size, collate_fn=collate)  # type: ignore[arg-type]
        (result,) = trainer(tmp_path, limit_val_batches=1.0).validate(model, loader, verbose=False)
        losses.append(result["val/loss_nats"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_training_learns_and_repeats_itself_under_a_seed(tmp_path: Path) -> None:
    runs = []
    for _ in range(2):
        model, keep = build(), Keep()
        trainer(tmp_path, max_steps=30, callbacks=[keep]).fit(model, data())
        runs.append((keep.logged, torch.cat([p.detach().flatten() for p in model.parameters()])))
    assert runs[0][0] == runs[1][0]
    assert torch.equal(runs[0][1], runs[1][1])
    losses = [step["train/loss_nats"] for step in runs[0][0]]
    assert losses[0] == pytest.approx(5.6, abs=0.4)
    assert losses[-1] < 3.0


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_low_precision_stays_near_float32(precision: str, tmp_path: Path) -> None:
    losses = {}
    for kind in ("32-true", precision):
        model, keep = build(learning_rate=1e-3), Keep()
        # Built in float32, so that both start from the same weights: other types draw other numbers.
        model.configure_model()
        trainer(tmp_path, precision=kind, callbacks=[keep]).fit(model, data())
        losses[kind] = [step["train/loss_nats"] for step in keep.logged]
        want = torch.bfloat16 if kind == "bf16-true" else torch.float32
        assert model.model.embedding.weight.dtype == want
    assert losses[precision] == pytest.approx(losses["32-true"], rel=0.01)


def test_bits_per_byte_is_the_loss_over_log_two(tmp_path: Path) -> None:
    model = build()
    the_trainer = trainer(tmp_path, limit_val_batches=2)
    (result,) = the_trainer.validate(model, data(held_out=0.5), verbose=False)
    assert result["val/bits_per_byte"] == pytest.approx(result["val/loss_nats"] / 0.6931472)


def test_norms_biases_and_embeddings_are_not_decayed(tmp_path: Path) -> None:
    for tied in (True, False):
        model = build(decoder={**SHAPE, "tied_embeddings": tied, "qkv_bias": True, "qk_norm": True})
        the_trainer = trainer(tmp_path, max_steps=1)
        the_trainer.fit(model, data())
        decayed, plain = the_trainer.optimizers[0].param_groups
        assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
        names = {id(p): name for name, p in model.named_parameters()}
        assert {names[id(p)].rsplit(".", 2)[-2] for p in decayed["params"]} == {
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", *(() if tied else ("head",)),
        }  # fmt: skip
        assert len(decayed["params"]) + len(plain["params"]) == len(names)
        assert all(p.ndim == 1 or "embedding" in names[id(p)] for p in plain["params"])


def saved(tmp_path: Path, **changes: Any) -> tuple[HybridLM, Path]:
    model, path = build(**changes), tmp_path / "model.ckpt"
    the_trainer = trainer(tmp_path)
    the_trainer.fit(model, data())
    the_trainer.save_checkpoint(path)
    return model, path


@pytest.mark.parametrize("schedule", ["local, full", MiddleFull(0.5), Interleave("full, local")], ids=str)
def test_a_checkpoint_is_plain_data_and_rebuilds_the_model(schedule: Any, tmp_path: Path) -> None:
    patterns = {"local": Causal() & Strided(block=8, local_blocks=2, stride=3), "full": Causal()}
    model, path = saved(tmp_path, schedule=schedule, patterns=patterns, lr_schedule=WSD(warmup=1))
    assert torch.load(path, weights_only=True)["lg"]["format"] == FORMAT
    again = HybridLM.from_checkpoint(str(path))
    assert again.patterns == patterns and again.schedule == model.schedule and again.lr_schedule == WSD(warmup=1)
    tokens = torch.randint(256, (2, 64))
    assert torch.equal(again(tokens), model(tokens))


@pytest.mark.parametrize("name", [n for n, e in EXAMPLES.items() if e.small.made_for in (None, 2, 4)])
def test_every_example_of_a_pattern_is_rebuilt_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    pattern = EXAMPLES[name].small
    shape = {**SHAPE, "num_kv_heads": pattern.made_for or 2}
    model = build(patterns={"local": pattern, "full": Causal()}, decoder=shape)
    model.configure_model()
    path = tmp_path / "model.ckpt"
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    assert HybridLM.from_checkpoint(str(path)).patterns["local"] == pattern


@pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint")
def test_training_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    _, path = saved(tmp_path)
    model = build()
    the_trainer = trainer(tmp_path, max_steps=5)
    the_trainer.fit(model, data(), ckpt_path=path, weights_only=True)
    assert the_trainer.global_step == 5


def test_a_checkpoint_of_a_later_format_or_of_something_else_is_refused(tmp_path: Path) -> None:
    _, path = saved(tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["lg"]["format"] = FORMAT + 1
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=rf"has format {FORMAT + 1}; this lg reads formats up to {FORMAT}"):
        HybridLM.from_checkpoint(str(path))
    del checkpoint["lg"]
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="no checkpoint of lg's"):
        HybridLM.from_checkpoint(str(path))


@pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint")
def test_a_checkpoint_of_another_configuration_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, path = saved(tmp_path)
    model = build(schedule="full, full")
    with caplog.at_level(logging.WARNING, "lg.models.hybrid"):
        trainer(tmp_path, max_steps=4).fit(model, data(), ckpt_path=path, weights_only=True)
    assert "other values of model.init_args: schedule was 'local, full', is 'full, full'\n" in caplog.text


@dataclass(frozen=True)
class Peek(Pattern):
    """Sees one key too many."""

    def sees(self, q: Any, k: Any, h: Any) -> Any:
        return k <= q + 1


@dataclass(frozen=True)
class InChunks(Pattern):
    """Sees all of its chunk, what is to come included, and nothing else."""

    chunk: int

    def sees(self, q: Any, k: Any, h: Any) -> Any:
        return q // self.chunk == k // self.chunk


class Plain(Pattern):
    """Its author forgot the decorator."""

    def sees(self, q: Any, k: Any, h: Any) -> Any:
        return k <= q


@dataclass(frozen=True)
class Halved(Pattern):
    """No predicate: positions are integers."""

    def sees(self, q: Any, k: Any, h: Any) -> Any:
        return k / 2 < q


def test_a_pattern_that_sees_the_answer_is_refused(tmp_path: Path) -> None:
    model = build(patterns={"local": Peek(), "full": Causal()})
    with pytest.raises(
        ValueError, match=r"model\.init_args\.patterns\.local: .*Peek\(\) lets every query see later keys"
    ):
        trainer(tmp_path).fit(model, data())


def test_targets_that_a_prefix_shows_are_left_out_of_the_loss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep = Keep()
    model = build(patterns={"local": PrefixLM(), "full": Causal()}, attention="gather")
    with caplog.at_level(logging.WARNING, "lg.models.hybrid"):
        trainer(tmp_path, callbacks=[keep]).fit(model, data(prefix=0.5))
    assert len([r for r in caplog.records if "targets that would leak" in r.message]) == 1
    assert all(math.isfinite(step["train/loss_nats"]) for step in keep.logged)

    tokens = torch.randint(256, (1, 64))
    batch = {"tokens": tokens, "targets": tokens.roll(-1, 1), "document_starts": [0, 24]}
    loss, num_targets = model._loss({**batch, "document_attributes": {"prefix": [10, 0]}})
    # Of a prefix of ten, the first nine queries see what they would predict.
    assert num_targets == 64 - 9
    changed = {**batch, "targets": batch["targets"].clone()}
    changed["targets"][0, :9] = 7
    again, _ = model._loss({**changed, "document_attributes": {"prefix": [10, 0]}})
    assert torch.equal(loss, again)
    with pytest.raises(ValueError, match=r"patterns\.local: .* asks for doc\.prefix, which the data does not tell"):
        model._loss(batch)
    with pytest.raises(ValueError, match=r"patterns\.local: .* asks for doc\.prefix.*data\.init_args\.prefix"):
        trainer(tmp_path).fit(build(patterns={"local": PrefixLM(), "full": Causal()}), data())
    with pytest.raises(ValueError, match=r"patterns\.local: PrefixLM\(\) lets every query see later keys"):
        model = build(patterns={"local": PrefixLM(), "full": Causal()})
        model._loss({**batch, "document_attributes": {"prefix": [24, 40]}})


def test_the_next_token_never_reaches_a_target_that_is_kept() -> None:
    """Changing a token changes no logits that are scored against it, in two layers that see ahead in chunks."""
    model = build(patterns={"local": InChunks(8), "full": InChunks(8)})
    tokens = torch.randint(256, (1, 64))
    documents = Documents(64)
    kept = model._without_leaks(tokens.roll(-1, 1), documents) != IGNORED
    assert kept[0].nonzero().flatten().tolist() == list(range(7, 64, 8))
    base = model(tokens)
    for query in range(63):
        other = tokens.clone()
        other[0, query + 1] += 1
        reached = not torch.equal(model(other)[0, query], base[0, query])
        assert reached != bool(kept[0, query])


def test_a_pattern_that_cannot_be_read_or_does_not_fit_names_its_key() -> None:
    with pytest.raises(ValueError, match=r"model\.init_args\.patterns\.local: Halved\.sees: `k / 2` is not allowed"):
        build(patterns={"local": Halved(), "full": Causal()})
    with pytest.raises(ValueError, match=r"patterns\.local: Plain is no dataclass.*@dataclass\(frozen=True\)"):
        build(patterns={"local": Plain(), "full": Causal()})
    with pytest.raises(ValueError, match=r"patterns\.local: .* made for 6 KV heads, but the decoder has \d"):
        build(patterns={"local": ShiftedGroups(group=8, num_kv_heads=6), "full": Causal()})


def test_a_training_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer\.max_steps: -1 .* is not allowed"):
        trainer(tmp_path, max_steps=-1, max_epochs=-1).fit(build(), data())


class TwoBytes(Bytes):
    @property
    def vocab_size(self) -> int:
        return 300


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vocab_size: 256 is not allowed; the tokenizer has 300 tokens"):
        trainer(tmp_path).fit(build(), data(tokenizer=TwoBytes()))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attention": "flesh"}, r"model\.init_args\.attention: 'flesh' is unknown; allowed are auto, dense"),
        ({"learning_rate": 0.0}, r"model\.init_args\.learning_rate: 0\.0"),
        ({"schedule": "local"}, r"model\.init_args\.schedule: .*layer 1 gets none"),
        ({"preset": "huge"}, r"model\.init_args\.preset"),
        ({"decoder": {"num_heads": 5, "num_kv_heads": 2}}, r"num_kv_heads: 2 is not allowed; it must divide num_heads"),
        ({"decoder": {"wide": 5}}, r"model\.init_args\.decoder.*wide"),
    ],
)
def test_bad_values_name_their_key(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build(**changes)
