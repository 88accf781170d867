"""`lg probe` ranks layers, goes on where it was stopped, and says what it cannot do."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from lg.attention import Causal, PerHead, SinkWindow
from lg.attention.schedule import Measured, written
from lg.cli import main, probe_run, probe_told
from lg.evaluation.needle import _NAMES
from lg.models.hybrid import HybridLM

tokenizers = pytest.importorskip("tokenizers")

CODE, VOCAB, LAYERS = 64, 224, 3
# Layer 0 writes beside each token what came before it, and layer 1 says what came after the same token before.
SHAPE = {
    "num_layers": LAYERS, "width": 4 * CODE, "num_heads": 1, "num_kv_heads": 1, "head_width": CODE, "ffn_width": 8,
    "vocab_size": VOCAB, "rope_theta": 2.0, "qkv_bias": True, "no_rope_layers": [1], "qk_norm": False,
    "tied_embeddings": False,
}  # fmt: skip
WORDS = [f"w{number}" for number in range(150)]


def saved(path: Path, retrieves: bool) -> None:
    """A checkpoint whose layer 1 looks far, or whose layers do nothing."""
    module = HybridLM({"full": Causal()}, f"{LAYERS}*full", decoder=SHAPE)
    decoder = module.model
    codes = torch.randn(VOCAB, CODE, generator=torch.Generator().manual_seed(0))
    codes = codes / codes.norm(dim=1, keepdim=True)
    one = torch.eye(CODE)
    angles = 2.0 ** (-torch.arange(CODE // 2) * 2 / CODE)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        decoder.embedding.weight[:, :CODE] = codes
        decoder.embedding.weight[:, 3 * CODE :] = codes[-1] / 2
        decoder.head.weight[:, 3 * CODE :] = 10 * codes
        for layer in (0, 2):
            mixer: Any = decoder.blocks[layer].mixer
            mixer.k_proj.bias[: CODE // 2] = 10.0
            mixer.q_proj.bias[:] = 10 * torch.cat((angles.cos(), -angles.sin()))
        before, far = (decoder.blocks[layer].mixer for layer in (0, 1))
        before.v_proj.weight[:, :CODE] = far.v_proj.weight[:, :CODE] = one
        before.o_proj.weight[CODE : 2 * CODE] = one
        far.q_proj.weight[:, :CODE], far.k_proj.weight[:, CODE : 2 * CODE] = 40 * one, 10 * one
        if retrieves:
            far.o_proj.weight[3 * CODE :] = one
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, its tokenizer and texts."""
    monkeypatch.chdir(tmp_path)
    leads = [f"\nThe magic number of {name} is " for name in _NAMES]
    names = ["[UNK]", "</s>", " ", "\n", ".\n", ".", *"0123456789", *leads, *WORDS]
    assert len(names) <= VOCAB - 1
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="[UNK]")
    )
    found = tokenizers.Regex(r"\nThe magic number of [a-z]+ is |\.\n|[a-z][a-z0-9]*|.")
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(found, "isolated")
    tokenizer.save("tokenizer.json")
    Path("texts").mkdir()
    for number in range(3):
        words = random.Random(number).sample(WORDS, len(WORDS))
        Path("texts", f"{number}.txt").write_text("".join(f"{word} " for word in words))
    saved(Path("model.ckpt"), retrieves=True)
    return tmp_path


def command(**changes: str) -> list[str]:
    given = {
        "model": "model.ckpt", "data": "texts", "tokenizer": "tokenizer.json", "measures": "mass,needle,gates",
        "length": "256", "window": "32", "texts": "2", "questions": "3", "steps": "30", **changes,
    }  # fmt: skip
    return ["probe", *(f"--{name}={value}" for name, value in given.items())]


