"""The arrows of the house: who may import whom. An import inside a function counts too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ALL = {"attention", "models", "data", "parallel", "inference", "serve", "evaluation", "monitor", "folder"}

# What each part of lg may import of lg. `monitor` reads anything; only tests import `testing`.
MAY_IMPORT = {
    "attention": {"attention", "folder"},
    "models": {"models", "attention"},
    "data": {"data", "folder"},
    "parallel": {"parallel", "attention"},
    "inference": {"inference", "attention", "models"},
    "serve": {"serve", "inference"},
    "evaluation": {"evaluation", "inference", "attention", "models", "data"},
    "monitor": ALL,
    "testing": ALL | {"testing"},
    "cli": ALL | {"cli"},
    "folder": set[str](),
    "__main__": {"cli"},
    "__init__": {"inference"},
}

# Where a library may be imported: files, or folders with all that is in them.
ONLY_IN = {
    "lightning": [
        "models/hybrid.py",
        "models/running.py",
        "models/auto_memory.py",
        "parallel/strategy.py",
        "parallel/launcher.py",
        "data/datamodule.py",
        "data/random_tokens.py",
        "data/shards.py",
        "monitor",
        "cli",
    ],
    "triton": ["attention/impl/triton", "inference/matvec_kernel.py"],
    "starlette": ["serve/app.py"],
    "uvicorn": ["serve/server.py"],
    "flash_attn": ["attention/impl/flash.py"],
    "transformers": ["models/in_transformers.py", "models/pretrained/modeling_lg.py"],
    "torch.distributed": ["parallel", "monitor", "testing"],
    "PIL": ["attention/picture.py", "cli/curve.py", "cli/bench_plot.py", "cli/probe_plot.py", "monitor"],
}

ATTENTION_NEEDS = {"torch", "triton", "flash_attn", "PIL"}


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that a source imports, as dotted names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the full name, not a relative one"
            # `from lg import data` imports lg.data.
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            yield "torch.distributed"


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def wrong(file: str, source: str) -> list[str]:
    """The imports of lg/``file`` that point the wrong way."""
    part = Path(file).parts[0].removesuffix(".py")
    found = []
    for name in imports(ast.parse(source)):
        top, *rest = name.split(".")
        outside = top != "lg"
        if not outside and rest and rest[0] in MAY_IMPORT and rest[0] not in MAY_IMPORT[part]:
            found.append(name)
        for library, places in ONLY_IN.items():
            if is_in(name, library) and not any(Path(file).is_relative_to(p) for p in places):
                found.append(name)
        known = top in sys.stdlib_module_names or top in ATTENTION_NEEDS
        if outside and part == "attention" and not known:
            found.append(name)
    return found


def test_every_import_follows_the_arrows(root: Path) -> None:
    files = sorted((root / "lg").rglob("*.py"))
    assert files
    bad = {}
    for path in files:
        file = path.relative_to(root / "lg").as_posix()
        assert Path(file).parts[0].removesuffix(".py") in MAY_IMPORT, f"lg/{file} has no arrows yet"
        if names := wrong(file, path.read_text(encoding="utf-8")):
            bad[file] = names
    assert not bad


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("attention/tiles.py", "import numpy"),
        ("attention/tiles.py", "from lg.models import decoder"),
        ("attention/tiles.py", "def f():\n    from PIL import Image"),
        ("attention/attend.py", "import triton.language as tl"),
        ("models/decoder.py", "from lightning.pytorch import LightningModule"),
        ("models/decoder.py", "from lg import data"),
        ("models/decoder.py", "import torch\ntorch.distributed.barrier()"),
        ("models/decoder.py", "from torch import distributed"),
        ("data/source.py", "import lg.attention.pattern"),
        ("monitor/throughput.py", "from lg.testing import check_pattern"),
        ("cli/commands.py", "import lg.testing"),
        ("__init__.py", "import lg.cli"),
    ],
)
def test_a_wrong_import_is_found(file: str, source: str) -> None:
    assert wrong(file, source)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("attention/impl/triton/forward.py", "import triton\nfrom lg.attention.tiles import Tiles"),
        ("attention/picture.py", "def f():\n    from PIL import Image"),
        ("models/hybrid.py", "import lightning.pytorch\nfrom lg.attention import Pattern"),
        ("monitor/throughput.py", "import torch.distributed\nfrom lg.data import CountModel"),
        ("evaluation/needle.py", "from lg.data import Tokenizer\nfrom lg.models.decoder import Decoder"),
        ("cli/__init__.py", "from lg import __version__"),
    ],
)
def test_a_right_import_passes(file: str, source: str) -> None:
    assert not wrong(file, source)
