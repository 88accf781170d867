"""`lg probe` ranks layers, goes on where it was stopped, and says what it cannot do."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from lg.attention import Causal, Pattern, PerHead, PrefixLM, SinkWindow
from lg.attention.schedule import Measured, written
from lg.cli import main, probe_inputs, probe_run, probe_told
from lg.evaluation.needle import _NAMES
from lg.evaluation.probe import Unmeasurable
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


def changed(
    path: str,
    patterns: dict[str, Pattern] | None = None,
    schedule: str = f"{LAYERS}*full",
    edit: Callable[[dict[str, Any]], object] = len,
    **shape: Any,
) -> None:
    """The checkpoint of `here` again, with other weights, patterns or shape."""
    state = torch.load("model.ckpt", weights_only=False)["state_dict"]
    edit(state)
    module = HybridLM(patterns or {"full": Causal()}, schedule, decoder={**SHAPE, **shape})
    assert module.model is not None
    checkpoint: dict[str, Any] = {"state_dict": state}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)


def of_layer(state: dict[str, Any], layer: int, name: str) -> str:
    """The key of a layer's weight."""
    return next(key for key in state if f"blocks.{layer}." in key and name in key)


def flipped(state: dict[str, Any]) -> None:
    """Rows of a weight in another order: their sum is the same."""
    key = of_layer(state, 1, "k_proj.weight")
    state[key] = state[key].flip(0)


def diverged(state: dict[str, Any]) -> None:
    """A weight that is no number."""
    state[of_layer(state, 1, "v_proj.weight")][0, 0] = float("nan")


