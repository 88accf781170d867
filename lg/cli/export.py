"""``lg export``: a trained model as a folder that transformers loads."""

from __future__ import annotations

import sys
from pathlib import Path

from lg.cli.lengths import tokens_in
from lg.cli.progress import ProgressLine

HELP = """usage: lg export CHECKPOINT FOLDER --positions=N [--OPTION=VALUE ...]

Writes a trained model as a folder of transformers: config.json and safetensors, which AutoModelForCausalLM loads, and
which gives the same logits. Layers may see everything, or a window of one size; what transformers cannot say, such as
sinks, is refused by name. The checkpoint is a file; `lg consolidate` makes one of a folder.

  lg export step=00001000.ckpt models/mine --positions=32K
  lg export step=00001000.ckpt models/mine --positions=32K --dtype=bfloat16 --tokenizer=tokenizer.json

options:
  --positions N     tokens of the longest document that it is made for (max_position_embeddings)
  --dtype NAME      float32, bfloat16 or float16; by default that of the checkpoint
  --tokenizer PATH  a tokenizer.json, or a folder of transformers whose tokenizer comes along
"""

_DTYPES = ("float32", "bfloat16", "float16")
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip


def run(args: list[str]) -> None:
    """Reads the checkpoint and writes the folder.

    Args:
        args: "export", and the words after it.

    Raises:
        ValueError: when the input is at fault, or the folder cannot be written; then there is none.
    """
    words = args[1:]
    if not words or {"-h", "--help"} & set(words):
        print(HELP, end="")
        return
    from lg.cli.bench import Parser

    parser = Parser(prog="lg export", allow_abbrev=False, add_help=False)
    parser.add_argument("checkpoint")
    parser.add_argument("folder")
    for name in ("positions", "dtype", "tokenizer"):
        parser.add_argument(f"--{name}")
    options = parser.parse_args(words)
    if options.positions is None:
        raise ValueError("--positions: needed, such as 32K: tokens of the longest document that it is made for")
    positions = tokens_in(options.positions, "--positions")
    if options.dtype not in (None, *_DTYPES):
        raise ValueError(f"--dtype: {options.dtype!r} is not allowed; allowed are {', '.join(_DTYPES)}")
    files = _tokenizer_files(options.tokenizer)
    checkpoint, folder = Path(options.checkpoint), Path(options.folder)
    if not checkpoint.exists():
        raise ValueError(f"CHECKPOINT: {str(checkpoint)!r} does not exist")
    line = ProgressLine()
    try:
        num_bytes = _written(checkpoint, folder, positions, options.dtype, files, line)
    except KeyboardInterrupt:
        line.clear()
        print("lg export: interrupted; nothing was written", file=sys.stderr)
        raise SystemExit(130) from None
    line.clear()
    print(f"{folder}  {num_bytes / 1e6:,.1f} MB")


def _written(
    checkpoint: Path, folder: Path, positions: int, dtype: str | None, files: list[Path], line: ProgressLine
) -> int:
    import torch

    from lg.attention import Pattern
    from lg.models.hybrid import HybridLM
    from lg.models.pretrained.out import save

    line.show(f"reading {checkpoint.name}")
    module = HybridLM.from_checkpoint(str(checkpoint))
    patterns = [module.patterns[name] for name in module.schedule]
    sees = [pattern for pattern in patterns if isinstance(pattern, Pattern)]
    if len(sees) < len(patterns):
        raise ValueError("model.init_args.patterns: a layer whose mixer is not attention cannot be exported")
    weights = module.model.state_dict()
    if dtype is not None:
        weights = {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights.items()}
    line.show(f"writing {folder.name}: it is found under its name when it is whole")
    save(folder, weights, module.decoder_config, sees, positions, files=files)
    return sum(file.stat().st_size for file in folder.iterdir())


def _tokenizer_files(path: str | None) -> list[Path]:
    if path is None:
        return []
    given = Path(path)
    found = [given / name for name in _TOKENIZER if (given / name).is_file()] if given.is_dir() else [given]
    if not found or not all(file.is_file() and file.name in _TOKENIZER for file in found):
        raise ValueError(f"--tokenizer: {path!r} is none; a tokenizer.json, or a folder that has one, is needed")
    return found
