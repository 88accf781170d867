"""``lg merge``: the weighted average of models of one shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from lg.cli.progress import ProgressLine, progress
from lg.cli.written import save

HELP = """usage: lg merge OUT MODEL MODEL [MODEL ...] [--weights=W,W,...]

Writes the weighted average of models of one shape: of checkpoints, a file each, or of folders of transformers. Sums are
taken in float64, and each tensor has the type that the first model's has. What a folder has besides, such as
config.json and the tokenizer, is the first model's, and so is a checkpoint's configuration: name the one first whose
rotary positions and layers the average is to have.

  lg merge merged.ckpt after.ckpt before.ckpt
  lg merge models/merged models/replayed models/original --weights=0.5,0.5

A merged checkpoint has weights alone; a run begins with them by --model.pretrained=merged.ckpt.

options:
  --weights W,W,... one for each model; by default all the same, 1 in all
"""


def run(args: list[str]) -> None:
    """Reads the models and writes their average.

    Args:
        args: "merge", and the words after it.

    Raises:
        ValueError: when the input is at fault, or the result cannot be written; then there is none.
    """
    words = args[1:]
    if not words or {"-h", "--help"} & set(words):
        print(HELP, end="")
        return
    from lg.cli.bench import Parser

    parser = Parser(prog="lg merge", allow_abbrev=False, add_help=False)
    parser.add_argument("out")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--weights")
    options = parser.parse_args(words)
    out, models = Path(options.out), [Path(model) for model in options.models]
    if len(models) < 2:
        raise ValueError(f"MODEL: {options.models[0]!r} alone is not allowed; at least two models are needed")
    weights = _weights(options.weights, len(models))
    are_files = _check(out, models)
    if not math.isclose(sum(weights), 1, abs_tol=1e-9):
        print(f"the weights are {sum(weights):g} in all, not 1")
    with progress("lg merge") as line:
        told = _written(out, models, weights, are_files, line)
    if told:
        print(f"the models were trained with other values: {'; '.join(told)}; those of {models[0]} hold")
    files = [out] if out.is_file() else list(out.iterdir())
    print(f"{out}  {sum(file.stat().st_size for file in files) / 1e6:,.1f} MB")


def _written(
    out: Path, models: Sequence[Path], weights: Sequence[float], are_files: bool, line: ProgressLine
) -> list[str]:
    """Writes it; in what the first model's configuration decides."""
    from lg.models.merge import merge_folders, merged_checkpoint, other_values
    from lg.models.pretrained import configuration

    def tell(share: float) -> None:
        line.show(f"merging {share:.0%}")

    if not are_files:
        told = [configuration(model / "config.json", "MODEL") for model in models]
        merge_folders(out, models, weights, tell)
        return other_values(models, told)
    content, others = merged_checkpoint(models, weights, tell)
    save(out, content, "OUT")
    return others


def _check(out: Path, models: Sequence[Path]) -> bool:
    """Refuses what can be refused before anything is read; whether the models are files."""
    for model in models:
        if not model.exists():
            raise ValueError(
                f"MODEL: {str(model)!r} does not exist; a checkpoint or a folder of transformers is needed"
            )
        if (model / ".metadata").exists():
            raise ValueError(
                f"MODEL: {str(model)!r} is a sharded checkpoint; `lg consolidate {model}` makes one file of it"
            )
        if model.is_dir() and not (model / "config.json").is_file():
            raise ValueError(f"MODEL: {str(model)!r} has no config.json; a folder of transformers is needed")
        if model.is_dir() != models[0].is_dir():
            raise ValueError(
                f"MODEL: {str(models[0])!r} and {str(model)!r} are not of one kind; all must be checkpoints, or all "
                "folders of transformers"
            )
    are_files = models[0].is_file()
    if out.exists():
        raise ValueError(f"OUT: {str(out)!r} exists already; another name is needed")
    if not out.parent.is_dir() or (out.suffix == ".ckpt") != are_files:
        what = "a .ckpt file" if are_files else "a folder"
        raise ValueError(f"OUT: {str(out)!r} is not allowed; it must be {what}, in a folder that exists")
    return are_files


def _weights(told: str | None, num_models: int) -> list[float]:
    if told is None:
        return [1 / num_models] * num_models
    try:
        weights = [float(word) for word in told.split(",")]
    except ValueError:
        weights = []
    if len(weights) != num_models or not all(map(math.isfinite, weights)):
        raise ValueError(f"--weights: {told!r} is not allowed; it must be {num_models} numbers, such as 0.5,0.5")
    return weights
