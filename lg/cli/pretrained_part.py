"""Opens pretrained models for commands: what is refused is told of the command's own argument."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

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


@contextmanager
def _of(key: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace("model.init_args.pretrained", key)) from error
