"""`lg merge` averages models tensor by tensor, and a run begins with what it has written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lg.attention import Causal, Window
from lg.cli import main
from lg.data import RandomTokens
from lg.models.hybrid import HybridLM
from lg.models.pretrained import open_pretrained
from lg.models.pretrained.out import save

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
SMALL = {"num_layers": 2, "width": 32, "num_heads": 2, "num_kv_heads": 1}


def trained(path: Path, seed: int, **decoder: Any) -> HybridLM:
    torch.manual_seed(seed)
    module = HybridLM({"full": Causal(), "local": Window(8)}, "full, local", decoder={**SMALL, **decoder})
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, RandomTokens(64))
    trainer.save_checkpoint(path)
    return module


def by_hand(states: list[dict[str, torch.Tensor]], weights: list[float]) -> dict[str, Any]:
    return {
        name: sum(w * state[name].double().numpy() for w, state in zip(weights, states, strict=True))
        for name in states[0]
    }


@pytest.mark.parametrize("tied", [False, True])
def test_checkpoints(tied: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / f"{n}.ckpt" for n in range(3)]
    modules = [trained(path, n, tied_embeddings=tied) for n, path in enumerate(paths)]
    out = tmp_path / "out.ckpt"
    assert main(["merge", str(out), *map(str, paths), "--weights", "0.5,0.25,0.5"]) == 0
    assert capsys.readouterr().out.startswith("the weights are 1.25 in all, not 1\n")
    merged = HybridLM.from_checkpoint(str(out))
    want = by_hand([dict(module.state_dict()) for module in modules], [0.5, 0.25, 0.5])
    got = dict(merged.state_dict())
    assert got.keys() == want.keys()
    for name, tensor in got.items():
        np.testing.assert_array_equal(tensor.numpy(), want[name].astype(np.float32))

    # A run begins with it: the shape is the checkpoint's, and so are the weights.
    begun = HybridLM({"full": Causal()}, "2*full", pretrained=str(out), decoder={"rope_theta": 7e6})
    assert begun.decoder_config.width == 32
    for name, tensor in begun.model.state_dict().items():
        assert torch.equal(tensor, got[f"decoder.{name}"])
    assert open_pretrained(out).sees == (Causal(), Window(8))


def test_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for n, path in enumerate(paths):
        module = trained(tmp_path / f"{n}.ckpt", n, rope_theta=1e4 * (n + 1))
        weights = {name: tensor.bfloat16() for name, tensor in module.model.state_dict().items()}
        # The second one lies in other files.
        most = 5_000 if n == 0 else 10**9
        files = {"tokenizer.json": "{}"} if n == 0 else {}
        save(path, weights, module.decoder_config, [Causal(), Causal()], 64, most, files=files)
    out = tmp_path / "out"
    assert main(["merge", str(out), *map(str, paths)]) == 0
    said = f"rope_parameters.rope_theta is 10000.0 in {paths[0]} and 20000.0 in {paths[1]}; rope_theta is"
    assert said in capsys.readouterr().out
    assert sorted(file.name for file in out.iterdir()) == sorted(file.name for file in paths[0].iterdir())
    assert json.loads((out / "config.json").read_text()) == json.loads((paths[0] / "config.json").read_text())

    def read(path: Path) -> dict[str, torch.Tensor]:
        return {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}

    want = by_hand([read(path) for path in paths], [0.5, 0.5])
    for name, tensor in read(out).items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, torch.from_numpy(want[name]).bfloat16())
    assert open_pretrained(out).decoder() is not None


@pytest.mark.filterwarnings("ignore")
def test_lg_validates_and_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").mkdir()
    for n in range(9):
        Path("text", f"{n}.txt").write_text(f"{n} is a number. " * 40)
    config = {
        "weights_only": True,
        "model": {"class_path": "HybridLM", "init_args": {"patterns": {"full": "Causal"}, "schedule": "2*full"}},
        "data": {
            "class_path": "TextData",
            "init_args": {
                "source": {"class_path": "Folder", "init_args": {"path": "text"}}, "row_length": 128, "held_out": 0.3,
            },
        },
        "trainer": {
            "accelerator": "cpu", "max_steps": 1, "limit_val_batches": 1, "logger": False,
            "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
        },
    }  # fmt: skip
    Path("c.yaml").write_text(json.dumps(config))
    trained(Path("a.ckpt"), 0)
    trained(Path("b.ckpt"), 1)
    assert main(["merge", "out.ckpt", "a.ckpt", "b.ckpt"]) == 0
    words = ["--config", "c.yaml", "--model.pretrained=out.ckpt"]
    assert main(["validate", *words]) == 0
    told = capfd.readouterr().out
    assert main(["validate", *words, "--ckpt_path", "out.ckpt"]) == 0
    assert _loss(told) == _loss(capfd.readouterr().out)
    assert main(["fit", *words]) == 0
    assert main(["fit", *words, "--ckpt_path", "out.ckpt"]) == 2
    assert "ckpt_path: the checkpoint does not fit this run" in capfd.readouterr().err


def _loss(told: str) -> str:
    return next(line for line in told.splitlines() if "val/loss_nats" in line)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["out.ckpt", "a.ckpt"], "MODEL: 'a.ckpt' alone is not allowed; at least two"),
        (["out.ckpt", "a.ckpt", "x.ckpt"], "MODEL: 'x.ckpt' does not exist"),
        (["out.ckpt", "a.ckpt", "folder"], "MODEL: 'folder' has no config.json"),
        (["out", "a.ckpt", "a.ckpt"], "OUT: 'out' is not allowed; it must be a .ckpt file"),
        (["a.ckpt", "a.ckpt", "a.ckpt"], "OUT: 'a.ckpt' exists already"),
        (["out.ckpt", "a.ckpt", "a.ckpt", "--weights=1"], "--weights: '1' is not allowed; it must be 2 numbers"),
        (["out.ckpt", "a.ckpt", "a.ckpt", "--weights=1,nan"], "--weights: '1,nan' is not allowed"),
        (["out.ckpt", "a.ckpt", "half.ckpt"], "MODEL: 'half.ckpt' cannot be read"),
        (["out.ckpt", "a.ckpt", "other.ckpt"], "MODEL: 'other.ckpt': this is no checkpoint of lg's"),
        (
            ["out.ckpt", "a.ckpt", "wide.ckpt"],
            "decoder.blocks.0.mlp.down_proj.weight is [32, 64] in a.ckpt and [32, 80] in wide.ckpt; decoder",
        ),
    ],
)
def test_refusals(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    trained(Path("a.ckpt"), 0, ffn_width=64)
    trained(Path("wide.ckpt"), 0, ffn_width=80)
    Path("folder").mkdir()
    Path("half.ckpt").write_bytes(Path("a.ckpt").read_bytes()[:5000])
    torch.save({"state_dict": {}}, "other.ckpt")
    before = sorted(Path().iterdir())
    capsys.readouterr()
    assert main(["merge", *words]) == 2
    assert said in capsys.readouterr().err
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("config", "said"),
    [("{no", "config.json' is no JSON: "), ("[1]", "config.json' holds no object; it must map keys")],
)
def test_a_configuration_that_cannot_be_read_is_refused_first(
    config: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    module = trained(tmp_path / "a.ckpt", 0)
    for path in paths:
        save(path, module.plain_weights, module.decoder_config, [Causal(), Causal()], 64)
    (paths[1] / "config.json").write_text(config)
    before = sorted(tmp_path.iterdir())
    capsys.readouterr()
    assert main(["merge", str(tmp_path / "out"), *map(str, paths)]) == 2
    assert f"lg merge: MODEL: '{paths[1]}/{said}" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
