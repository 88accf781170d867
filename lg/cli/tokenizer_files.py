"""The tokenizer that goes into a folder of transformers beside the model: found, and told where it was found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from lg.cli.pretrained_part import is_checkpoint

_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "vocab.json", "merges.txt", "tokenizer.model", "generation_config.json",
)  # fmt: skip
_MARKS = ("bos_token_id", "eos_token_id", "pad_token_id")
_CLASS = {"tokenizer_class": "PreTrainedTokenizerFast"}


@dataclass(frozen=True)
class Found:
    """A tokenizer.

    Attributes:
        whence: where it was found, in words.
        files: what goes into the folder, by name: a text, or a file that is copied.
        marks: numbers of special tokens, by the keys of config.json.
    """

    whence: str
    files: Mapping[str, str | Path]
    marks: Mapping[str, Any] = field(default_factory=dict)


def named(path: str, option: str = "--tokenizer") -> Found:
    """The tokenizer that the user names: a tokenizer.json, or a folder of transformers.

    Raises:
        ValueError: if it is neither.
    """
    given = Path(path).expanduser()
    if given.is_file() and given.name == "tokenizer.json":
        return Found(str(given), _fast(given, {}))
    found = _of_folder(given) if given.is_dir() else None
    if found is None:
        raise ValueError(f"{option}: {path!r} is none; a tokenizer.json, or a folder that has one, is needed")
    return found


def of_model(path: Path) -> Found | None:
    """The tokenizer that a model brings: a checkpoint's is that of its run; None if there is none.

    Raises:
        ValueError: if a GGUF file has one of a kind that is not known.
    """
    if is_checkpoint(path):
        return of_run(path)
    return of_gguf(path) if path.is_file() else _of_folder(path)


def of_run(checkpoint: Path) -> Found | None:
    """The tokenizer of the run that wrote a checkpoint, by the configuration that lies above it.

    That of the pretrained model, if there still is one; else that of the data, if it is a file.
    """
    config = config_above(checkpoint)
    return None if config is None else _configured(config)


def config_above(checkpoint: Path) -> Path | None:
    """The configuration of the run that wrote a checkpoint; None if it is not there any more."""
    files = (folder / "config.yaml" for folder in checkpoint.absolute().parents[:2])
    return next((file for file in files if file.is_file()), None)


def of_gguf(path: Path) -> Found:
    """The tokenizer inside a GGUF file.

    Raises:
        ValueError: if it is of a kind that is not known.
    """
    import mmap

    from gguf import GGUFReader

    from lg.data.assets.gguf_tokenizer import tokenizer_json

    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        text = tokenizer_json(cast(bytes, content)).decode()
    reader = GGUFReader(path)

    def told(key: str) -> Any:
        found = reader.get_field(f"tokenizer.{key}")
        return None if found is None else found.contents()

    tokens = told("ggml.tokens")
    numbers = {
        name: told(f"ggml.{own}_token_id") for name, own in {"bos": "bos", "eos": "eos", "pad": "padding"}.items()
    }
    more = {f"{name}_token": tokens[number] for name, number in numbers.items() if number is not None}
    if template := told("chat_template"):
        more["chat_template"] = template
    made = json.dumps({**_CLASS, **more}, indent=2, ensure_ascii=False) + "\n"
    return Found(str(path), {"tokenizer.json": text, "tokenizer_config.json": made})


def _of_folder(folder: Path) -> Found | None:
    files: dict[str, str | Path] = {name: folder / name for name in _FILES if (folder / name).is_file()}
    if not {"tokenizer.json", "tokenizer.model", "vocab.json"} & files.keys():
        return None
    try:
        told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        told = {}
    return Found(str(folder), files, {key: told[key] for key in _MARKS if told.get(key) is not None})


def _configured(config: Path) -> Found | None:
    import yaml

    try:
        told = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    pretrained = _at(told, "model", "init_args", "pretrained")
    if isinstance(pretrained, str):
        path = Path(pretrained).expanduser()
        # A run may have begun with its own checkpoint.
        is_own = is_checkpoint(path) and config_above(path) == config
        try:
            found = None if is_own else of_model(path)
        except ValueError:
            found = None
        if found is not None:
            whence = f"{found.whence} (model.init_args.pretrained of {config})"
            return Found(whence, found.files, found.marks)
    tokenizer = _at(told, "data", "init_args", "tokenizer")
    kind, own = _at(tokenizer, "class_path"), _at(tokenizer, "init_args", "path")
    if not isinstance(own, str) or not str(kind).endswith("TokenizerFile") or not Path(own).expanduser().is_file():
        return None
    from lg.data import TokenizerFile

    made = TokenizerFile(own, _at(tokenizer, "init_args", "end"))
    files = _fast(Path(own).expanduser(), {"eos_token": made.decode([made.end]).decode()})
    return Found(f"{own} (data.init_args.tokenizer of {config})", files, {"eos_token_id": made.end})


def _fast(file: Path, more: Mapping[str, str]) -> dict[str, str | Path]:
    return {"tokenizer.json": file, "tokenizer_config.json": json.dumps({**_CLASS, **more}, indent=2) + "\n"}


def _at(told: Any, *keys: str) -> Any:
    for key in keys:
        told = told.get(key) if isinstance(told, dict) else None
    return told
