"""``lg export``: a trained model as a folder that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lg.cli.kept_as import check
from lg.cli.lengths import tokens_in
from lg.cli.progress import ProgressLine, progress

if TYPE_CHECKING:
    from torch import Tensor

    from lg.cli.tokenizer_files import Found

HELP = """usage: lg export CHECKPOINT FOLDER --positions=N [--OPTION=VALUE ...]

Writes a trained model as a folder of transformers: config.json, safetensors and tokenizer. AutoModelForCausalLM loads
it, and it gives the same logits. Where layers see what transformers has no class for, such as sinks, a model file lies
in the folder, and trust_remote_code=True is needed. The checkpoint is a file; `lg consolidate` makes one of a folder.

  lg export step=00001000.ckpt models/mine --positions=32K
  lg export step=00001000.ckpt models/mine --positions=32K --dtype=bfloat16 --tokenizer=tokenizer.json

options:
  --positions N     tokens of the longest document that it is made for (max_position_embeddings)
  --dtype NAME      float32, bfloat16 or float16; by default that of the checkpoint
  --tokenizer PATH  a tokenizer.json, or a folder of transformers whose tokenizer comes along; by default that of the
                    run: of the model that it began with, or of its data
  --linear FACTOR   positions are divided by it (rope_scaling Linear), as what E2LLM trained needs for a longer context
  --adapter         only what LoRA has trained, in the format of peft; without it, it is merged into the weights
  --base NAME       with --adapter, the folder or name of the model that it is for
"""


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
    from lg.cli.tokenizer_files import named, of_run
    from lg.models.pretrained.remote import FILE

    parser = Parser(prog="lg export", allow_abbrev=False, add_help=False)
    parser.add_argument("checkpoint")
    parser.add_argument("folder")
    for name in ("positions", "dtype", "tokenizer", "linear", "base"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--adapter", action="store_true")
    options = parser.parse_args(words)
    for name in ("positions", "tokenizer", "linear") if options.adapter else ("base",):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name}: not allowed with{'' if options.adapter else 'out'} --adapter")
    if options.positions is None and not options.adapter:
        raise ValueError("--positions: needed, such as 32K: tokens of the longest document that it is made for")
    check(options)
    tokenizer = None if options.tokenizer is None else named(options.tokenizer)
    checkpoint, folder = Path(options.checkpoint), Path(options.folder)
    if not checkpoint.exists():
        raise ValueError(f"CHECKPOINT: {str(checkpoint)!r} does not exist")
    if folder.exists():
        raise ValueError(f"FOLDER: {str(folder)!r} exists; a folder that does not is needed")
    if not options.adapter:
        tokenizer = tokenizer or of_run(checkpoint)
    with progress("lg export") as line:
        if options.adapter:
            num_bytes = _adapter_written(checkpoint, folder, options.dtype, options.base, line)
        else:
            positions = tokens_in(options.positions, "--positions")
            factor = None if options.linear is None else _factor(options.linear)
            num_bytes = _written(checkpoint, folder, positions, options.dtype, tokenizer, factor, line)
    print(f"{folder}  {num_bytes / 1e6:,.1f} MB")
    if options.adapter:
        return
    if (folder / FILE).exists():
        print(f"to be loaded with trust_remote_code=True: {FILE} says what its layers see")
    print("without a tokenizer: --tokenizer names one" if tokenizer is None else f"tokenizer of {tokenizer.whence}")


def _factor(text: str) -> float:
    """The number that an option says.

    Raises:
        ValueError: if it is none that positions can be divided by.
    """
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 1 <= factor < float("inf"):
        raise ValueError(f"--linear: {text!r} is not allowed; it must be a number of at least 1, such as 8")
    return factor


def _written(
    checkpoint: Path,
    folder: Path,
    positions: int,
    dtype: str | None,
    tokenizer: Found | None,
    factor: float | None,
    line: ProgressLine,
) -> int:
    from lg.models.hybrid import HybridLM
    from lg.models.presets import changed
    from lg.models.pretrained.out import save
    from lg.models.rope_scaling import Linear

    line.show(f"reading {checkpoint.name}")
    module = HybridLM.from_checkpoint(str(checkpoint))
    sees = module.sees
    weights = _in_type(module.plain_weights, dtype)
    line.show(f"writing {folder.name}: it is found under its name when it is whole")
    files, marks = ({}, {}) if tokenizer is None else (tokenizer.files, tokenizer.marks)
    config = module.decoder_config
    if factor is not None and config.rope_scaling is not None:
        raise ValueError(f"--linear: {factor:g} is not allowed; the model was trained with {config.rope_scaling}")
    if factor is not None:
        config = changed(config, {"rope_scaling": Linear(factor)})
    save(folder, weights, config, sees, positions, files=files, marks=marks)
    return sum(file.stat().st_size for file in folder.iterdir())


def _in_type(weights: dict[str, Tensor], dtype: str | None) -> dict[str, Tensor]:
    import torch

    return weights if dtype is None else {name: one.to(getattr(torch, dtype)) for name, one in weights.items()}


def _adapter_written(checkpoint: Path, folder: Path, dtype: str | None, base: str | None, line: ProgressLine) -> int:
    from lg.models.adapters import LoRA
    from lg.models.hybrid import HybridLM
    from lg.models.pretrained.adapter import save_adapter

    line.show(f"reading {checkpoint.name}")
    module = HybridLM.from_checkpoint(str(checkpoint))
    if not isinstance(module.adapter, LoRA):
        raise ValueError(f"--adapter: {str(checkpoint)!r} was trained without LoRA (model.init_args.adapter)")
    line.show(f"writing {folder.name}: it is found under its name when it is whole")
    save_adapter(folder, _in_type(module.model.state_dict(), dtype), module.decoder_config, module.adapter, base)
    return sum(file.stat().st_size for file in folder.iterdir())
