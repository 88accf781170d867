"""Checkpoints that are damaged, of another model, or no checkpoints at all."""

from __future__ import annotations

import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import damage
import torch
from good import Config, config, fit, train
from trial import Case

KIND = "checkpoint"
SEEDS = 6


def cases() -> Iterator[Case]:
    """Damaged bytes, asked for by name and as the last; other contents; and other runs' checkpoints."""
    for way in damage.WAYS:
        for seed in range(SEEDS if way in damage.WAYS[:6] else 1):
            for asked in ("last", "named", "validate"):
                if asked == "last" or seed < SEEDS // 2:
                    yield _case(f"{asked}: {way.__name__.replace('_', ' ')} {seed}", asked, _damage(way))
    for name, change in CONTENTS.items():
        yield _case(f"content: {name}", "named", _content(change))
    for name, write in FILES.items():
        for asked in ("last", "named"):
            yield _case(f"{asked}: {name}", asked, lambda draw, file, write=write: write(file))
    for name, changes in OTHERS.items():
        yield _case(f"of another run: {name}", "named", lambda draw, file: None, changes)
    for name, words in WORDS.items():
        yield Case(KIND, f"ckpt_path is {name}", lambda words=words: fit(config(), *words))
        yield Case(KIND, f"validate, ckpt_path is {name}", lambda words=words: ["validate", *fit(config(), *words)[1:]])


def _case(
    name: str, asked: str, tamper: Callable[[random.Random, Path], Any], changes: dict[str, Any] | None = None
) -> Case:
    def prepare() -> list[str]:
        train(config())
        (file,) = Path("logs").rglob("*.ckpt")
        tamper(random.Random(name), file)
        path = "last" if asked == "last" else str(file)
        given = _changed(changes or {"trainer.max_steps": 3})
        command, *words = fit(given, f"--ckpt_path={path}")
        return ["validate" if asked == "validate" else command, *words]

    return Case(KIND, name, prepare)


def _damage(way: Callable[[random.Random, Path], None]) -> Callable[[random.Random, Path], None]:
    return way


def _changed(changes: dict[str, Any]) -> Config:
    given = config()
    for place, value in changes.items():
        *above, key = place.split(".")
        node = given
        for step in above:
            node = node[step]
        node[key] = value
    return given


def _content(change: Callable[[dict[str, Any]], Any]) -> Callable[[random.Random, Path], None]:
    def tamper(draw: random.Random, file: Path) -> None:
        content = torch.load(file, weights_only=True)
        change(content)
        torch.save(content, file)

    return tamper


def _each_weight(change: Callable[[torch.Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(
        state_dict={name: change(weight) for name, weight in content["state_dict"].items()}
    )


CONTENTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{
        f"without {key}": lambda content, key=key: content.pop(key)
        for key in (
            "state_dict", "epoch", "global_step", "pytorch-lightning_version", "loops", "callbacks",
            "optimizer_states", "lr_schedulers", "hparams_name", "TextData", "random_states",
        )
        if key != "hparams_name"
    },
    **{
        f"{key} is null": lambda content, key=key: content.update({key: None})
        for key in ("state_dict", "global_step", "loops", "callbacks", "optimizer_states", "lr_schedulers", "TextData")
    },
    "empty": lambda content: content.clear(),
    "no optimizer": lambda content: content.update(optimizer_states=[]),
    "two optimizers": lambda content: content.update(optimizer_states=content["optimizer_states"] * 2),
    "a weight less": lambda content: content["state_dict"].popitem(),
    "a weight more": lambda content: content["state_dict"].update(more=torch.zeros(3)),
    "weights of another shape": _each_weight(lambda weight: weight.flatten()),
    "weights of no tensor": _each_weight(lambda weight: "weight"),
    "weights are NaN": _each_weight(lambda weight: weight * float("nan")),
    "place is empty": lambda content: content.update(TextData={}),
    "place is null": lambda content: content.update(TextData={"train": None}),
    "place is a number": lambda content: content.update(TextData={"train": 3}),
    "place without rows": lambda content: content["TextData"]["train"].pop("rows"),
    "place without data": lambda content: content["TextData"]["train"].pop("data"),
    "place without step": lambda content: content["TextData"]["train"].pop("step"),
    "place negative": lambda content: content["TextData"]["train"].update(rows=-5),
    "place as text": lambda content: content["TextData"]["train"].update(rows="many"),
    "place beyond the end": lambda content: content["TextData"]["train"].update(rows=10**9),
    "place of a stream": lambda content: content.update(TextData={"shards": [{"stream": {}, "block": 0}]}),
    "random states of two": lambda content: content.update(random_states=content["random_states"] * 2),
    "random states of none": lambda content: content.update(random_states=[]),
    "random states empty": lambda content: content.update(random_states=[{}]),
    "random states short": lambda content: content["random_states"][0].update(torch=torch.zeros(3, dtype=torch.uint8)),
    "step negative": lambda content: content.update(global_step=-1),
    "step as text": lambda content: content.update(global_step="three"),
    "version of tomorrow": lambda content: content.update({"pytorch-lightning_version": "99.0"}),
    "version is no version": lambda content: content.update({"pytorch-lightning_version": "banana"}),
    "callbacks without ours": lambda content: content["callbacks"].clear(),
    "callbacks' states empty": lambda content: content.update(callbacks={key: {} for key in content["callbacks"]}),
}  # fmt: skip


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("evil"),))


