"""TextData builds from YAML, splits by document, and refuses what it cannot do."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel

from lg.data import BestFit, Bytes, Cut, Document, Folder, Mixture, PackedRows, Source, Stdlib, TextData, Upsample
from lg.data.corpus import place
from lg.data.datamodule import split


class Written(Source):
    """Documents of known names and lengths; its dotted path is how a user would name it."""

    def __init__(self, number: int = 60, length: int = 100) -> None:
        self.number = number
        self.length = length

    def documents(self) -> Any:
        return (Document(f"d{i}", bytes([i + 1]) * self.length) for i in range(self.number))


def parse(tmp_path: Path, yaml: str, *options: str) -> TextData:
    """What the command line builds from a config file and options."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml)
    with warnings.catch_warnings():
        # That pytest has arguments of its own, and Lightning's own use of jsonargparse 4.
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        cli = LightningCLI(
            BoringModel,
            LightningDataModule,
            subclass_mode_data=True,
            run=False,
            save_config_callback=None,
            seed_everything_default=False,
            args=["--config", str(config), *options],
            trainer_defaults={"logger": False, "accelerator": "cpu"},
        )
    assert isinstance(cli.datamodule, TextData)
    return cli.datamodule


@pytest.fixture(scope="module")
def default() -> TextData:
    data = TextData()
    data.setup()
    return data


def test_from_yaml_by_short_name(tmp_path: Path) -> None:
    yaml = "data: {class_path: TextData, init_args: {source: Stdlib, row_length: 4096}}"
    data = parse(tmp_path, yaml, "--data.row_length=128", "--data.batch_size", "3")
    assert data.source == Stdlib()
    assert isinstance(data.tokenizer, Bytes)
    assert (data.row_length, data.batch_size) == (128, 3)


def test_from_yaml_with_arguments(tmp_path: Path) -> None:
    yaml = """
data:
  class_path: TextData
  init_args:
    source: {class_path: Folder, init_args: {path: x, suffixes: [.a, .b]}}
    tokenizer: Bytes
"""
    assert parse(tmp_path, yaml).source == Folder("x", suffixes=(".a", ".b"))
    data = parse(tmp_path, yaml, "--data.source.path=y")
    assert data.source == Folder("y", suffixes=(".a", ".b"))


def test_defaults_need_no_init_args(tmp_path: Path) -> None:
    data = parse(tmp_path, "data: TextData", "--data.source=Stdlib", "--data.source.exclude=[test]")
    assert data.source == Stdlib(exclude=("test",))


