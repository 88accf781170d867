"""``lg export``: a trained model as a folder that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lg.cli.kept_as import check
from lg.cli.lengths import tokens_in
from lg.cli.pretrained_part import open_as
from lg.cli.progress import ProgressLine, progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from torch import Tensor

    from lg.cli.tokenizer_files import Found
    from lg.models.config import DecoderConfig
    from lg.models.hybrid import HybridLM
    from lg.models.pretrained import Pretrained

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
  --base NAME       with --adapter, the folder or name of the model that it is for; a folder's weights are compared
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
    from lg.cli.tokenizer_files import named

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
    with progress("lg export") as line:
        if options.adapter:
            told = _adapter_written(checkpoint, folder, options.dtype, options.base, line)
        else:
            positions = tokens_in(options.positions, "--positions")
            factor = None if options.linear is None else _factor(options.linear)
            told = _written(checkpoint, folder, positions, options.dtype, tokenizer, factor, line)
    print(f"{folder}  {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:,.1f} MB")
    for one in told:
        print(one)


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


def _opened(checkpoint: Path) -> HybridLM:
    """The model of a checkpoint.

    Raises:
        ValueError: if the file is none, or a part of one.
    """
    from lg.models.hybrid import HybridLM

    if checkpoint.is_dir() and not (checkpoint / ".metadata").exists():
        raise ValueError(f"CHECKPOINT: {str(checkpoint)!r} is a folder; a checkpoint of lg's, a file, is needed")
    try:
        return HybridLM.from_checkpoint(str(checkpoint))
    except ValueError as error:
        raise ValueError(f"CHECKPOINT: {error}") from error


def _written(
    checkpoint: Path,
    folder: Path,
    positions: int,
    dtype: str | None,
    tokenizer: Found | None,
    factor: float | None,
    line: ProgressLine,
) -> list[str]:
    """Writes the folder; what is to be said of it."""
    from lg.cli.tokenizer_files import marks_of_run
    from lg.models.presets import changed
    from lg.models.pretrained.out import save
    from lg.models.pretrained.remote import FILE
    from lg.models.rope_scaling import Linear

    line.show(f"reading {checkpoint.name}")
    module = _opened(checkpoint)
    sees, config = module.sees, module.decoder_config
    if factor is not None and config.rope_scaling is not None:
        raise ValueError(f"--linear: {factor:g} is not allowed; the model was trained with {config.rope_scaling}")
    if factor is not None:
        config = changed(config, {"rope_scaling": Linear(factor)})
    tokenizer, told = _tokenizer(checkpoint, tokenizer, config.vocab_size)
    files, marks = ({}, {}) if tokenizer is None else (tokenizer.files, tokenizer.marks)
    begun = marks_of_run(checkpoint)
    # What the tokenizer does not say is as the model had it, unless that was of another tokenizer.
    if all(begun.get(key, mark) == mark for key, mark in marks.items()):
        marks = {**begun, **marks}
    weights = _in_type(module.plain_weights, dtype, _kinds(checkpoint))
    line.show(f"writing {folder.name}: it is found under its name when it is whole")
    save(folder, weights, config, sees, positions, files=files, marks=marks)
    if (folder / FILE).exists():
        return [f"to be loaded with trust_remote_code=True: {FILE} says what its layers see", told]
    return [told]


def _tokenizer(checkpoint: Path, given: Found | None, vocab_size: int) -> tuple[Found | None, str]:
    """The tokenizer that goes into the folder, and what is said of it.

    Args:
        checkpoint: what is exported; its run's tokenizer is taken if none is named.
        given: what the user has named.
        vocab_size: how many tokens the model knows.

    Raises:
        ValueError: if the one that is named has ids that the model has not.
    """
    from lg.cli.tokenizer_files import of_run, size_of

    found = given or of_run(checkpoint)
    if found is None:
        return None, "without a tokenizer: --tokenizer names one"
    size = size_of(found)
    if size <= vocab_size:
        return found, f"tokenizer of {found.whence}"
    ids = f"has ids up to {size - 1}, and the model 0 to {vocab_size - 1}"
    if given is not None:
        raise ValueError(f"--tokenizer: {given.whence!r} {ids}; another tokenizer is needed")
    return None, f"without a tokenizer: that of {found.whence} {ids}; --tokenizer names another"


def _kinds(checkpoint: Path) -> dict[str, torch.dtype]:
    """What a checkpoint keeps its weights in, by the decoder's own names: a model is read in float32 in any case."""
    from lg.models.checkpoint import content

    return {
        name.removeprefix("decoder."): tensor.dtype for name, tensor in content(str(checkpoint))["state_dict"].items()
    }


