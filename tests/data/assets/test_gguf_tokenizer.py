"""A tokenizer written into GGUF is read as the `tokenizer.json` that cuts text as the model was taught."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from lg.data import TokenizerFile
from lg.data.assets.gguf_tokenizer import tokenizer_json

# Byte-level BPE spells a space as Ġ and a line end as Ċ.
TOKENS = ["<|endoftext|>", "a", "b", "Ġ", "Ċ", "1", "2", "ab", "Ġab", "12", "ĊĊ"]
KNOWN: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.context_length": 8192,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3] + [1] * (len(TOKENS) - 1),
    "tokenizer.ggml.merges": ["a b", "Ġ ab", "1 2", "Ċ Ċ"],
}


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def typed(value: Any) -> tuple[int, bytes]:
    if isinstance(value, str):
        return 8, string(value)
    if isinstance(value, list):
        kind = typed(value[0])[0]
        return 9, struct.pack("<IQ", kind, len(value)) + b"".join(typed(item)[1] for item in value)
    return 5, struct.pack("<i", value)


def gguf(known: dict[str, Any]) -> bytes:
    pairs = b""
    for key, value in known.items():
        kind, content = typed(value)
        pairs += string(key) + struct.pack("<I", kind) + content
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, len(known)) + pairs + b"tensors"


def test_text_is_cut_as_the_model_was_taught(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json(gguf(KNOWN)))
    tokenizer = TokenizerFile(str(tmp_path / "tokenizer.json"))
    ids = tokenizer.encode(b"ab ab\n\n12")
    # Digits one by one, though there is a merge of them; what stands before a digit is cut off first.
    assert [TOKENS[number] for number in ids] == ["ab", "Ġab", "ĊĊ", "1", "2"]
    assert tokenizer.decode(ids) == b"ab ab\n\n12"
    assert tokenizer.end == 0
    assert tokenizer.vocab_size == len(TOKENS)


@pytest.mark.parametrize("key", ["tokenizer.ggml.model", "tokenizer.ggml.pre"])
def test_another_tokenizer_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r"^its tokenizer is .*'other'"):
        tokenizer_json(gguf({**KNOWN, key: "other"}))


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGML" + bytes(60), struct.pack("<4sIQQ", b"GGUF", 1, 0, 0)])
def test_what_is_no_gguf(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^not a GGUF file"):
        tokenizer_json(content)


def test_a_file_cut_short() -> None:
    whole = gguf(KNOWN).removesuffix(b"tensors")
    for length in range(24, len(whole)):
        with pytest.raises(ValueError):
            tokenizer_json(whole[:length])
