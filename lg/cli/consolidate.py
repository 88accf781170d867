"""``lg consolidate``: a checkpoint that many devices wrote into a folder, as one file for one device."""

from __future__ import annotations

from pathlib import Path

from lg.cli.progress import ProgressLine, progress
from lg.cli.written import first_line, save

HELP = """usage: lg consolidate FOLDER [OUT.ckpt]

Makes one file of a sharded checkpoint, as trainer.strategy lg.parallel.HybridStrategy writes it into a folder. The file
holds all that the folder does: weights, optimizer, the place in the data. It is what one device would have written, and
trains on with any number of them; the folder stays. No GPU is needed, but host memory for all of it.

  lg consolidate step=00001000.ckpt                   writes step=00001000.whole.ckpt beside it
  lg consolidate step=00001000.ckpt model.ckpt
  lg validate --config run.yaml --ckpt_path model.ckpt
"""


def run(args: list[str]) -> None:
    """Reads the folder and writes the file.

    Args:
        args: "consolidate", and the words after it.

    Raises:
        ValueError: when the input is at fault, or the file cannot be written; then there is none.
    """
    words = args[1:]
    if not words or {"-h", "--help"} & set(words):
        print(HELP, end="")
        return
    if options := [word for word in words if word.startswith("-")]:
        raise ValueError(
            f"{options[0]!r} is not allowed; `lg consolidate` takes no options (see lg consolidate --help)"
        )
    if len(words) > 2:
        raise ValueError(f"{words[2]!r} is not allowed; a folder and one file are (see lg consolidate --help)")
    folder = Path(words[0])
    path = Path(words[1]) if len(words) == 2 else folder.with_name(f"{folder.stem}.whole.ckpt")
    _check(folder, path)
    with progress("lg consolidate") as line:
        num_bytes = _written(folder, path, line)
    print(f"{path}  {num_bytes / 1e6:,.1f} MB")


def _check(folder: Path, path: Path) -> None:
    """Refuses what can be refused before anything is read."""
    from lg.cli.last import damage_of

    if not folder.exists():
        raise ValueError(f"FOLDER: {str(folder)!r} does not exist; a sharded checkpoint is needed")
    if not folder.is_dir():
        raise ValueError(f"FOLDER: {str(folder)!r} is one file already; a sharded checkpoint, a folder, is needed")
    if folder.name.endswith(".part"):
        raise ValueError(f"FOLDER: {str(folder)!r} was never finished; a whole checkpoint is needed")
    if damage := damage_of(folder):
        raise ValueError(f"FOLDER: {str(folder)!r} {damage}; a whole checkpoint is needed")
    if path.exists():
        raise ValueError(f"OUT: {str(path)!r} exists already; another name is needed")
    if path.suffix != ".ckpt" or not path.parent.is_dir():
        raise ValueError(f"OUT: {str(path)!r} is not allowed; it must be a .ckpt file in a folder that exists")


def _written(folder: Path, path: Path, line: ProgressLine) -> int:
    """Writes the file, aside and then under its name; how many bytes it has."""
    from lg.parallel.consolidate import consolidated

    line.show(f"reading {folder.name}: 0%")
    try:
        content = consolidated(folder, lambda share: line.show(f"reading {folder.name}: {share:.0%}"))
    # torch tells damage and a lack of memory so.
    except (OSError, RuntimeError) as error:
        raise ValueError(f"FOLDER: {str(folder)!r} cannot be read: {first_line(error)}") from error
    line.show(f"writing {path.name}: it is found under its name when it is whole")
    save(path, content, "OUT")
    return path.stat().st_size