@pytest.mark.usefixtures("here")
def test_scores_picture_and_a_schedule(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(full_layers="1")) == 0
    told = capsys.readouterr().out
    found = json.loads(Path("probe.json").read_text())
    names = ["mass", "needle_one_out", "needle_one_in", "needle_greedy", "gates"]
    assert list(found["measures"]) == names and found["refused"] == {}
    for name in names:
        assert found["measures"][name]["sets"][0] == [1], name
        assert written(Measured("probe.json", full_layers=1, measure=name).layers(LAYERS)) == "local, full, local"
    assert "needle_greedy" in told and "1 full: 1 " in told
    with Image.open("probe.png") as picture:
        assert min(picture.size) > 200
    # The lines that are printed build the model, and what it saves needs no scores.
    given = yaml.safe_load(told[told.index("model:\n") :])["model"]["init_args"]
    assert given["schedule"]["init_args"] == {"scores": "probe.json", "full_layers": 1, "measure": "needle_greedy"}
    patterns = {"full": Causal(), "local": SinkWindow(**given["patterns"]["local"]["init_args"])}
    module = HybridLM(patterns, Measured(**given["schedule"]["init_args"]), decoder={"num_layers": LAYERS})
    assert module.schedule == ["local", "full", "local"] and module.config["schedule"] == "local, full, local"
    assert not Path("probe.partial.json").exists()


@pytest.mark.gpu
@pytest.mark.usefixtures("here")
def test_on_a_gpu() -> None:
    given = command(measures="mass,needle,context,gates,needle_adapted", full_layers="1", sets="2", adapt_steps="2")
    assert main([*given, "--device=cuda"]) == 0
    found = json.loads(Path("probe.json").read_text())
    assert set(found["refused"]) <= {"context_one_out", "context_one_in", "context_greedy"}
    for name in ("mass", "needle_one_out", "needle_one_in", "needle_greedy", "gates"):
        assert found["measures"][name]["sets"][0] == [1], name


@pytest.mark.usefixtures("here")
def test_full_heads_are_printed_as_patterns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(measures="mass", full_heads="1")) == 0
    told = capsys.readouterr().out
    given = yaml.safe_load(told[told.index("model:\n") :])["model"]["init_args"]
    assert given["schedule"] == "local, full, local"
    assert given["patterns"]["local"]["init_args"] == {"window": 32, "sinks": 4}


def test_full_layers_of_a_hybrid_see_what_they_saw() -> None:
    found = {"mass": {"sets": [[1], [0, 1], [0, 1, 2]]}}
    sees = [SinkWindow(window=64), Causal(), PerHead((Causal(), SinkWindow(window=64)), (0, 1))]

    def given(num_full: int) -> dict[str, Any]:
        text = probe_told.schedule(found, num_full, Path("probe.json"), SinkWindow(window=8), sees)
        told: dict[str, Any] = yaml.safe_load(text)["model"]["init_args"]
        return told

    one, all_of_them = given(1), given(3)
    assert one["patterns"]["full"] == {"class_path": "Causal"}
    assert one["schedule"]["init_args"] == {"scores": "probe.json", "full_layers": 1, "measure": "mass"}
    assert all_of_them["schedule"] == "full, full_2, full_3"
    assert all_of_them["patterns"]["full"] == {"class_path": "SinkWindow", "init_args": {"window": 64, "sinks": 4}}
    assert all_of_them["patterns"]["full_2"] == {"class_path": "Causal"}
    assert all_of_them["patterns"]["full_3"]["init_args"]["heads"] == [0, 1]


@pytest.mark.usefixtures("here")
def test_full_heads_of_a_hybrid_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    module = HybridLM({"full": Causal(), "local": SinkWindow(8)}, "2*full, local", decoder=SHAPE)
    checkpoint: dict[str, Any] = {"state_dict": module.model.state_dict(prefix="decoder.")}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, "hybrid.ckpt")
    assert main(command(model="hybrid.ckpt", measures="mass", full_heads="1")) == 2
    assert "--full_heads: 1 is not allowed; layers of the model see different keys (Causal(), " in (
        capsys.readouterr().err
    )


@pytest.mark.usefixtures("here")
def test_a_probe_that_was_stopped_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(out="whole.json", measures="mass,needle")) == 0
    write, count = probe_run.write, 0

    def stopped(path: Path, content: bytes, key: str) -> None:
        nonlocal count
        count += 1
        write(path, content, key)
        if count == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(probe_run, "write", stopped)
    assert main(command(measures="mass,needle")) == 130
    assert "goes on from what was measured" in capsys.readouterr().err
    assert len(json.loads(Path("probe.partial.json").read_text())["units"]) == 5
    # Not with other settings.
    assert main(command(measures="mass,needle", window="40")) == 2
    assert "of a probe that was stopped, of another window; remove it" in capsys.readouterr().err
    assert main(command(measures="mass,needle")) == 0
    # The whole took one write a unit, and two for what was found.
    whole, found = (json.loads(Path(name).read_text())["measures"] for name in ("whole.json", "probe.json"))
    for told in (*whole.values(), *found.values()):
        told.pop("seconds")
    assert found == whole


