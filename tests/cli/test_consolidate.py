"""`lg consolidate` makes one file of a sharded checkpoint, from which one device trains on as many would."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lg.cli import main
from lg.models.hybrid import HybridLM
from lg.testing import run_ranks

CONFIG = {
    "model": {
        "init_args": {"lr_schedule": {"class_path": "lg.models.learning_rate.Constant", "init_args": {"warmup": 0}}}
    },
    "data": {"init_args": {"source": {"class_path": "Folder", "init_args": {"path": "texts"}}, "row_length": 64}},
    "trainer": {
        "accelerator": "cpu", "devices": 1, "max_steps": 2, "val_check_interval": 2, "limit_val_batches": 1,
        "log_every_n_steps": 1, "enable_progress_bar": False, "callbacks": [{"class_path": "Checkpoints"}],
        "accumulate_grad_batches": 2,
    },
}  # fmt: skip
SHARDED = ['--trainer.strategy={"class_path": "lg.parallel.HybridStrategy"}', "--trainer.devices=2"]
NAME = "step=00000002.ckpt"


def fitted(rank: int, folder: Path) -> None:
    assert fit(folder, "two", *SHARDED, "--trainer.accumulate_grad_batches=1") == 0


def fit(folder: Path, name: str, *options: str) -> int:
    # Where the run's paths lead from.
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        where = [f"--trainer.default_root_dir={name}", "--trainer.logger=false"]
        return main(["fit", "--config=run.yaml", *where, *options])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """A folder with a configuration, and two steps of two ranks."""
    folder = tmp_path_factory.mktemp("consolidate")
    (folder / "texts").mkdir()
    for number in range(12):
        (folder / "texts" / f"{number}.txt").write_text(f"{number}: the quick brown fox. " * 30)
    (folder / "run.yaml").write_text(yaml.safe_dump({"base": str(root / "configs" / "hybrid.yaml"), **CONFIG}))
    run_ranks(fitted, 2, folder)
    return folder


@pytest.mark.filterwarnings("ignore:the checkpoint holds the random states of 2 ranks")
def test_one_device_goes_on_from_the_file(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    checkpoint = f"two/checkpoints/{NAME}"
    more = "--trainer.max_steps=4"
    assert fit(trained, "straight", more) == 0
    assert fit(trained, "one", more, f"--ckpt_path={checkpoint}") == 2
    told = capsys.readouterr().err
    assert f"without it one file is needed: lg consolidate {checkpoint}" in told
    with pytest.raises(ValueError, match=f"`lg consolidate {checkpoint}` makes one file of it"):
        HybridLM.from_checkpoint(checkpoint)

    assert main(["consolidate", checkpoint]) == 0
    assert "reading step=00000002.ckpt" in capsys.readouterr().err
    whole = "two/checkpoints/step=00000002.whole.ckpt"
    assert sorted(path.name for path in (trained / "two" / "checkpoints").iterdir()) == [NAME, Path(whole).name]
    assert HybridLM.from_checkpoint(whole).decoder is not None
    assert main(["validate", "--config=run.yaml", f"--ckpt_path={whole}", "--trainer.logger=false"]) == 0
    assert fit(trained, "one", more, f"--ckpt_path={whole}") == 0

    saved = [
        torch.load(Path(name, "checkpoints", "step=00000004.ckpt"), weights_only=True) for name in ("straight", "one")
    ]
    for key in ("state_dict", "optimizer_states"):
        straight, one = (content[key] for content in saved)
        torch.testing.assert_close(one, straight, rtol=1e-3, atol=1e-5)
    assert saved[0]["lr_schedulers"] == saved[1]["lr_schedulers"]
    for key in ("epoch", "rows"):
        assert saved[0]["TextData"]["train"][key] == saved[1]["TextData"]["train"][key]
    assert main(["consolidate", checkpoint]) == 2
    assert "OUT: 'two/checkpoints/step=00000002.whole.ckpt' exists already" in capsys.readouterr().err


def test_what_is_no_whole_folder_is_refused_and_nothing_is_left(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained / "two" / "checkpoints" / NAME, "a.ckpt")
    shutil.copytree("a.ckpt", ".a.ckpt.part")
    Path("file.ckpt").touch()
    part = Path("a.ckpt", "__1_0.distcp").read_bytes()
    Path("a.ckpt", "__1_0.distcp").unlink()
    for words, told in (
        (["gone"], "FOLDER: 'gone' does not exist"),
        (["file.ckpt"], "FOLDER: 'file.ckpt' is one file already"),
        ([".a.ckpt.part"], "FOLDER: '.a.ckpt.part' was never finished"),
        (["a.ckpt"], "FOLDER: 'a.ckpt' is not whole: __1_0.distcp is missing or too short"),
        (["a.ckpt", "b.ckpt", "c.ckpt"], "'c.ckpt' is not allowed"),
        (["--out", "a.ckpt"], "'--out' is not allowed; `lg consolidate` takes no options"),
    ):
        assert main(["consolidate", *words]) == 2
        assert told in capsys.readouterr().err
    Path("a.ckpt", "__1_0.distcp").write_bytes(part)
    for out, told in (
        ("file.ckpt", "OUT: 'file.ckpt' exists already"),
        ("b.pt", "OUT: 'b.pt' is not allowed; it must be a .ckpt file in a folder that exists"),
        ("gone/b.ckpt", "OUT: 'gone/b.ckpt' is not allowed"),
    ):
        assert main(["consolidate", "a.ckpt", out]) == 2
        assert told in capsys.readouterr().err
    Path("a.ckpt", "__1_0.distcp").write_bytes(part[:100] + bytes(len(part) - 100))
    assert main(["consolidate", "a.ckpt"]) == 2
    assert "FOLDER: 'a.ckpt' cannot be read: " in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.ckpt.part", "a.ckpt", "file.ckpt"]


def test_help_comes_before_any_heavy_import(root: Path) -> None:
    code = "import sys; from lg.cli import main; main(['consolidate', '--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: lg consolidate FOLDER")
    assert not {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()} & {"torch", "lightning", "numpy"}