def _in_type(weights: dict[str, Tensor], dtype: str | None, kinds: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    import torch

    return {
        name: one.to(kinds.get(name, one.dtype) if dtype is None else getattr(torch, dtype))
        for name, one in weights.items()
    }


def _adapter_written(
    checkpoint: Path, folder: Path, dtype: str | None, base: str | None, line: ProgressLine
) -> list[str]:
    """Writes the folder; what is to be said of the model that it is for."""
    from lg.models.adapters import LoRA
    from lg.models.pretrained.adapter import save_adapter

    line.show(f"reading {checkpoint.name}")
    module = _opened(checkpoint)
    kinds = _kinds(checkpoint)
    if not isinstance(module.adapter, LoRA):
        raise ValueError(f"--adapter: {str(checkpoint)!r} was trained without LoRA (model.init_args.adapter)")
    # Here a ~ is understood, by peft it is not.
    base = base if base is None or not Path(base).expanduser().is_dir() else str(Path(base).expanduser())
    line.show("comparing with the model that it is for")
    told = list(_held_to_base(module, kinds, base))
    line.show(f"writing {folder.name}: it is found under its name when it is whole")
    save_adapter(folder, _in_type(module.model.state_dict(), dtype, kinds), module.decoder_config, module.adapter, base)
    return told


def _held_to_base(module: HybridLM, kinds: Mapping[str, torch.dtype], base: str | None) -> Iterator[str]:
    """In what the model that an adapter is put onto differs from the one that it was trained on, weights apart.

    Raises:
        ValueError: if its weights differ, or it is no model.
    """
    if base is None:
        yield "not compared with the model that it is for: --base names one"
        return
    if Path(base).is_file():
        raise ValueError(f"--base: {base!r} is a file; a folder of transformers, or the name of one, is needed")
    if not Path(base).is_dir():
        yield f"not compared with the model that it is for: {base!r} is no folder here"
        return
    if not (Path(base) / "config.json").is_file():
        raise ValueError(f"--base: {base!r} has no config.json; a folder of transformers is needed")
    sees = module.sees
    try:
        found = open_as("--base", base)
    except ValueError as error:
        # transformers reads more than lg does.
        yield f"not compared with the model that it is for: {error}"
        return
    _check_weights(module, kinds, found, base)
    ours, theirs = _computed(module.decoder_config), _computed(found.config)
    for field in ours:
        if ours[field] != theirs[field]:
            yield f"its logits there are others: {base} has {field} {theirs[field]}, it was trained with {ours[field]}"
    pairs = list(zip(sees, found.sees, strict=True))
    for pair in dict.fromkeys(pairs):
        if pair[0] != pair[1]:
            layers = ", ".join(str(layer) for layer, one in enumerate(pairs) if one == pair)
            yield f"its logits there are others: layers {layers} of {base} see {pair[1]}, it was trained for {pair[0]}"


def _computed(config: DecoderConfig) -> dict[str, Any]:
    """The fields of a shape, rotary positions the way a folder tells them."""
    from lg.models.rope_scaling import NTK, ntk_theta

    if not isinstance(config.rope_scaling, NTK):
        return vars(config)
    theta = ntk_theta(config.rope_theta, config.rope_scaling.factor, config.head_width)
    return {**vars(config), "rope_theta": theta, "rope_scaling": None}


def _check_weights(module: HybridLM, kinds: Mapping[str, torch.dtype], found: Pretrained, base: str) -> None:
    """Refuses a model whose weights are not those that stayed as they were beside an adapter.

    Raises:
        ValueError: naming the first tensor that differs by more than is rounded in the type of the checkpoint.
    """
    import torch

    from lg.models.pretrained.weights import names

    weights: Mapping[str, Tensor] = module.model.state_dict(keep_vars=True)
    ours, theirs = names(module.decoder_config), names(found.config)
    needed = (
        "the adapter was trained on other weights; the folder that its run began with is needed (of a checkpoint, what "
        "lg export makes of it), or an export without --adapter"
    )
    for name in (*ours.values(), *theirs.values()):
        if (name in ours.values()) != (name in theirs.values()):
            whose = "the checkpoint" if name in ours.values() else "that folder"
            raise ValueError(f"--base: {base!r} is not allowed, since only {whose} has {name}: {needed}")
    for own, name in ours.items():
        mine, other = weights[own], found.weights.tensor(name)
        if mine.shape != other.shape:
            raise ValueError(
                f"--base: {base!r} is not allowed, since its {name} is {list(other.shape)} and that of the checkpoint "
                f"{list(mine.shape)}: {needed}"
            )
        kind = kinds[own]
        rounded = other.to(kind).to(mine.dtype)
        if not mine.requires_grad and not torch.allclose(
            mine, rounded, rtol=torch.finfo(kind).eps, atol=0, equal_nan=True
        ):
            most = (mine.detach().double() - rounded.double()).abs().max()
            raise ValueError(
                f"--base: {base!r} is not allowed, since its {name} differs from that of the checkpoint by up to "
                f"{most:.3g}: {needed}"
            )
