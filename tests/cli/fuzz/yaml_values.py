"""Every parameter of what a run is made of, with values that it does not expect."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
from good import Config, config, fit
from trial import Case

import lg.attention
import lg.monitor
from lg.attention import schedule as known_schedules
from lg.data import BestFit, Cut, Folder, HuggingFace, Jsonl, Mixture, Parquet, Repositories, Stdlib, TextData
from lg.data.assets import Fetched
from lg.data.tokenizer import Bytes, TokenizerFile
from lg.models import learning_rate
from lg.models.decoder import DecoderConfig
from lg.models.hybrid import HybridLM

KIND = "YAML value"
PER_PARAMETER = 6  # values tried at each place, drawn from all

VALUES: dict[str, Any] = {
    "null": None, "true": True, "false": False, "zero": 0, "one": 1, "minus one": -1, "half": 0.5, "minus half": -0.5,
    "NaN": float("nan"), "infinite": float("inf"), "minus infinite": float("-inf"), "tiny": 5e-324,
    "2**31": 2**31, "2**63": 2**63, "-2**63": -(2**63), "2**200": 2**200, "1e308": 1e308, "300 digits": 10**300,
    "odd": 37, "empty": "", "blank": " ", "word": "banana", "number as text": "12", "NaN as text": "nan", "NUL": "a\0b",
    "letters beyond ASCII": "\u00fc\u4e2d\U0001f600", "newline": "a\nb", "long": "x" * 5000,
    "dots": "..", "root": "/", "device": "/dev/null", "braces": "{}", "percent": "%s%n", "expression": "${oc.env:HOME}",
    "empty list": [], "list": [1, 2], "list of null": [None], "list of words": ["a", "b"], "nested list": [[[]]],
    "empty dict": {}, "dict": {"a": 1}, "dict of null": {"a": None}, "class": {"class_path": "Causal"},
    "class of nothing": {"class_path": None}, "arguments alone": {"init_args": {}}, "unknown class": "Nothing",
    "number as class": {"class_path": 3}, "builtin": {"class_path": "builtins.dict"},
    "extra key": {"class_path": "Cut", "init_args": {}, "more": 1},
}  # fmt: skip

# Values that mean a run of hours, or one that waits for other machines, as it must.
_UNFIT = {
    ("max_steps", "2**31"), ("max_epochs", "2**31"), ("new_tokens", "2**31"), ("num_nodes", "odd"),
    ("num_nodes", "2**31"), ("num_nodes", "number as text"),
}  # fmt: skip

# What stands in the place of a class's required parameters, and parts of the configuration that it needs.
_SOURCES: dict[type, Config] = {
    Stdlib: {}, Folder: {"path": "texts"}, Repositories: {"path": "."}, Jsonl: {"path": "texts/0.txt"},
    Parquet: {"path": "texts/0.txt"}, HuggingFace: {"path": "text", "data_files": "texts/0.txt"},
    Fetched: {"name": "austen"},
    Mixture: {"sources": {"a": {"class_path": "Folder", "init_args": {"path": "texts"}}}},
}  # fmt: skip
_PATTERNS: dict[str, Config] = {
    "Causal": {}, "Window": {"window": 8}, "SinkWindow": {"window": 8}, "Dilated": {"window": 8},
    "Strided": {"block": 8, "local_blocks": 2, "stride": 4}, "Chunked": {"chunk": 8},
    "ShiftedGroups": {"group": 8, "num_kv_heads": 1}, "GlobalTokens": {"count": 1},
    "PerHead": {"patterns": ["Causal"], "heads": [0]}, "And": {"left": "Causal", "right": "Causal"},
    "Not": {"pattern": "Causal"},
}  # fmt: skip
_TRAINER = (
    "accelerator", "strategy", "devices", "num_nodes", "precision", "logger", "callbacks", "fast_dev_run", "max_epochs",
    "min_epochs", "max_steps", "min_steps", "max_time", "limit_train_batches", "limit_val_batches",
    "overfit_batches", "val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps", "log_every_n_steps",
    "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "accumulate_grad_batches",
    "gradient_clip_val", "gradient_clip_algorithm", "deterministic", "benchmark", "inference_mode",
    "use_distributed_sampler", "profiler", "detect_anomaly", "barebones", "plugins", "sync_batchnorm",
    "reload_dataloaders_every_n_epochs", "default_root_dir",
)  # fmt: skip

# How Lightning calls what it refuses: with a dict in the place of a time, it makes a timedelta of it.
_WORDS = {
    "max_time": ("Timer", "trainer: TypeError"),
    "val_check_interval": ("trainer: TypeError",),
    "version": ("trainer.logger",),
    "unknown": ("Compilation", "RunCard", "Summary", "ModelCard"),
}

Place = tuple[str | int, ...]


def places() -> Iterator[tuple[Config, Place]]:
    """Every place of a value, each in a configuration where it counts."""
    for key in ("seed_everything", "weights_only", "ckpt_path", "model", "data", "trainer"):
        yield config(), (key,)
    for name in _parameters(HybridLM):
        yield config(), ("model", "init_args", name)
    for name in (*DecoderConfig.__dataclass_fields__, "unknown"):
        yield config(), ("model", "init_args", "decoder", name)
    for name, arguments in _PATTERNS.items():
        for parameter in _parameters(getattr(lg.attention, name)):
            yield _with(config(), ("model", "init_args", "patterns", "local"), _node(name, arguments)), (
                "model", "init_args", "patterns", "local", "init_args", parameter,
            )  # fmt: skip
    for name, arguments in (("Interleave", {"unit": "local"}), ("MiddleFull", {})):
        for parameter in _parameters(getattr(known_schedules, name)):
            yield from _inside(("model", "init_args", "schedule"), name, arguments, parameter)
    for name in ("Constant", "Cosine", "WSD"):
        for parameter in _parameters(getattr(learning_rate, name)):
            yield from _inside(("model", "init_args", "lr_schedule"), name, {}, parameter)
    for name in _parameters(TextData):
        yield config(), ("data", "init_args", name)
    for source, arguments in _SOURCES.items():
        for parameter in _parameters(source):
            yield from _inside(("data", "init_args", "source"), _path(source), arguments, parameter)
    for parameter in ("above", "share"):
        yield from _inside(("data", "init_args", "upsample"), "Upsample", {"above": 40, "share": 0.5}, parameter)
    for parameter in _parameters(TokenizerFile):
        yield from _inside(("data", "init_args", "tokenizer"), "TokenizerFile", {"path": "t.json"}, parameter)
    for packing in (Cut, BestFit, Bytes):
        yield from _inside(("data", "init_args", "packing"), packing.__name__, {}, "unknown")
    for name in _TRAINER:
        yield config(), ("trainer", name)
    for name in _parameters(pl.loggers.TensorBoardLogger):
        if name != "kwargs":
            yield config(), ("trainer", "logger", "init_args", name)
    for name in lg.monitor.__all__:
        for parameter in _parameters(getattr(lg.monitor, name)) or ["unknown"]:
            node = _with(config(), ("trainer", "callbacks"), [_node(name, {})])
            yield node, ("trainer", "callbacks", 0, "init_args", parameter)


def cases() -> Iterator[Case]:
    """Some of the values at each place."""
    for given, place in places():
        dotted = ".".join(str(key) for key in place)
        owner = _owner(given, place)
        names = [name for name in VALUES if (place[-1], name) not in _UNFIT]
        for name in random.Random(owner + dotted).sample(names, PER_PARAMETER):

            def prepare(given: Config = given, place: Place = place, value: Any = VALUES[name]) -> list[str]:
                return fit(_with(given, place, value))

            # What a source's argument leads to may be told of the source.
            keys = [str(key) for key in place[2:] if key not in ("init_args", 0)] or [str(place[-1])]
            others = [word for key in keys for word in _WORDS.get(key, ())]
            yield Case(KIND, f"{owner}{dotted} = {name}", prepare, (*keys, *others))


def _parameters(kind: Any) -> list[str]:
    return list(inspect.signature(kind).parameters)


def _inside(place: Place, name: str, arguments: Config, parameter: str) -> Iterator[tuple[Config, Place]]:
    yield _with(config(), place, _node(name, arguments)), (*place, "init_args", parameter)


def _node(name: str, arguments: Config) -> Config:
    return {"class_path": name, "init_args": dict(arguments)}


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__name__}" if kind is Fetched else kind.__name__


def _with(given: Config, place: Place, value: Any) -> Config:
    """A copy with a value put where it says."""
    made: Any = dict(given) if isinstance(given, dict) else list(given)
    key, *rest = place
    if rest:
        value = _with(made[key] if not isinstance(made, dict) else made.get(key, {}), tuple(rest), value)
    made[key] = value
    return made  # type: ignore[no-any-return]


def _owner(given: Config, place: Place) -> str:
    """The class around the last key, if it is not the configuration's usual one."""
    node: Any = given
    for key in place[:-2]:
        node = node.get(key, {}) if isinstance(node, dict) else node[key]
    return f"{node['class_path']}: " if isinstance(node, dict) and node.get("class_path") and len(place) > 3 else ""
