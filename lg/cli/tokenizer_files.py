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
        known = _vocabulary({given.name: given})
        tokens = {f"{name}_token": token for name, token in _tokens(given.parent).items() if token in known}
        return Found(str(given), _fast(given, tokens), _marks(given.parent, known))
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


def marks_of_run(checkpoint: Path) -> Mapping[str, Any]:
    """Numbers of the special tokens of the model that a checkpoint's run began with, by the keys of config.json.

    There are none where that model is not there any more, or is not known.
    """
    config = config_above(checkpoint)
    path = None if config is None else _pretrained(config, _read(config))
    if path is None:
        return {}
    if is_checkpoint(path):
        return marks_of_run(path)
    if path.is_dir():
        return _marks(path, {})
    from lg.models.pretrained import open_pretrained

    try:
        return open_pretrained(path).marks
    except ValueError:
        return {}


def size_of(found: Found) -> int:
    """The highest id of a tokenizer plus one; 0 if its files are of a kind that is not read here."""
    return max(_vocabulary(found.files).values(), default=-1) + 1


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
    marks = {f"{name}_token_id": number for name, number in numbers.items() if number is not None}
    return Found(str(path), {"tokenizer.json": text, "tokenizer_config.json": made}, marks)


def _of_folder(folder: Path) -> Found | None:
    files: dict[str, str | Path] = {name: folder / name for name in _FILES if (folder / name).is_file()}
    if not {"tokenizer.json", "tokenizer.model", "vocab.json"} & files.keys():
        return None
    return Found(str(folder), files, _marks(folder, _vocabulary(files)))


def _marks(folder: Path, known: Mapping[str, int]) -> dict[str, Any]:
    """Numbers of special tokens: what a folder's config.json says, else how it spells them, in a known vocabulary."""
    spelled = {f"{name}_token_id": known.get(token) for name, token in _tokens(folder).items()}
    said = [json_object(folder / "config.json"), json_object(folder / "generation_config.json"), spelled]
    found = {key: next((one[key] for one in said if one.get(key) is not None), None) for key in _MARKS}
    return {key: mark for key, mark in found.items() if mark is not None}


def _tokens(folder: Path) -> dict[str, str]:
    """How the files beside a tokenizer spell its special tokens: "bos", "eos" and "pad" to that."""
    said = {**json_object(folder / "special_tokens_map.json"), **json_object(folder / "tokenizer_config.json")}
    found = {name: said.get(f"{name}_token") for name in ("bos", "eos", "pad")}
    spelled = {name: token.get("content") if isinstance(token, dict) else token for name, token in found.items()}
    return {name: token for name, token in spelled.items() if isinstance(token, str)}


def _vocabulary(files: Mapping[str, str | Path]) -> dict[str, int]:
    """Tokens and ids of a tokenizer.json, or of a vocab.json and what was added to it; empty if there is neither."""
    whole = json_object(files.get("tokenizer.json"))
    model, added = whole.get("model"), whole.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # tokens and how likely they are, in order
        vocabulary = {one[0]: number for number, one in enumerate(vocabulary) if isinstance(one, list) and one}
    if isinstance(added, list):
        added = {one.get("content"): one.get("id") for one in added if isinstance(one, dict)}
    if not whole:
        vocabulary, added = json_object(files.get("vocab.json")), json_object(files.get("added_tokens.json"))
    found = {**(vocabulary if isinstance(vocabulary, dict) else {}), **(added if isinstance(added, dict) else {})}
    return {token: number for token, number in found.items() if isinstance(token, str) and isinstance(number, int)}


def json_object(content: str | Path | None) -> dict[str, Any]:
    """A JSON object: a text, or a file; empty if it is none."""
    try:
        told = json.loads(content.read_text(encoding="utf-8") if isinstance(content, Path) else content or "")
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _read(config: Path) -> Any:
    """What a run's configuration says; None if it cannot be read."""
    import yaml

    try:
        return yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _pretrained(config: Path, told: Any) -> Path | None:
    """The model that a run began with; None if it is not said."""
    said = _at(told, "model", "init_args", "pretrained")
    if not isinstance(said, str) or not said:
        return None
    path = Path(said).expanduser()
    # A run may have begun with its own checkpoint.
    return None if is_checkpoint(path) and config_above(path) == config else path


def _configured(config: Path) -> Found | None:
    told = _read(config)
    path = _pretrained(config, told)
    if path is not None:
        try:
            found = of_model(path)
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
