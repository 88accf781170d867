"""``lg import``: a pretrained model as a folder to train from and to load in transformers, its tokenizer beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lg.cli.kept_as import check
from lg.cli.pretrained_part import open_as
from lg.cli.progress import ProgressLine, progress

if TYPE_CHECKING:
    from lg.cli.tokenizer_files import Found
    from lg.models.pretrained import Pretrained

HELP = """usage: lg import SOURCE FOLDER [--dtype=NAME]

Writes a folder of transformers, config.json, safetensors and tokenizer, of a pretrained model. SOURCE is smollm2, which
is fetched if it is not here (see lg data list), a GGUF file, or another folder of transformers.

  lg import smollm2 models/smollm2
  lg import model.Q8_0.gguf models/mine --dtype=bfloat16
  lg fit --config run.yaml --model.pretrained=models/smollm2

options:
  --dtype NAME   float32, bfloat16 or float16; by default that of the folder, and float32 of a GGUF file
"""


def run(args: list[str]) -> None:
    """Reads the model and writes the folder.

    Args:
        args: "import", and the words after it.

    Raises:
        ValueError: when the input is at fault, or the folder cannot be written; then there is none.
    """
    words = args[1:]
    if not words or {"-h", "--help"} & set(words):
        print(HELP, end="")
        return
    from lg.cli.bench import Parser

    parser = Parser(prog="lg import", allow_abbrev=False, add_help=False)
    parser.add_argument("source")
    parser.add_argument("folder")
    parser.add_argument("--dtype")
    options = parser.parse_args(words)
    check(options)
    folder = Path(options.folder)
    if folder.exists():
        raise ValueError(f"FOLDER: {str(folder)!r} exists; a folder that does not is needed")
    with progress("lg import") as line:
        source = _source(options.source, line)
        told = _written(source, folder, options.dtype, line)
    print(f"{folder}  {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:,.1f} MB\n{told}")


def _source(said: str, line: ProgressLine) -> Path:
    """Where the model lies; what can be fetched is."""
    path = Path(said).expanduser()
    if path.exists():
        return path
    if said != "smollm2":
        raise ValueError(f"SOURCE: {said!r} is not there; a GGUF file, a folder of transformers, or smollm2 is needed")
    from lg.data.assets import folder_of
    from lg.data.assets.fetch import fetching

    with fetching(line.show) as fetcher:
        fetcher.fetch(said)
    (found,) = folder_of(said).glob("*.gguf")
    return found


def _written(source: Path, folder: Path, dtype: str | None, line: ProgressLine) -> str:
    """Writes the folder; what became of the tokenizer."""
    import torch

    from lg.models.pretrained.out import save
    from lg.models.pretrained.weights import names

    line.show(f"reading {source.name}: 0%")
    found = open_as("SOURCE", source)
    called = names(found.config)
    weights = {}
    for number, (own, theirs) in enumerate(called.items()):
        line.show(f"reading {source.name}: {number / len(called):.0%}")
        tensor = found.weights.tensor(theirs)
        weights[own] = tensor if dtype is None else tensor.to(getattr(torch, dtype))
    tokenizer, told = _tokenizer(source)
    line.show(f"writing {folder.name}: it is found under its name when it is whole")
    files = {} if tokenizer is None else tokenizer.files
    save(folder, weights, found.config, found.sees, _longest(found, source), files=files, marks=found.marks)
    return told


def _longest(found: Pretrained, source: Path) -> int:
    if found.longest is None:
        raise ValueError(f"SOURCE: {str(source)!r} does not say max_position_embeddings; it is needed")
    return found.longest


def _tokenizer(source: Path) -> tuple[Found | None, str]:
    """The model's tokenizer, and what is said of it."""
    from lg.cli.tokenizer_files import named, of_gguf

    try:
        found = named(str(source), "tokenizer") if source.is_dir() else of_gguf(source)
    except ValueError as error:
        return None, f"without a tokenizer: {error}"
    return found, f"tokenizer of {found.whence}"
