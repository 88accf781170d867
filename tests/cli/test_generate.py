"""`lg generate` writes what the model finds likeliest, whatever kind of path the model has."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import tokenizers
import torch

from lg.attention import Causal, Documents, Pattern, PrefixLM, SinkWindow
from lg.cli import main
from lg.cli import opened as opening
from lg.cli.tokenizer_files import of_model
from lg.data import Bytes, TokenizerFile
from lg.inference import Sampling, generate, room
from lg.models.adapters import LoRA
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder
from lg.models.hybrid import HybridLM
from lg.models.pretrained.out import save

CONFIG = DecoderConfig(
    num_layers=2, width=32, num_heads=2, num_kv_heads=1, head_width=16, ffn_width=32, vocab_size=300, qk_norm=True
)
SEES = SinkWindow(window=64, sinks=4), Causal()
MORE = '{"eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}'


def decoder(*sees: Pattern) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(CONFIG, sees or SEES).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hybrid that was exported, its tokenizer beside it."""
    made = tmp_path_factory.mktemp("made")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog " * 5], trainer)
    tokenizer.save(str(made / "tokenizer.json"))
    files: dict[str, str | Path] = {"tokenizer.json": made / "tokenizer.json", "tokenizer_config.json": MORE}
    save(made / "out", decoder().state_dict(), CONFIG, SEES, 512, files=files)
    return made / "out"


def said(words: Sequence[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main(["generate", *words]) == code
    told = capsys.readouterr()
    return told.out, told.err


def likeliest(folder: Path, prompt: str, count: int, sampling: Sampling | None = None) -> str:
    tokenizer = TokenizerFile(str(folder / "tokenizer.json"), "<|im_end|>")
    ids = list(map(int, tokenizer.encode(prompt.encode())))
    return generate(decoder(), [ids], count, sampling or Sampling(), tokenizer, {tokenizer.end})[0].text


def test_it_writes_what_python_writes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "the quick brown fox " * 40
    words = [f"--model={folder}", f"--prompt={text}", "--max-new-tokens=30"]
    out, err = said(words, capsys)
    assert out == likeliest(folder, text, 30) + "\n"
    assert "reading out\n" in err and "read 2" in err and "then wrote 29 tokens" in err
    assert "MB held, of full attention" in err
    drawn = Sampling(0.8, top_k=50, seed=4)
    out, _ = said([*words, "--temperature=0.8", "--top-k=50", "--seed=4"], capsys)
    assert out == likeliest(folder, text, 30, drawn) + "\n" != likeliest(folder, text, 30) + "\n"


def test_files_are_written_on_together_and_standard_input_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"one": "the lazy dog " * 30, "two": "jumps"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    words = [f"--model={folder}", "--max-new-tokens=9"]
    out, _ = said([*words, *(f"--prompt-file={tmp_path / name}" for name in texts)], capsys)
    want = [f"==> {tmp_path / name} <==\n{likeliest(folder, text, 9)}\n" for name, text in texts.items()]
    assert out == "".join(want)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"jumps")))
    assert said([*words, "-"], capsys)[0] == likeliest(folder, "jumps", 9) + "\n"


def test_a_string_ends_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = likeliest(folder, "the quick", 30)
    stop = whole[8:10]
    words = [f"--model={folder}", "--prompt=the quick", "--max-new-tokens=30", f"--stop={stop}", "--stop=never"]
    assert said(words, capsys)[0] == whole[: whole.index(stop)] + "\n"


