"""Every configuration that is shipped trains, saves, and is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from lg.cli import main

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
# The base is a part, not a run of its own: it names no patterns.
RUNS = [path for path in CONFIGS if path.stem != "base"]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options that make a run of seconds of any configuration, in a folder of its own."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(8):
        (texts / f"{number}.txt").write_text(f"{number}: the quick brown fox. " * 60)
    monkeypatch.chdir(tmp_path)
    return [
        '--data.source={"class_path": "Folder", "init_args": {"path": "texts"}}',
        "--data.row_length=512",
        "--trainer.accelerator=cpu",
        "--trainer.max_steps=2",
        "--trainer.val_check_interval=1",
        "--trainer.limit_val_batches=1",
        "--trainer.log_every_n_steps=1",
    ]


def test_the_folder_is_not_empty() -> None:
    assert "hybrid" in [path.stem for path in RUNS]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_config_trains(path: Path, tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", str(path), *tiny]) == 0
    logs = Path("logs", path.stem)
    assert list(logs.rglob("*.ckpt")), "each config logs under its own name"
    assert "what to type next:" in capsys.readouterr().out


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_says_what_it_is_for(path: Path) -> None:
    assert path.read_text().startswith("# ")