def test_a_source_of_ones_own_by_its_dotted_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "from lg.data import Document, Source",
        "class Poems(Source):",
        "    def __init__(self, number: int):",
        "        self.number = number",
        "    def documents(self):",
        "        return (Document(str(i), b'a rose is ' * 50) for i in range(self.number))",
    ]
    (tmp_path / "own_poems.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    source = "{class_path: own_poems.Poems, init_args: {number: 40}}"
    yaml = f"data: {{class_path: TextData, init_args: {{row_length: 64, source: {source}}}}}"
    data = parse(tmp_path, yaml)
    data.setup()
    assert data.train_rows.num_tokens + data.val_rows.num_tokens == 40 * 501


def contents(rows: PackedRows) -> set[int]:
    """Every byte that a document is made of; `Written` has one for each document."""
    return {int(token) for text in rows.texts() for token in text} - {0}


def test_sides_share_no_document_and_lose_none() -> None:
    data = TextData(Written(), row_length=50, held_out=0.2)
    data.setup()
    sides = [contents(rows) for rows in (data.train_rows, data.val_rows)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(range(1, 61))
    assert 5 <= len(sides[1]) <= 20


def held(names: list[str], share: float) -> set[str]:
    _, numbers = split([np.array([place(name) for name in names])], share)
    return {names[number] for number in numbers[0]}


def test_a_document_keeps_its_side_when_others_come() -> None:
    few, many = [f"d{n}" for n in range(60)], [f"d{n}" for n in range(100)]
    assert held(few, 0.2) == held(many, 0.2) & set(few)
    assert held(few, 0.2) < held(few, 0.4)
    # Written down, so that a change of hash, which would mix old training text in, is noticed.
    assert "logging" in held(["logging", "re"], 0.05)


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_each_side_has_a_document(share: float) -> None:
    train, held = split([np.array([0.5, 0.1]), np.array([0.9])], share)
    assert sum(map(len, train)) + sum(map(len, held)) == 3
    assert sum(map(len, train)) and sum(map(len, held))


def test_held_out_rows_do_not_depend_on_the_seed() -> None:
    first, second = (TextData(Written(), row_length=50, seed=seed) for seed in (0, 1))
    first.setup()
    second.setup()
    assert torch.equal(first.val_rows[0]["tokens"], second.val_rows[0]["tokens"])
    assert not torch.equal(first.train_rows[0]["tokens"], second.train_rows[0]["tokens"])


def test_loaders() -> None:
    data = TextData(Written(), row_length=70, batch_size=4, held_out=0.2)
    data.setup("fit")
    data.setup("validate")
    epochs = []
    for _ in range(2):
        batches = []
        for batch in data.train_dataloader():
            data.train_dataloader().consume()
            batches.append(batch["tokens"])
        epochs.append(torch.stack(batches))
    assert len(epochs[0]) == len(data.train_rows) // 4
    assert epochs[0].shape[1:] == (4, 70)
    assert not torch.equal(*epochs)
    again = TextData(Written(), row_length=70, batch_size=4, held_out=0.2, num_workers=1)
    again.setup("fit")
    assert torch.equal(epochs[0], torch.stack([batch["tokens"] for batch in again.train_dataloader()]))
    val = [batch["tokens"] for batch in data.val_dataloader()]
    assert sum(map(len, val)) == len(data.val_rows)
    assert torch.equal(val[0][1], data.val_rows[1]["tokens"])


def test_ranks_have_as_many_batches_and_share_every_row() -> None:
    def of_rank(rank: int) -> TextData:
        data = TextData(Written(), row_length=70, batch_size=2, held_out=0.2)
        strategy = SimpleNamespace(distributed_sampler_kwargs={"num_replicas": 3, "rank": rank})
        data.trainer = SimpleNamespace(
            strategy=strategy, accumulate_grad_batches=1, max_epochs=-1, lightning_module=None
        )
        data.setup()
        return data

    ranks = [of_rank(rank) for rank in range(3)]
    train = [[row.tolist() for batch in data.train_dataloader() for row in batch["tokens"]] for data in ranks]
    assert len({len(rows) for rows in train}) == 1
    all_rows = [
        data.train_rows[index]["tokens"].tolist() for data in ranks[:1] for index in range(len(data.train_rows))
    ]
    assert sorted(row for rows in train for row in rows) == sorted(all_rows[: sum(map(len, train))])
    val = [[batch["tokens"] for batch in data.val_dataloader()] for data in ranks]
    assert len({len(batches) for batches in val}) == 1
    held = [row.tolist() for batches in val for batch in batches for row in batch]
    whole = [ranks[0].val_rows[index]["tokens"].tolist() for index in range(len(ranks[0].val_rows))]
    assert [row for row in sorted(held) if any(row)] == sorted(whole)


def test_sources_are_mixed_by_share_and_by_length() -> None:
    sources = {"short": Written(200, 50), "long": Written(100, 400)}
    data = TextData(Mixture(sources, {"short": 3.0, "long": 1.0}), row_length=64, held_out=0.1)
    data.setup()
    lengths = [len(text) for text in data.train_rows.texts()]
    assert lengths.count(51) * 51 == pytest.approx(3 * lengths.count(401) * 401, rel=0.3)
    data = TextData(Mixture(sources), row_length=64, held_out=0.1, upsample=Upsample(above=100, share=0.9))
    data.setup()
    # Each source is long throughout or short throughout: within it nothing can be raised.
    assert {text.tobytes() for text in data.train_rows.texts()} == {
        text.tobytes() for text in TextDataOf(sources).texts()
    }


def TextDataOf(sources: dict[str, Source]) -> PackedRows:
    data = TextData(Mixture(sources), row_length=64, held_out=0.1)
    data.setup()
    return data.train_rows


def test_packing_and_alignment() -> None:
    cut = TextData(Written(60, 100), row_length=128, align=16)
    fit = TextData(Written(60, 100), row_length=128, align=16, packing=BestFit())
    for data in (cut, fit):
        data.setup()
        assert data.train_rows.documents_D2.shape[1] == 2
        for index in range(len(data.train_rows)):
            row = data.train_rows[index]
            tokens = row["tokens"].tolist()
            for start in row["document_starts"]:
                assert start % 16 == 0 or tokens[start] == 0
    assert cut.train_rows.padding_share < fit.train_rows.padding_share == pytest.approx(1 - 101 / 128)
    assert isinstance(cut.packing, Cut)


def test_align_follows_the_schedule() -> None:
    data = TextData(Written(), row_length=96)
    data.trainer = SimpleNamespace(
        strategy=None, accumulate_grad_batches=1, max_epochs=-1, lightning_module=SimpleNamespace(grid=64)
    )
    with pytest.raises(ValueError, match=r"row_length: 96 is not allowed; it must be a multiple of 64 \(data"):
        data.setup()
    # Without a mask no document is left for a pattern to count from, and nothing is filled up.
    unmasked = TextData(Written(), row_length=96, document_mask=False)
    unmasked.trainer = data.trainer
    unmasked.setup()
    assert unmasked.train_rows[0]["num_align"] == 0


def test_document_starts_stay_on_the_host() -> None:
    data = TextData(Written(), row_length=70, batch_size=2)
    data.setup()
    batch: Any = next(iter(data.train_dataloader()))
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved["tokens"].device.type == "meta"
    assert moved["document_starts"] == batch["document_starts"]
    assert all(type(start) is int for start in moved["document_starts"])


def test_a_share_of_each_document_is_told_as_its_prefix() -> None:
    data = TextData(Written(), row_length=70, batch_size=2, prefix=0.5)
    data.setup()
    batch: Any = next(iter(data.train_dataloader()))
    ends = [*batch["document_starts"][1:], 140]
    assert len(batch["document_starts"]) > 2
    tokens = batch["tokens"].flatten()
    bounds = zip(batch["document_starts"], ends, strict=True)
    # Padding, all NUL, is a document without a prefix.
    want = [(end - start) // 2 if tokens[start:end].any() else 0 for start, end in bounds]
    assert batch["document_attributes"] == {"prefix": want}
    plain = TextData(Written(), row_length=70, batch_size=2)
    plain.setup()
    assert next(iter(plain.train_dataloader()))["document_attributes"] == {}


def test_default_data(default: TextData) -> None:
    assert default.vocab_size == TextData().vocab_size == 256
    assert default.bytes_per_token == 1.0
    assert len(default.train_rows) > 2000
    assert len(default.val_rows) > 20
    assert default.train_rows.shape.length == 4096


def test_before_setup() -> None:
    with pytest.raises(RuntimeError, match="no rows before setup"):
        TextData().train_rows  # noqa: B018


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("row_length", 0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("num_workers", -1, "at least 0"),
        ("seed", -1, "at least 0"),
        ("held_out", 0.0, "above 0 and below 1"),
        ("held_out", 1.0, "above 0 and below 1"),
        ("held_out_rows", 0, "at least 1"),
        ("processes", 0, "at least 1"),
        ("align", 0, "at least 1"),
        ("block", 0, "at least 1"),
        ("prefix", -0.1, "from 0 to 1"),
        ("prefix", 1.1, "from 0 to 1"),
    ],
)
def test_numbers_out_of_range(name: str, value: Any, allowed: str) -> None:
    message = rf"^data\.init_args\.{name}: {value} is not allowed; it must be .*{allowed}$"
    with pytest.raises(ValueError, match=message):
        TextData(**{name: value})


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (Written(8), {"row_length": 90, "batch_size": 50}, r"data\.init_args\.batch_size: 50 is"),
        (Written(1), {}, r"data\.init_args\.source: 1 documents are not enough"),
        (Folder("nowhere"), {}, r"data\.init_args\.source\.init_args\.path: 'nowhere'"),
    ],
)
def test_too_little_text(source: Source, options: dict[str, int], message: str) -> None:
    data = TextData(source, **options)
    for stage in ("fit", "validate"):  # the second call must not find half a set-up
        with pytest.raises(ValueError, match=message):
            data.setup(stage)
