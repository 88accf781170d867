"""TextData builds from YAML, splits by document, and refuses what it cannot do."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel

from lg.data import Bytes, Document, Folder, Source, Stdlib, TextData
from lg.data.datamodule import _split


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


def test_sides_share_no_document_and_lose_none() -> None:
    data = TextData(Written(), row_length=50, held_out=0.2)
    data.setup()
    sides = [set(rows.tokens_N.tolist()) - {0} for rows in (data.train_rows, data.val_rows)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(range(1, 61))
    assert 5 <= len(sides[1]) <= 20


def test_a_document_keeps_its_side_when_others_come() -> None:
    held = {d.name for d in _split(Written(60).documents(), 0.2)[1]}
    assert held == {d.name for d in _split(Written(100).documents(), 0.2)[1]} & {f"d{i}" for i in range(60)}
    assert held < {d.name for d in _split(Written(60).documents(), 0.4)[1]}
    # Written down, so that a change of hash, which would mix old training text in, is noticed.
    assert "logging" in {d.name for d in _split([Document("logging", b""), Document("re", b"")], 0.05)[1]}


@pytest.mark.parametrize("held_out", [1e-9, 1 - 1e-9])
def test_each_side_has_a_document(held_out: float) -> None:
    train, held = _split(Written(3).documents(), held_out)
    assert len(train) + len(held) == 3
    assert train and held


def test_held_out_rows_do_not_depend_on_the_seed() -> None:
    first, second = (TextData(Written(), row_length=50, seed=seed) for seed in (0, 1))
    first.setup()
    second.setup()
    assert torch.equal(first.val_rows.tokens_N, second.val_rows.tokens_N)
    assert not torch.equal(first.train_rows.tokens_N, second.train_rows.tokens_N)


def test_loaders() -> None:
    data = TextData(Written(), row_length=70, batch_size=4, held_out=0.2)
    data.setup("fit")
    data.setup("validate")
    loader = data.train_dataloader()
    epochs = [[batch["tokens"] for batch in loader] for _ in range(2)]
    assert len(epochs[0]) == len(data.train_rows) // 4
    assert all(tokens.shape == (4, 70) for tokens in epochs[0])
    assert not torch.equal(torch.stack(epochs[0]), torch.stack(epochs[1]))
    again = [batch["tokens"] for batch in data.train_dataloader()]
    assert torch.equal(torch.stack(epochs[0]), torch.stack(again))
    val = [batch["tokens"] for batch in data.val_dataloader()]
    assert sum(map(len, val)) == len(data.val_rows)
    assert torch.equal(val[0][1], data.val_rows[1]["tokens"])


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
    assert batch["document_attributes"] == {
        "prefix": [(end - start) // 2 for start, end in zip(batch["document_starts"], ends, strict=True)]
    }
    plain = TextData(Written(), row_length=70, batch_size=2)
    plain.setup()
    assert next(iter(plain.train_dataloader()))["document_attributes"] == {}  # type: ignore[call-overload]


def test_default_data(default: TextData) -> None:
    assert default.vocab_size == TextData().vocab_size == 256
    assert default.bytes_per_token == 1.0
    assert len(default.train_rows) > 2000
    assert len(default.val_rows) > 20
    assert default.train_rows.row_length == 4096


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
        (
            Written(2, 50),
            {"row_length": 52},
            r"data\.init_args\.held_out: 0\.05 holds out too little, 1 doc",
        ),
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
