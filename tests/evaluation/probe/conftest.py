"""Decoders made by hand, of which is known what each layer does, and questions that they can answer."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lg.attention import Causal
from lg.data import Tokenizer
from lg.evaluation import Haystack, Needles, haystack
from lg.models.block import Attention
from lg.models.config import DecoderConfig
from lg.models.decoder import Decoder

sys.path.insert(0, str(Path(__file__).parent))

CODE = 64  # features of a token's code, and of a head
VOCAB = 240
LENGTH = 160
Make = Callable[..., Decoder]


class Words(Tokenizer):
    """A number for each digit, and one for each question or sentence of a needle, or word of the text."""

    vocab_size = VOCAB  # type: ignore[assignment]
    end = 0  # type: ignore[assignment]

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {str(digit): digit + 1 for digit in range(10)}

    def encode(self, text: bytes) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        found = re.findall(r"\d|\n?The magic number of \w+ is |\.\n|\w+|.", text.decode())
        return np.array([self.numbers.setdefault(one, len(self.numbers) + 1) for one in found], np.int32)

    def decode(self, ids: object) -> bytes:
        raise NotImplementedError


def _decoder(*roles: str) -> Decoder:
    """Layers by what they do; the stream holds four codes: of the token, of the one before, found, and said.

    "previous": the code of the token before is written beside each token's own. "idle": it attends so, and writes
    nothing. "far": at a token, the code of what came after the same token before is said. "find": the same code is
    found; "say": what is found is looked up among the tokens, and said. Only the first of two heads is written.
    """
    far = tuple(n for n, role in enumerate(roles) if role in ("far", "find", "say"))
    config = DecoderConfig(
        num_layers=len(roles), width=4 * CODE, num_heads=2, num_kv_heads=2, head_width=CODE, ffn_width=8,
        vocab_size=VOCAB, rope_theta=2.0, qkv_bias=True, no_rope_layers=far,
    )  # fmt: skip
    decoder = Decoder(config, [Causal()] * len(roles)).eval()
    codes = torch.randn(VOCAB, CODE, generator=torch.Generator().manual_seed(0))
    codes = codes / codes.norm(dim=1, keepdim=True)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim > 1 or parameter.shape != (4 * CODE,):
                parameter.zero_()
        decoder.embedding.weight[:, :CODE] = codes
        # Who finds nothing says the last token, and a trace of something else is not heard.
        decoder.embedding.weight[:, 3 * CODE :] = codes[-1] / 2
        decoder.head.weight[:, 3 * CODE :] = 10 * codes
        for block, role in zip(decoder.blocks, roles, strict=True):
            _play(block.mixer, role)  # type: ignore[arg-type]
    return decoder


def _play(mixer: Attention, role: str) -> None:
    def place(weight: Tensor, rows: int, columns: int, amount: float = 1.0) -> None:
        weight[rows * CODE : (rows + 1) * CODE, columns * CODE : (columns + 1) * CODE] = amount * torch.eye(CODE)

    token, before, found, said = range(4)
    place(mixer.v_proj.weight, 0, token)
    for head in (0, 1):
        if role in ("previous", "idle"):
            # Queries and keys are constants: after the rotation, the key one place before fits best.
            angles = 2.0 ** (-torch.arange(CODE // 2) * 2 / CODE)
            mixer.k_proj.bias[head * CODE : head * CODE + CODE // 2] = 10.0
            mixer.q_proj.bias[head * CODE : (head + 1) * CODE] = 10 * torch.cat((angles.cos(), -angles.sin()))
        else:
            place(mixer.q_proj.weight, head, found if role == "say" else token, 40.0)
            place(mixer.k_proj.weight, head, token if role == "say" else before, 10.0)
    if role != "idle":
        place(mixer.o_proj.weight, {"previous": before, "find": found}.get(role, said), 0)


@pytest.fixture(scope="package")
def make() -> Make:
    """A decoder of such layers."""
    return _decoder


@pytest.fixture(scope="package")
def hay() -> Haystack:
    """Three questions whose needles lie beyond any window of 32 tokens."""
    tokenizer = Words()
    filler = torch.arange(40, 200)
    for name in range(20):
        tokenizer.numbers[f"reserved {name}"] = len(tokenizer.numbers) + 1
    return haystack(Needles((LENGTH,), (0.1, 0.3, 0.55), digits=1), tokenizer, filler)
