"""What a model that writes is kept as: the options ``--dtype``, ``--kv`` and ``--compile`` of commands."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from lg.inference.formats import Format
    from lg.models.decoder import Decoder

DTYPES = ("float32", "bfloat16", "float16")
KV = ("auto", *DTYPES, "int8", "int8_int4", "int4")
"""``int8_int4``: keys in 8 bits and values in 4, as values have no outlying features."""


def check(options: Namespace) -> None:
    """Refuses other names, of those options that the command has.

    Raises:
        ValueError: naming the option and what is allowed.
    """
    for name, allowed in (("dtype", DTYPES), ("kv", KV)):
        if (given := getattr(options, name, None)) not in (None, *allowed):
            raise ValueError(f"--{name}: {given!r} is not allowed; allowed are {', '.join(allowed)}")


def dtype_of(name: str | None, device: torch.device) -> torch.dtype:
    """The type of a name; by default bfloat16 on a GPU, else float32."""
    import torch

    found: torch.dtype = getattr(torch, name or ("bfloat16" if device.type == "cuda" else "float32"))
    return found


def formats_of(name: str, weights: torch.dtype) -> tuple[Format, Format]:
    """What keys and what values are kept as; "auto" is the type of the weights."""
    import torch

    from lg.inference.formats import Int4, Int8, Plain

    quantised: dict[str, tuple[Format, Format]] = {
        "int8": (Int8(), Int8()),
        "int8_int4": (Int8(), Int4()),
        "int4": (Int4(), Int4()),
    }
    if name in quantised:
        return quantised[name]
    plain = Plain(weights if name == "auto" else getattr(torch, name))
    return plain, plain


def compile_on(device: torch.device) -> Callable[[Decoder], object]:
    """What compiles a decoder, if this device has something to gain.

    Raises:
        ValueError: naming the option, if it has not.
    """
    from lg.inference.compiled import compiled

    if device.type != "cuda":
        raise ValueError(f"--compile: not allowed on {device}; it is for CUDA devices")
    return compiled