def _as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "meta.pt").write_bytes(b"x")
    (file / ".metadata").write_bytes(b"x")


FILES: dict[str, Callable[[Path], Any]] = {
    "a pickle": lambda file: file.write_bytes(pickle.dumps({"state_dict": {}})),
    "a pickle that acts": lambda file: torch.save({"state_dict": _Evil()}, file),
    "a tensor": lambda file: torch.save(torch.zeros(3), file),
    "a list": lambda file: torch.save([], file),
    "None": lambda file: torch.save(None, file),
    "a zip": lambda file: file.write_bytes(b"PK\x05\x06" + bytes(18)),
    "a text": lambda file: file.write_text("weights"),
    "an older format": lambda file: torch.save({"state_dict": {}}, file, _use_new_zipfile_serialization=False),
    "a sharded one, broken": _as_folder,
    "a sharded one, empty": lambda file: (file.unlink(), file.mkdir()),
    "a pipe's end": lambda file: (file.unlink(), file.symlink_to("/dev/null")),
    "an older one beside it": lambda file: (shutil.copy(file, file.with_name("old.ckpt")), file.write_text("x")),
}

OTHERS: dict[str, dict[str, Any]] = {
    "wider": {"model.init_args.decoder.width": 32},
    "narrower": {"model.init_args.decoder.width": 8},
    "with more layers": {"model.init_args.decoder.num_layers": 2, "model.init_args.schedule": "2*local"},
    "with more heads": {"model.init_args.decoder.num_heads": 4},
    "with norms": {"model.init_args.decoder.qk_norm": False},
    "with another vocabulary": {"model.init_args.decoder.vocab_size": 300},
    "with another pattern": {"model.init_args.patterns.local": "Causal"},
    "with another schedule": {"model.init_args.lr_schedule": "Constant"},
    "with longer rows": {"data.init_args.row_length": 128},
    "with more rows": {"data.init_args.batch_size": 2},
    "with another seed": {"data.init_args.seed": 3},
    "with a stream": {
        "data.init_args.source": {"class_path": "Jsonl", "init_args": {"path": "texts/0.txt", "streaming": True}},
    },
    "with other steps": {"trainer.accumulate_grad_batches": 2},
    "with fewer steps": {"trainer.max_steps": 1},
    "without a callback": {"trainer.callbacks": []},
    "with all that counts": {"trainer.callbacks": ["Checkpoints", "Throughput", "Padding", "Work", "LossByPosition"]},
}

WORDS: dict[str, tuple[str, ...]] = {
    "missing": ("--ckpt_path=nowhere.ckpt",),
    "empty": ("--ckpt_path=",),
    "a folder": ("--ckpt_path=texts",),
    "a text": ("--ckpt_path=texts/0.txt",),
    "the configuration": ("--ckpt_path=c.yaml",),
    "NUL": ("--ckpt_path=a\0b",),
    "long": ("--ckpt_path=" + "x" * 5000,),
    "best": ("--ckpt_path=best",),
    "hpc": ("--ckpt_path=hpc",),
    "last without any": ("--ckpt_path=last",),
    "number": ("--ckpt_path=3",),
    "list": ("--ckpt_path=[1]",),
    "address": ("--ckpt_path=http://127.0.0.1:1/x.ckpt",),
    "address of no kind": ("--ckpt_path=nothing://x.ckpt",),
    "device": ("--ckpt_path=/dev/null",),
}
