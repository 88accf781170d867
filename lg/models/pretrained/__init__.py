"""Models of transformers as decoders, and decoders as models of transformers.

>>> from lg.models.pretrained import open_pretrained
>>> found = open_pretrained("path/of/a/model")  # doctest: +SKIP
>>> found.config.num_layers, found.sees[0]  # doctest: +SKIP
(30, Causal())
>>> decoder = found.decoder()  # doctest: +SKIP
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lg.attention import Pattern
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder
from lg.models.pretrained.config import Read, read
from lg.models.pretrained.gguf import Gguf
from lg.models.pretrained.saved import open_saved
from lg.models.pretrained.weights import Folder, Weights, check, load


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model.

    Attributes:
        config: its shape.
        sees: what each layer sees when the model is used; of a checkpoint, in eval mode.
        weights: its tensors, read when they are asked for.
        longest: positions that it was made for; None if it does not say.
        marks: numbers of its special tokens, by the keys of config.json.
    """

    config: DecoderConfig
    sees: tuple[Pattern, ...]
    weights: Weights
    longest: int | None
    marks: Mapping[str, int | list[int]]

    def fill(self, part: nn.Module, name: str, config: DecoderConfig) -> None:
        """Gives one part of a decoder its weights, as `lg.models.decoder.Fill`; the others are not read.

        Raises:
            ValueError: if a tensor has another shape than the part.
        """
        load(part, name, config, self.weights)

    def decoder(
        self, attention: str = "auto", dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> Decoder:
        """The model as it is; by default in this thread's default type, on its default device.

        Raises:
            ValueError: as `fill`.
        """
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype or before)
        try:
            with device or nullcontext():
                return Decoder(self.config, self.sees, attention, fill=self.fill)
        finally:
            torch.set_default_dtype(before)


def open_pretrained(path: str | Path) -> Pretrained:
    """Reads what a model says of itself; of the weights, only which there are.

    Args:
        path: a folder of transformers, a GGUF file, or a checkpoint of lg's own, whose name ends in .ckpt.

    Raises:
        ValueError: naming what is missing, damaged, or cannot be honoured.
    """
    folder = Path(path)
    if folder.suffix == ".ckpt":
        config, sees, saved = open_saved(folder)
        check(config, saved)
        return Pretrained(config, sees, saved, None, {})
    if folder.is_file() or folder.suffix == ".gguf":
        gguf = Gguf(folder)
        return _held(read(gguf.told), gguf)
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(
            f"model.init_args.pretrained: {str(path)!r} has no config.json; a folder of transformers is needed, or "
            "a GGUF file"
        )
    return _held(read(configuration(file, "model.init_args.pretrained")), Folder(folder))


def configuration(file: Path, key: str) -> dict[str, Any]:
    """What a config.json holds.

    Args:
        file: where it is.
        key: what named it, for a complaint.

    Raises:
        ValueError: if it cannot be read, or holds no object.
    """
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{key}: {str(file)!r} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{key}: {str(file)!r} is no JSON: {error}") from error
    if not isinstance(told, dict):
        raise ValueError(f"{key}: {str(file)!r} holds no object; it must map keys to values")
    return told


def _held(found: Read, weights: Weights) -> Pretrained:
    check(found.config, weights)
    return Pretrained(found.config, found.sees, weights, found.longest, found.marks)
