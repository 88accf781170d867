"""`lg plan`: memory and time of what a configuration would train, the way to train it, and refusals in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lg.cli import main

SEVEN = (
    "--model.preset=llama-2-7b",
    "--model.schedule=10*local, 12*full, 10*local",
    "--model.patterns.local.window=1984",
    "--model.patterns.local.sinks=64",
    "--precision=bf16-true",
)


@pytest.fixture
def hybrid(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The flagship's configuration, seen from an empty folder."""
    monkeypatch.chdir(tmp_path)
    return f"--config={root / 'configs' / 'hybrid.yaml'}"


def planned(*words: str) -> dict[str, Any]:
    assert main(["plan", *words, "--json=plan.json"]) == 0
    figures: dict[str, Any] = json.loads(Path("plan.json").read_text())
    return figures


def test_the_flagship_as_it_is(hybrid: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", hybrid]) == 0
    told = capsys.readouterr().out
    assert told.startswith("tiny: 2*local, 2*full, 2*local\n")
    assert "1 x H100, 32-true, no sharding\n1 x 4,096 tokens a batch, 4,096 on a device;" in told
    (taken,) = [line for line in told.splitlines() if line.startswith(">")]
    assert taken.split()[1:3] == ["nothing", "-"] and taken.endswith("as configured")
    assert "that is how it is configured" in told
    assert not list(Path().iterdir())


def test_seven_billion_on_four(hybrid: str, capsys: pytest.CaptureFixture[str]) -> None:
    figures = planned(hybrid, *SEVEN, "--length=128K", "--devices=4", "--context=4")
    assert (figures["tokens_on_a_device"], figures["context"]) == (32768, 4)
    assert 1 <= figures["attention_imbalance"] < 1.1
    choices = figures["choices"]
    (best,) = [choice for choice in choices if choice["taken"]]
    assert best["memory"]["recompute"] == "halves"
    assert best["seconds"]["total"] == min(choice["seconds"]["total"] for choice in choices if choice["fits"])
    for choice in choices:
        held, limit = choice["bytes"], figures["may_fill_bytes"]
        assert choice["fits"] == (held["peak"] <= limit) == (choice["longest"] >= 131072)
        # A quarter of the weights; the full layers fetch what lies before, which is all for who has the last chunk.
        assert held["parameters"] == 2 * -(-6_738_415_616 // 4)
        assert held["exchange"] == 3 * 131072 * 2 * 4096 * 2
    told = capsys.readouterr().out
    assert "\nmodel:\n  init_args:\n    memory:\n      recompute: halves\n      offload: false\n      tile: " in told


def test_the_lines_of_yaml_are_taken_as_told(hybrid: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", hybrid, *SEVEN, "--length=16K"]) == 0
    told = capsys.readouterr().out
    Path("own.yaml").write_text(told[told.index("model:\n") :].partition("\n\n")[0])
    assert main(["plan", hybrid, "--config=own.yaml", *SEVEN, "--length=16K"]) == 0
    assert "that is how it is configured" in capsys.readouterr().out


def test_what_auto_takes(hybrid: str, capsys: pytest.CaptureFixture[str]) -> None:
    figures = planned(hybrid, *SEVEN, "--length=16K", "--devices=4", "--model.memory=auto")
    told = capsys.readouterr().out
    (line,) = [line for line in told.splitlines() if "auto takes this" in line]
    assert line.startswith("> ") and "as configured" not in told
    (best,) = [choice for choice in figures["choices"] if choice["taken"]]
    assert line.split()[1] == best["memory"]["recompute"]
    assert "\nmemory: auto takes it, " in told and "\nmodel:\n" not in told
    # What is written over it, key by key, counts instead.
    assert main(["plan", hybrid, *SEVEN, "--length=16K", "--model.memory=auto", "--model.memory.recompute=blocks"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.endswith("as configured")]
    assert line.split()[0] == "blocks"


def test_devices_differ(hybrid: str) -> None:
    words = (hybrid, *SEVEN, "--length=128K", "--devices=8", "--context=8")
    h100, h200, a100 = (planned(*words, f"--device={name}") for name in ("H100", "H200", "A100"))
    first = [figures["choices"][0] for figures in (h100, h200, a100)]
    assert first[0]["bytes"] == first[1]["bytes"]
    assert first[0]["longest"] < first[1]["longest"]
    assert 2 * first[0]["seconds"]["total"] < first[2]["seconds"]["total"]


RUN = """
base: {base}
data:
  init_args:
    row_length: 8192
    batch_size: 2
trainer:
  devices: 2
  num_nodes: 2
  precision: bf16-mixed
  accumulate_grad_batches: 3
  strategy:
    class_path: lg.parallel.HybridStrategy
    init_args:
      context_parallel_size: 2
      data_replicate_size: {replicas}
      exchange_groups: {groups}
"""


def test_the_configuration_says_how_it_is_trained(hybrid: str) -> None:
    plans, longer = {}, []
    for replicas in (1, 2):
        Path("run.yaml").write_text(RUN.format(base=hybrid.partition("=")[2], replicas=replicas, groups=2 * replicas))
        plans[replicas] = planned("--config=run.yaml", *SEVEN, "--precision=bf16-mixed")
        longer.append(planned("--config=run.yaml", *SEVEN, "--precision=bf16-mixed", "--length=64K")["choices"][0])
    told = plans[1]
    assert (told["devices"], told["context"], told["precision"], told["batches_a_step"]) == (4, 2, "bf16-mixed", 3)
    assert (told["rows"], told["row_length"], told["tokens_on_a_device"]) == (2, 8192, 8192)
    shares = [plans[replicas]["choices"][0]["bytes"]["parameters"] for replicas in plans]
    assert 2 * shares[0] == shares[1]
    assert told["choices"][0]["bytes"]["exchange"] == 0, "each of two devices holds a document"
    # With two groups of KV heads 16 of 32 at a time, and the output of 32 query heads; with four windows take more.
    head = 2 * 65536 * 128 * 2
    exchanges = [choice["bytes"]["exchange"] for choice in longer]
    assert exchanges[0] == (5 * 16 + 8) * head > exchanges[1] > (5 * 8 + 8) * head
    # Devices of an option are those of one host, and the strategy stays.
    assert planned("--config=run.yaml", "--devices=8", "--context=1")["tokens_on_a_device"] == 16384


def test_where_nothing_fits(hybrid: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", hybrid, "--model.preset=llama-2-70b", "--model.schedule=80*full", "--length=4K"]) == 0
    assert "nothing fits: at least " in (told := capsys.readouterr().out)
    assert "not even 128 tokens a device fit" in told
    assert main(["plan", hybrid, *SEVEN, "--length=4M"]) == 0
    assert "the longest batch that fits is of " in capsys.readouterr().out


MISTAKES = {
    "unknown device": ("--device=H800", "device: 'H800' is not known; allowed: H100, H200, A100"),
    "no number": ("--devices=many", "devices: 'many' is not allowed; it must be an integer of at least 1"),
    "sizes": ("--context=2", "trainer.strategy.init_args.context_parallel_size: 2 is not allowed"),
    "precision": ("--precision=16-mixed", "precision: '16-mixed' cannot be planned; allowed: 32-true, bf16-true"),
    "length": ("--length=0", "length: '0' is not allowed"),
    "no folder": ("--json=nowhere/plan.json", "json: 'nowhere/plan.json' is not allowed"),
    "an option of fit": ("--trainer.max_steps=3", "trainer: not a known key; allowed: model, device, devices, context"),
    "memory": ("--model.memory=some", "model.init_args.memory: 'some' is unknown; allowed are auto, or recompute,"),
    "a pattern that asks": (
        "--model.patterns.full=PrefixLM",
        "model.init_args.patterns.full: PrefixLM() asks for doc.prefix, which each document has of its own",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_sentence(mistake: str, hybrid: str, capsys: pytest.CaptureFixture[str]) -> None:
    option, sentence = MISTAKES[mistake]
    assert main(["plan", hybrid, option]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("lg plan: ") and sentence in told
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ("trainer: {devices: auto}", "trainer.devices: 'auto' depends on the machine; a plan needs a number"),
        ("trainer: {strategy: ddp}", "trainer.strategy: 'ddp' cannot be planned; allowed: auto, lg.parallel.Hybrid"),
        ("trainer: {precision: 16-true}", "trainer.precision: '16-true' cannot be planned"),
        ("data: {init_args: {row_length: long}}", "data.init_args.row_length: 'long' is not allowed"),
    ],
)
def test_so_is_one_in_the_configuration(
    section: str, sentence: str, hybrid: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own.yaml").write_text(section)
    assert main(["plan", hybrid, "--config=own.yaml"]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert sentence in told