def stop_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is stopped once it has written so often."""
    write, count = probe_run.write, 0

    def stopped(path: Path, content: bytes, key: str) -> None:
        nonlocal count
        count += 1
        write(path, content, key)
        if count == writes:
            raise KeyboardInterrupt

    monkeypatch.setattr(probe_run, "write", stopped)


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
    assert found["made"]["torch"] == torch.__version__ and found["made"]["device"].startswith("cpu, ")
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
    changed("hybrid.ckpt", {"full": Causal(), "local": SinkWindow(8)}, "2*full, local")
    assert main(command(model="hybrid.ckpt", measures="mass", full_heads="1")) == 2
    assert "--full_heads: 1 is not allowed; layers of the model see different keys (Causal(), " in (
        capsys.readouterr().err
    )


@pytest.mark.usefixtures("here")
def test_a_probe_that_was_stopped_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(out="whole.json", measures="mass,needle")) == 0
    stop_after(5, monkeypatch)
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
@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({"edit": flipped}, "weights"),
        ({"rope_theta": 2.5}, "shape"),
        (
            {"patterns": {"full": Causal(), "local": SinkWindow(64)}, "schedule": "local, full, local"},
            "what layers see",
        ),
    ],
)
def test_a_probe_does_not_go_on_with_another_model(
    change: dict[str, Any], differs: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed("other.ckpt")
    stop_after(2, monkeypatch)
    assert main(command(model="other.ckpt", measures="mass")) == 130
    changed("other.ckpt", **change)
    assert main(command(model="other.ckpt", measures="mass")) == 2
    assert f"of a probe that was stopped, of another {differs}; remove it" in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_the_same_weights_are_the_same_by_any_number_of_threads() -> None:
    decoder, _ = probe_inputs.read_model("model.ckpt", "cpu")
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_().pow_(9)  # so different that their sum hangs on the order
    subject = probe_inputs.Subject(decoder, SinkWindow(8), 8, None, [torch.arange(9)])  # type: ignore[arg-type]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(subject.settings)
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1] == json.loads(json.dumps(found[0]))


DAMAGED = (
    {"settings": [], "units": {}},
    {"settings": None, "units": {}},
    {"units": []},
    {"units": {"needle: full 0,1,2": "x"}},
    {"units": {"needle: full 0,1,2": None}},
    {"units": {"needle: full 0,1,2": [1.0]}},
    {"units": {"needle: full 0,1,2": []}},
    {"units": {"mass: text 0": [[0.1]]}},
    {"units": {"gates: 30 steps": {"step": 10, "gates": [[1.0]] * 3}}},
    {"units": {"something": [1.0]}},
)


@pytest.mark.usefixtures("here")
def test_a_damaged_file_of_a_stopped_probe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stop_after(1, monkeypatch)
    assert main(command()) == 130
    whole = json.loads(Path("probe.partial.json").read_text())
    for content in ("", "null", *(json.dumps({**whole, **damage}) for damage in DAMAGED)):
        Path("probe.partial.json").write_text(content)
        capsys.readouterr()
        assert main(command()) == 2, content
        says = "--out: 'probe.partial.json' cannot be read as a probe that was stopped, since it is damaged; remove it"
        assert says in capsys.readouterr().err, content


@pytest.mark.usefixtures("here")
def test_a_model_that_gives_no_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    changed("nan.ckpt", edit=diverged)
    given = "mass,gates,needle,context,needle_adapted"
    assert main(command(model="nan.ckpt", measures=given, texts="1", full_layers="1", sets="2")) == 2
    told = capsys.readouterr()
    for task, count in (("needle", 5), ("context", 3)):
        assert told.out.count(f"gives nan nats a token on {task} with full layers 0,1,2; only finite") == count
    assert "mass: the model's attention weights, of which mass is the sum, are no finite numbers" in told.out
    assert "remove 'probe.partial.json', which keeps what was measured, or write to another --out" in told.err


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("given", [{"sets": "1"}, {"full_layers": "3"}])
def test_one_set_leaves_no_choice(given: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(measures="needle_adapted", **given)) == 2
    assert "needle_adapted: there is only one set of 3 layers, so nothing is to be chosen" in capsys.readouterr().out


@pytest.mark.usefixtures("here")
def test_layers_that_see_less_than_the_window(capsys: pytest.CaptureFixture[str]) -> None:
    changed("hybrid.ckpt", {"full": Causal(), "near": SinkWindow(8)}, "near, full, near")
    assert main(command(model="hybrid.ckpt", measures="needle_one_out")) == 2
    says = (
        "--window: 32 is not allowed with 4 sinks; layers 0, 2 see fewer keys than that (SinkWindow(window=8, sinks=4))"
    )
    assert says in capsys.readouterr().err
    assert main(command(model="hybrid.ckpt", measures="needle_one_out", window="8", full_layers="1")) == 0
    assert json.loads(Path("probe.json").read_text())["measures"]["needle_one_out"]["sets"][0] == [1]


@pytest.mark.usefixtures("here")
def test_patterns_that_ask_what_texts_do_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    changed("prefix.ckpt", {"full": Causal(), "prefix": PrefixLM()}, "full, 2*prefix")
    assert main(command(model="prefix.ckpt")) == 2
    says = "--model: layer 1 sees PrefixLM(), which asks for doc.prefix; patterns that ask for attributes of documents"
    assert says in capsys.readouterr().err


@pytest.mark.usefixtures("here")
def test_heads_that_could_not_be_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise Unmeasurable("not today")

    monkeypatch.setattr(probe_run.Gates, "run", refused)
    assert main(command(measures="gates,needle_one_out", full_heads="2", full_layers="1")) == 0
    told = capsys.readouterr().out
    assert "--full_heads: 2 heads cannot be chosen, since neither gates nor mass could be measured" in told
    assert "measure: needle_one_out}" in told


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
    assert "ranks no layer of this model" in told.err and "remove 'probe.partial.json'" in told.err
    assert not Path("probe.json").exists()
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
        ({"data": ""}, "--data: '' is not allowed; each name, between commas, must be stdlib, one of `lg data list`"),
        ({"data": "texts,"}, "--data: 'texts,' is not allowed"),
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