def test_a_prompt_may_be_what_a_user_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = opening.opened(str(folder), None, torch.float32, torch.device("cpu"))
    assert found.longest == 512 and found.spelling is not None
    tokenizer = found.spelling.tokenizer
    start, end = (tokenizer.special(mark) for mark in ("<|im_start|>", "<|im_end|>"))
    text = [*tokenizer.encode(b"user\nthe fox"), end, *tokenizer.encode(b"\n")]
    ids = [start, *text, start, *tokenizer.encode(b"assistant\n")]
    assert found.spelling.apply([("user", "the fox")]) == ids and found.spelling.ends == {end}
    out, _ = said([f"--model={folder}", "--prompt=the fox", "--chat", "--max-new-tokens=9"], capsys)
    assert out == generate(decoder(), [ids], 9, tokenizer=tokenizer, stop={end})[0].text + "\n"


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role + ' ' + m.content + ' <|im_end|>' }}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'user' %}user {{ m.content }} <|im_end|>{% else %}{% generation %}"
        "{{ '<|im_start|>assistant ' + m.content + '<|im_end|>\n' }}{% endgeneration %}{% endif %}{% endfor %}",
    ],
)
def test_a_prompt_ends_where_the_answer_begins(template: str, folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(template)
    found = opening.opened(str(tmp_path), None, torch.float32, torch.device("cpu")).spelling
    assert found is not None
    want = b"user the fox <|im_end|>" + (b"<|im_start|>" if "generation" in template else b"") + b"assistant "
    assert found.tokenizer.decode(found.apply([("user", "the fox")])) == want
    assert found.ends == {found.tokenizer.special("<|im_end|>")}


def test_a_tokenizer_that_begins_texts_does_so_here(folder: Path, tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    begin = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A <|im_end|>", special_tokens=[("<|endoftext|>", begin), ("<|im_end|>", 2)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = opening.opened(str(folder), str(tmp_path / "tokenizer.json"), torch.float32, torch.device("cpu"))
    assert found.spelling is not None
    assert found.spelling.decode([begin, 299]) == b"<|endoftext|>"
    assert found.spelling.encode("fox") == [begin, *found.spelling.tokenizer.encode(b"fox")]


def test_a_checkpoint_of_bytes_and_what_is_kept_in_few_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    checkpoint = _checkpoint(run / "checkpoints" / "step.ckpt")
    words = [f"--model={checkpoint}", "--prompt=Once upon a time", "--max-new-tokens=20"]
    assert "--tokenizer: needed; none was found beside" in said(words, capsys, 2)[1]
    (run / "config.yaml").write_text("data: {class_path: TextData, init_args: {tokenizer: null}}\n")
    out, _ = said(words, capsys)
    module = HybridLM.from_checkpoint(str(checkpoint))
    want = generate(module.model, ["Once upon a time"], 20, tokenizer=Bytes(), stop={0})[0]
    assert out == want.text + "\n"
    # They may be asked for where no run tells.
    other = _checkpoint(tmp_path / "there" / "other.ckpt")
    assert said([f"--model={other}", *words[1:], "--tokenizer=bytes"], capsys)[0]
    for kind in ("int8", "bfloat16"):
        assert len(said([*words, f"--kv={kind}", "--dtype=bfloat16"], capsys)[0]) > 1


def test_the_tokenizer_of_a_run_that_began_with_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    runs = tmp_path / "first", tmp_path / "second"
    for run, begun in zip(runs, (folder, runs[0] / "step.ckpt"), strict=True):
        _checkpoint(run / "step.ckpt")
        (run / "config.yaml").write_text(f"model: {{init_args: {{pretrained: {begun}}}}}\n")
    found = of_model(runs[1] / "step.ckpt")
    assert found is not None and found.files["tokenizer.json"] == folder / "tokenizer.json"
    # One that began with its own has none.
    (runs[0] / "config.yaml").write_text(f"model: {{init_args: {{pretrained: {runs[0] / 'step.ckpt'}}}}}\n")
    assert of_model(runs[0] / "step.ckpt") is None


def _checkpoint(path: Path, full: Pattern | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    module = HybridLM({"full": full or Causal()}, "6*full")
    module.configure_model()
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return path


def test_an_adapter_is_merged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = HybridLM({"full": Causal()}, "6*full", adapter=LoRA())
    module.configure_model()
    for parameter in module.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "step.ckpt")
    found = opening.opened(str(tmp_path / "step.ckpt"), None, torch.float32, torch.device("cpu")).decoder
    tokens = torch.randint(256, (1, 30))
    with torch.no_grad():
        want = module.eval().model.logits(tokens, Documents(30))
        torch.testing.assert_close(found.logits(tokens, Documents(30)), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--prompt=a"], "--model: needed"),
        (["--model={model}"], "--prompt: one of --prompt, --prompt-file and - is needed"),
        (["--model={model}", "--prompt=a", "-"], "--prompt: one of --prompt, --prompt-file and - is needed"),
        (["--model={model}", "--prompt="], "--prompt: the prompt is empty"),
        (["--model={model}", "--prompt-file=nowhere"], "--prompt-file: 'nowhere' cannot be read: No such file"),
        (["--model=nowhere", "--prompt=a"], "--model: 'nowhere' does not exist; a checkpoint, a folder"),
        (["--model={empty}", "--prompt=a"], "has no config.json; a folder of transformers is needed"),
        (
            ["--model={junk}", "--prompt=a"],
            "--model: 'junk.ckpt' cannot be read: it is no checkpoint, or a part",
        ),
        (["--model={model}/config.json", "--prompt=a"], "--model: 'config.json' is a file of a folder of transf"),
        (["--model=", "--prompt=a"], "--model: '' does not exist"),
        (["--model={model}", "--bogus", "1"], "lg generate: --bogus: not an option of lg generate"),
        (["--model={model}", "-", "a"], "lg generate: -: not an option of lg generate"),
        (["--model={model}", "--prompt=a", "--top-k=3"], "--top-k: not allowed without --temperature above 0"),
        (["--model={model}", "--prompt=a", "--top-p=2"], "--top-p: 2.0 is not allowed; it must be a number above 0"),
        (["--model={model}", "--prompt=a", "--temperature=hot"], "--temperature: invalid float value: 'hot'"),
        (["--model={model}", "--prompt=a", "--stop="], "--stop: '' is not allowed"),
        (["--model={model}", "--prompt=a", "--max-new-tokens=0"], "--max-new-tokens: 0 is not allowed"),
        (["--model={model}", "--prompt=a", "--max-new-tokens=99999999999"], "at least 1 and at most 16777216"),
        (["--model={model}", "--prompt=a", "--kv=int2"], "--kv: 'int2' is not allowed; allowed are auto, float32"),
        (["--model={model}", "--prompt=a", "--tokenizer=nowhere"], "--tokenizer: 'nowhere' is none"),
        (["--model={model}", "--prompt=a", "--device=quantum"], "--device: 'quantum' is not allowed"),
        (
            ["--model={model}", "--prompt=a", "--device=cpu", "--compile"],
            "--compile: not allowed on cpu; it is for CUDA",
        ),
    ],
)
def test_refusals(
    words: list[str], what: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "junk.ckpt").write_bytes(b"junk")
    places = {"model": folder, "empty": tmp_path, "junk": tmp_path / "junk.ckpt"}
    out, err = said([word.format(**places) for word in words], capsys, 2)
    assert what in err and not out


def test_what_has_no_room_is_refused_before_it_is_read(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One page of the window's layer and of the other: 64 tokens, two layers, keys and values of 16 features.
    monkeypatch.setattr(room, "free_memory", lambda device: 10 * 64 * 2 * 2 * 16 * 4)
    words = [f"--model={folder}", "--max-new-tokens=10"]
    _, err = said([*words, "--prompt=" + "the lazy dog " * 1000], capsys, 2)
    assert "the longest prompt that fits has " in err
    fits = int(err.rpartition(" fits has ")[2].split()[0].replace(",", ""))
    assert 500 < fits < 1100
    assert "fewer must be written" in said([*words, "--prompt=a", "--max-new-tokens=9000"], capsys, 2)[1]
    assert said([*words, "--prompt=the"], capsys)[0]


def test_output_that_has_no_room_is_told(folder: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    for words in (["generate", f"--model={folder}", "--prompt=the", "--max-new-tokens=3"], ["generate", "--help"]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [sys.executable, "-c", "from lg.cli import entry; entry()", *words],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert done.returncode == 2
        assert "standard output cannot be written: No space left on device" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_prefix_is_told(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = _checkpoint(tmp_path / "step.ckpt", PrefixLM())
    words = ["--prompt=the quick brown fox", "--max-new-tokens=3"]
    (tmp_path / "config.yaml").write_text("data: {class_path: TextData, init_args: {tokenizer: {class_path: Bytes}}}")
    own = [f"--model={checkpoint}", *words]
    assert "--prefix: needed" in said(own, capsys, 2)[1]
    assert "sees forward among the first 20 tokens, and the prompt has 19" in said([*own, "--prefix=20"], capsys, 2)[1]
    assert said([*own, "--prefix=5"], capsys)[0]
    assert "--prefix: 5 is not allowed" in said([f"--model={folder}", *words, "--prefix=5"], capsys, 2)[1]