@pytest.mark.usefixtures("here")
def test_two_processes_and_sets_that_are_trained(capsys: pytest.CaptureFixture[str]) -> None:
    given = {"measures": "mass,needle,needle_adapted", "full_layers": "2", "sets": "3", "adapt_steps": "1"}
    assert main(command(**given)) == 0
    told = capsys.readouterr()
    # Three sets, then two; beside them all layers and none.
    assert "needle_adapted, up to 87 passes, 22,272 tokens" in told.err
    found = json.loads(Path("probe.json").read_text())
    assert "measure: needle_adapted}" in told.out
    nothing, chosen = found["measures"]["needle_adapted"]["sets"]
    assert nothing is None and len(chosen) == 2 and 1 in chosen
    for builder in (
        Measured("probe.json", 2, None, "needle_adapted"),
        Measured("probe.json", None, 0.9, "needle_adapted"),
    ):
        assert [layer for layer, name in enumerate(builder.layers(LAYERS)) if name == "full"] == chosen
    with pytest.raises(
        ValueError, match=r"full_layers: 1 is not allowed; needle_adapted in 'probe.json' was asked for 2 "
    ):
        Measured("probe.json", 1, measure="needle_adapted").layers(LAYERS)
    assert main(command(**given, devices="2", out="shared.json")) == 0
    shared = json.loads(Path("shared.json").read_text())
    for each in (*found["measures"].values(), *shared["measures"].values()):
        each.pop("seconds")
    assert shared == found


@pytest.mark.usefixtures("here")
def test_a_model_that_retrieves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    saved(Path("blind.ckpt"), retrieves=False)
    assert main(command(model="blind.ckpt", measures="needle,gates")) == 2
    told = capsys.readouterr()
    assert told.out.count("the model gains 0.000 nats a token on needle with all layers full and 0.000 with none") == 4
    assert "ranks no layer of this model" in told.err and not Path("probe.json").exists()
    # What can be measured still is.
    assert main(command(model="blind.ckpt", measures="mass,gates", out="some.json")) == 0
    found = json.loads(Path("some.json").read_text())
    assert list(found["measures"]) == ["mass"] and list(found["refused"]) == ["gates"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "other.ckpt"}, "--model: 'other.ckpt' does not exist"),
        ({"layers": "4"}, "--layers: 4 is not allowed; the model has 3 layers"),
        ({"full_layers": "9"}, "--full_layers: 9 is not allowed; the model has 3 layers"),
        ({"full_layers": "3", "layers": "2"}, "--full_layers: 3 is not allowed with --layers 2, up to which greedy"),
        ({"full_heads": "4"}, "--full_heads: 4 is not allowed; the model has 3 KV heads"),
        ({"full_heads": "2", "measures": "needle"}, "--measures: 'needle' tells nothing of heads"),
        ({"measures": "mas"}, "--measures: 'mas' is not known; allowed: mass, gates, needle, context"),
        ({"window": "200"}, "--window: 200 is not allowed with 4 sinks in texts of 256 tokens"),
        ({"length": "1K"}, "--data: 'texts' has no document of 1025 tokens"),
        ({"tokenizer": "bytes"}, "--tokenizer: it has ids up to 255, and the model 0 to 223"),
        ({"data": "nowhere"}, "'nowhere' is not a text that lg can fetch"),
        ({"steps": "few"}, "--steps: 'few' is not allowed"),
        ({"out": "there/probe.json"}, "--out: 'there/probe.json' is not allowed"),
        ({"device": "tpu"}, "--device: 'tpu' is not allowed"),
        ({"device": "cuda:1", "devices": "2"}, "--devices: 2 is not allowed with --device cuda:1, which is one"),
        ({"devices": "all"}, "--devices: 'all' is not allowed"),
        ({"measures": "needle_adapted", "adapt_rate": "fast"}, "--adapt_rate: 'fast' is not allowed"),
        ({"measures": "needle_adapted", "texts": "3"}, "--data: 'texts' has no more than 3 texts of 257 tokens"),
    ],
)
def test_bad_input_is_one_sentence(changes: dict[str, str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(**changes)) == 2
    err = capsys.readouterr().err
    assert says in err
    assert not Path("probe.json").exists() and not Path("probe.partial.json").exists()
