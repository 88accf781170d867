"""Every recipe is read, builds its model from a folder of the shape that it names, and packs texts where it says.

The models here have the recipe's layers and heads and are otherwise small; texts are long enough, and mean nothing.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser

from lg.cli import main
from lg.cli.configuration import gather
from lg.cli.stages import take_stages

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
PARTS = ("base", "smollm2")
RUNS = [path for path in RECIPES if path.stem not in PARTS]
LARGE = [path for path in RUNS if not path.stem.startswith("smollm2")]

# Layers, query heads and KV heads of the models that recipes name.
MODELS = {
    "Llama-2-7b-hf": (32, 32, 32),
    "Llama-2-70b-hf": (80, 64, 8),
    "Meta-Llama-3-8B-Instruct": (32, 32, 8),
    "smollm2": (30, 9, 3),
}
SPECIAL = [
    "</s>", "<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<|im_start|>", "<|im_end|>",
]  # fmt: skip
LONG = 530_000  # tokens, which here are bytes


def stages(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Each stage of a recipe as a configuration of its own; the recipe itself if it has none."""
    config, _ = gather(["--config", str(path)])
    entries = take_stages(config)
    return [(f"{path.stem}-{one.name}", one.over(config)) for one in entries] or [(path.stem, config)]


CASES = [case for path in RUNS for case in stages(path)]


def the_model(folder: Path) -> None:
    """A folder of transformers, as small as the recipe's schedule and patterns allow."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, heads, kv_heads = MODELS[folder.name]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    shape = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=2 * heads, intermediate_size=16, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=2, max_position_embeddings=8192,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))


def texts() -> list[str]:
    """Some as long as the longest row, some as long as a usual one, some short."""
    sentence = "The quick brown fox, number {}, jumps over the lazy dog. "
    lengths = [LONG] * 2 + [140_000] * 4 + [70_000] * 8 + [40_000] * 8 + [3_000] * 300
    return [
        "".join(sentence.format(n * 10**6 + i) for i in range(length // 58 + 1)) for n, length in enumerate(lengths)
    ]


def written(node: Any, folder: Path) -> None:
    """Writes texts wherever a configuration reads some; those that lie elsewhere are of the folder instead."""
    if isinstance(node, list):
        for one in node:
            written(one, folder)
    if not isinstance(node, dict):
        return
    # As many texts, and shorter to read.
    node.update({key: {"class_path": "Fetched"} for key, value in node.items() if value == "Stdlib"})
    arguments = node.get("init_args") or {}
    kind = node.get("class_path")
    if kind in ("HuggingFace", "Fetched"):
        node["class_path"], node["init_args"] = "Folder", {"path": str(folder / "texts" / "folder")}
    elif kind == "Jsonl":
        file = folder / arguments["path"]
        column = arguments.get("column", "text")
        chats = [[{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": f"{n}"}] for n in range(3000)]
        lines = chats if column == "messages" else texts()
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps({column: line}) + "\n" for line in lines))
    else:
        for value in node.values():
            written(value, folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    for name in MODELS:
        the_model(folder / "models" / name)
    for number, text in enumerate(texts()):
        for kind, file in (("folder", f"{number}.txt"), ("repositories", f"{number}/main.py")):
            path = folder / "texts" / kind / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return folder


@pytest.mark.parametrize(("name", "config"), CASES, ids=[name for name, _ in CASES])
def test_a_recipe_builds(name: str, config: dict[str, Any], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    written(config["data"], place)
    file = place / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(file), *_on_a_laptop()]) == 0


TWINS = [case for path in RUNS if path not in LARGE for case in stages(path)]


@pytest.mark.network
@pytest.mark.parametrize("config", [config for _, config in TWINS], ids=[name for name, _ in TWINS])
def test_a_twin_reads_its_texts(config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "twins"
    if not folder.exists():
        assert main(["data", "fetch", "austen", "shakespeare", "faq", "essays"]) == 0
        assert main(["import", "smollm2", str(folder / "models" / "smollm2")]) == 0
    data = config["data"]
    data["init_args"]["tokenizer"]["init_args"]["path"] = str(folder / "models" / "smollm2" / "tokenizer.json")
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    module = parser.instantiate_classes(parser.parse_object({"data": data}))["data"]
    module.setup("fit")
    lengths = {tuple(batch["tokens"].shape) for batch in itertools.islice(module.train_dataloader(), 20)}
    assert lengths == {(module.batch_size, module.row_length)}


def _on_a_laptop() -> list[str]:
    return [
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--trainer.num_nodes=1",
        "--trainer.strategy=auto",
        "--trainer.precision=32-true",
        "--trainer.max_steps=0",
        "--trainer.callbacks=[]",
        "--trainer.logger=false",
        "--model.memory=null",
        "--model.compile=false",
    ]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_what_it_is_for(path: Path) -> None:
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", LARGE, ids=lambda path: path.stem)
def test_a_twin_says_what_its_recipe_says(path: Path) -> None:
    name = "smollm2_" + "_".join(part for part in path.stem.split("_") if part not in ("llama2", "llama3", "8b", "7b"))
    twin = next(one for one in RUNS if one.stem in (name, name.rpartition("_")[0]))
    both = [[method(config) for _, config in stages(one)] for one in (path, twin)]
    assert both[0] == both[1]


def test_what_is_merged_reads_as_far_as_what_was_trained() -> None:
    text = next(one for one in RECIPES if one.stem == "longrecipe_llama3_8b_128k").read_text()
    (line,) = [line for line in text.splitlines() if "lg merge" in line]
    # config.json is the first one's, and the original's theta is for 8,192 positions.
    assert line.split()[4:6] == ["models/replayed", "models/Meta-Llama-3-8B-Instruct"]


def method(config: dict[str, Any]) -> dict[str, Any]:
    """What makes a recipe that recipe, whatever its sizes."""
    model, data = config["model"]["init_args"], config["data"]["init_args"]

    def kinds(node: Any) -> Any:
        return node["class_path"] if isinstance(node, dict) else node

    return {
        "patterns": {name: kinds(pattern) for name, pattern in model["patterns"].items()},
        "evaluated": model.get("evaluated"),
        "adapter": kinds(model.get("adapter")),
        "rope_scaling": kinds(model.get("rope_scaling")),
        "theta": "rope_theta" in (model.get("decoder") or {}),
        "betas": model["betas"],
        "positions": kinds(data.get("positions")),
        "document_mask": data["document_mask"],
        "upsample": kinds(data.get("upsample")),
        "chunks": "packings" in data["source"]["init_args"],
    }  # fmt: skip
