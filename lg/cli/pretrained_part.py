"""Opens pretrained models for commands: what is refused is told of the command's own argument."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lg.cli.written import first_line

if TYPE_CHECKING:
    import torch

    from lg.models.decoder import Decoder
    from lg.models.pretrained import Pretrained


def open_as(key: str, path: str | Path) -> Pretrained:
    """What a model says of itself; see `open_pretrained`.

    Args:
        key: the argument that named it.
        path: a folder of transformers, a GGUF file or a checkpoint.

    Raises:
        ValueError: as `open_pretrained` does, of the argument.
    """
    from lg.models.pretrained import open_pretrained

    with _of(key):
        return open_pretrained(path)


def decoder_as(key: str, path: str | Path, dtype: torch.dtype, device: torch.device) -> tuple[Pretrained, Decoder]:
    """A model, and what it says of itself; the decoder is in eval mode, made on the device in this type.

    Raises:
        ValueError: as `open_as`, or if a tensor has another shape than the model says.
    """
    found = open_as(key, path)
    with _of(key):
        return found, found.decoder(dtype=dtype, device=device).eval()


def is_checkpoint(path: Path) -> bool:
    """Whether what lies there would be a checkpoint of lg's own: a file, or a folder of many."""
    return (path.is_file() and path.suffix != ".gguf") or (path / ".metadata").exists()


def checkpoint_as(key: str, path: Path, dtype: torch.dtype, device: torch.device) -> Decoder:
    """The model of a checkpoint as it is validated: layers see what they do in eval mode, and an adapter is merged.

    Args:
        key: the argument that named it.
        path: the checkpoint, a file.
        dtype: of the weights.
        device: where they lie.

    Raises:
        ValueError: if it cannot be read, or is none, of the argument.
    """
    import torch

    from lg.models.decoder import Decoder
    from lg.models.hybrid import HybridLM

    try:
        if path.is_file():
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever damage makes of pickled and packed bytes
        why = first_line(error) if zipfile.is_zipfile(path) else "it is no checkpoint, or a part of one"
        raise ValueError(
            f"{key}: {path.name!r} cannot be read: {why}; a checkpoint, a folder of transformers or a GGUF file is "
            "needed"
        ) from error
    try:
        module = HybridLM.from_checkpoint(str(path))
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
    if module.adapter is None:
        return module.model.to(device, dtype).eval()
    decoder = Decoder(module.decoder_config, [module.patterns[name] for name in module.evaluated_schedule])
    decoder.load_state_dict(module.plain_weights)
    return decoder.to(device, dtype).eval()


@contextmanager
def _of(key: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("model.init_args.pretrained", key)) from error
