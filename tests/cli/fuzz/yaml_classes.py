"""Class paths that lead nowhere, to something else, or to a module that raises; arguments of other classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from good import Config, config, fit
from trial import Case
from yaml_values import Place, _with

KIND = "YAML class"

SLOTS: dict[str, Place] = {
    "model": ("model",),
    "pattern": ("model", "init_args", "patterns", "local"),
    "schedule": ("model", "init_args", "schedule"),
    "lr_schedule": ("model", "init_args", "lr_schedule"),
    "data": ("data",),
    "source": ("data", "init_args", "source"),
    "tokenizer": ("data", "init_args", "tokenizer"),
    "packing": ("data", "init_args", "packing"),
    "upsample": ("data", "init_args", "upsample"),
    "logger": ("trainer", "logger"),
    "callback": ("trainer", "callbacks", 0),
}

# Modules of the user's, in the working directory.
MODULES = {
    "raises_value.py": "raise ValueError('no value')\n",
    "raises_type.py": "raise TypeError('no type')\n",
    "raises_zero.py": "1 / 0\n",
    "raises_import.py": "import no_such_module\n",
    "raises_os.py": "open('no such file')\n",
    "raises_key.py": "{}['k']\n",
    "raises_assert.py": "assert False\n",
    "broken_syntax.py": "def (:\n",
    "no_text.py": "\0\0\0",
    "recurses.py": "import recurses_too\n",
    "recurses_too.py": "from recurses import Nothing\n",
    "mine.py": (
        "import lightning.pytorch as pl\n"
        "from lg.attention import Pattern\n"
        "from lg.data import Packing, Source, Tokenizer\n"
        "from dataclasses import dataclass\n"
        "number = 3\n"
        "def function(): return 3\n"
        "class Plain: pass\n"
        "class OfSource(Source): pass\n"
        "class OfTokenizer(Tokenizer): pass\n"
        "class OfPattern(Pattern): pass\n"
        "class OfCallback(pl.Callback):\n    def __init__(self): raise ValueError('callback says no')\n"
        "class OfCallbackType(pl.Callback):\n    def __init__(self): raise TypeError('callback says no')\n"
        "class OfSourceRaises(Source):\n    def documents(self): raise ValueError('source says no')\n"
        "class OfSourceNone(Source):\n    def documents(self): return None\n"
        "class OfSourceText(Source):\n    def documents(self): return iter(['a', 'b', 'c'])\n"
        "class OfSourceInit(Source):\n    def __init__(self, n: int): raise RuntimeError('no')\n"
        "class OfTokenizerFloats(Tokenizer):\n"
        "    vocab_size = 256\n    end = 0\n"
        "    def encode(self, text): return [0.5] * len(text)\n"
        "    def decode(self, ids): return b''\n"
        "class OfTokenizerLarge(Tokenizer):\n"
        "    vocab_size = 9\n    end = 9\n"
        "    def encode(self, text): return list(text)\n"
        "    def decode(self, ids): return b''\n"
    ),
}

PATHS = (
    "", " ", ".", "..", "a.b.c", "lg", "lg.", ".lg", "lg.data", "lg.data.Nothing", "lg.nothing.Nothing", "os",
    "os.system",
    "builtins.int", "builtins.object", "builtins.None", "typing.Any", "abc.ABC", "Causal", "Folder", "Cut", "Bytes",
    "TextData", "HybridLM", "Checkpoints", "Source", "Tokenizer", "Packing", "Pattern", "Schedule", "LRSchedule",
    "Occasional", "causal", "Causall", "Windw", "Foldr", "TextDat", "HybridLm", "Checkpoint", "3", "a b", "a-b.c",
    "a/b",
    "é",
    "lightning.pytorch.Callback", "lightning.pytorch.LightningModule", "lightning.pytorch.LightningDataModule",
    "__main__.Nothing", "lg.data.files._Hidden", "mine", "mine.number", "mine.function", "mine.Plain", "mine.Nothing",
    "mine.OfSource", "mine.OfTokenizer", "mine.OfPattern", "mine.OfCallback", "mine.OfCallbackType",
    "mine.OfSourceRaises", "mine.OfSourceNone", "mine.OfSourceText", "mine.OfSourceInit", "mine.OfTokenizerFloats",
    "mine.OfTokenizerLarge", "raises_value.A", "raises_type.A", "raises_zero.A", "raises_import.A", "raises_os.A",
    "raises_key.A", "raises_assert.A", "broken_syntax.A", "no_text.A", "recurses.A", "json.tool.A", "this.s",
)  # fmt: skip

ARGUMENTS: dict[str, Any] = {
    "unknown argument": {"nothing": 1},
    "misspelled argument": {"widow": 8, "pth": "texts", "evry": 1, "vave_dir": "x"},
    "list": [1],
    "word": "window",
    "null": None,
    "number": 3,
    "argument with a dot": {"a.b": 1},
    "empty argument": {"": 1},
    "self": {"self": 1},
    "class in an argument": {"class_path": "Causal"},
}


def cases() -> Iterator[Case]:
    """Paths of each slot, in turns: what is wrong with one is mostly wrong with all; then arguments."""
    for number, (slot, place) in enumerate(SLOTS.items()):
        for turn, path in enumerate(PATHS):
            if turn % 3 == number % 3 or (path.startswith(("mine.Of", "raises", "recurses")) and number % 2):
                yield _case(f"{slot} is {path!r}", place, path)
                yield _case(f"{slot} is of {path!r}", place, {"class_path": path, "init_args": {}})
        for name, arguments in ARGUMENTS.items():
            if slot not in ("schedule", "packing"):
                yield _case(f"{slot} has {name}", place, {"class_path": _usual(slot), "init_args": arguments})
        yield _case(f"{slot} without class_path", place, {"init_args": {"path": "texts"}})
        yield _case(f"{slot} with another key", place, {"class_path": _usual(slot), "other": 3})
        yield _case(f"{slot} with dict_kwargs", place, {"class_path": _usual(slot), "dict_kwargs": {"a": 1}})
        yield _case(f"{slot} spelled ClassPath", place, {"ClassPath": _usual(slot)})


def _usual(slot: str) -> str:
    return {
        "model": "HybridLM", "pattern": "Causal", "schedule": "MiddleFull", "lr_schedule": "WSD", "data": "TextData",
        "source": "Folder", "tokenizer": "Bytes", "packing": "Cut", "upsample": "Upsample",
        "logger": "TensorBoardLogger", "callback": "Checkpoints",
    }[slot]  # fmt: skip


def _case(name: str, place: Place, value: Any) -> Case:
    def prepare() -> list[str]:
        for module, code in MODULES.items():
            Path(module).write_text(code)
        given: Config = _with(config(), place, value)
        return fit(given)

    return Case(KIND, name, prepare)
