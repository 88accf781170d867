"""Decoders as folders that transformers loads: config.json, and safetensors in one file or several.

Where transformers has no class for what the layers see, a small model file lies beside them.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from lg.attention import Pattern
from lg.models.config import DecoderConfig
from lg.models.pretrained.config import family_of, shape, written
from lg.models.pretrained.remote import FILE, remote
from lg.models.pretrained.weights import INDEX, state

SHARD_BYTES = 5_000_000_000
_METADATA = {"format": "pt"}


def save(
    path: str | Path,
    weights: Mapping[str, Tensor],
    config: DecoderConfig,
    sees: Sequence[Pattern],
    longest: int,
    shard_bytes: int = SHARD_BYTES,
    files: Mapping[str, str | Path] | None = None,
    marks: Mapping[str, int | list[int]] | None = None,
) -> None:
    """Writes a folder from which ``AutoModelForCausalLM.from_pretrained`` makes a model of the same logits.

    It is whole or not there. Layers that see something else than everything, or a window of one size, need
    ``trust_remote_code=True`` there.

    Args:
        path: the folder, which must not exist.
        weights: the decoder's, by its own names, in the type that is to be written.
        config: its shape.
        sees: the pattern of each layer.
        longest: positions that it is made for.
        shard_bytes: the most that a file holds, unless a single tensor is larger.
        files: what else goes into the folder, as a tokenizer's, by name: a text, or a file that is copied.
        marks: numbers of special tokens, by the keys of config.json.

    Raises:
        ValueError: if the folder exists or cannot be written, or transformers has no such model; with what it lacks.
    """
    out = Path(path)
    told, code = written(config, sees, longest), None
    if told is None:
        told, code = remote(shape(config, family_of(config), longest), config, sees)
    if out.exists():
        raise ValueError(f"{str(out)!r} exists; a folder that does not is needed")
    aside = out.with_name(f".{uuid.uuid4().hex}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        _write_weights(aside, dict(state(weights, config)), shard_bytes)
        dtype = str(weights["embedding.weight"].dtype).removeprefix("torch.")
        told |= {**(marks or {}), "dtype": dtype, "torch_dtype": dtype}
        (aside / "config.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        if code is not None:
            (aside / FILE).write_text(code, encoding="utf-8")
        for name, content in (files or {}).items():
            if isinstance(content, Path):
                shutil.copyfile(content, aside / name)
            else:
                (aside / name).write_text(content, encoding="utf-8")
        aside.rename(out)
    except OSError as error:
        raise ValueError(f"{str(out)!r} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_weights(folder: Path, tensors: Mapping[str, Tensor], shard_bytes: int) -> None:
    from safetensors.torch import save_file

    shards = list(_shards(tensors, shard_bytes))
    if len(shards) == 1:
        save_file(_plain(tensors, shards[0]), folder / "model.safetensors", _METADATA)
        return
    file_of: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(_plain(tensors, names), folder / name, _METADATA)
        file_of |= dict.fromkeys(names, name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": file_of}, indent=2) + "\n")


def _plain(tensors: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    return {name: tensors[name].detach().cpu().contiguous() for name in names}


def _shards(tensors: Mapping[str, Tensor], most: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if names and size + tensor.nbytes > most:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.nbytes
    yield names
