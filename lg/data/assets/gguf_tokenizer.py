"""Takes the tokenizer out of a GGUF file, as the ``tokenizer.json`` that it was made from.

Source: the format's description in https://github.com/ggml-org/ggml, docs/gguf.md
"""

import json
import struct
from typing import Any

_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SPECIAL = 3  # the type of a token that text does not spell

# How text is cut before merges, by the name that GGUF has for it: each digit alone, then GPT-2's words.
_CUTS: dict[str, list[dict[str, Any]]] = {
    "smollm": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ]
}


def tokenizer_json(gguf: bytes) -> bytes:
    """The ``tokenizer.json`` of a model whose tokenizer is byte-level BPE.

    Args:
        gguf: the file, or its beginning as far as the tensors.

    Raises:
        ValueError: it is not such a file, or its tokenizer is of a kind that is not known here.
    """
    try:
        known = _metadata(gguf)
    except (struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"not a GGUF file: {error}") from error
    kind, cut = known.get("tokenizer.ggml.model"), known.get("tokenizer.ggml.pre")
    if kind != "gpt2" or cut not in _CUTS:
        raise ValueError(f"its tokenizer is {kind!r}, {cut!r}; known is 'gpt2' with {', '.join(map(repr, _CUTS))}")
    tokens, types = known["tokenizer.ggml.tokens"], known["tokenizer.ggml.token_type"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    made = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind == _SPECIAL
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": _CUTS[cut]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": known["tokenizer.ggml.merges"],
        },
    }
    return json.dumps(made, ensure_ascii=False, indent=1).encode()


def _metadata(gguf: bytes) -> dict[str, Any]:
    """The file's pairs of key and value."""
    magic, version, _, num_pairs = struct.unpack_from("<4sIQQ", gguf)
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError(f"not a GGUF file of version 2 or 3: it begins with {gguf[:8]!r}")
    pairs, place = {}, 24
    for _ in range(num_pairs):
        key, place = _value(gguf, place, _STRING)
        (kind,) = struct.unpack_from("<I", gguf, place)
        pairs[key], place = _value(gguf, place + 4, kind)
    return pairs


def _value(gguf: bytes, place: int, kind: int) -> tuple[Any, int]:
    """A value of the given type, and where the next thing begins."""
    if kind == _STRING:
        (length,) = struct.unpack_from("<Q", gguf, place)
        text = gguf[place + 8 : place + 8 + length]
        if len(text) < length:
            raise struct.error("it ends inside a string")
        return text.decode(), place + 8 + length
    if kind == _ARRAY:
        kind, count = struct.unpack_from("<IQ", gguf, place)
        place += 12
        if kind in _NUMBERS:
            layout = f"<{count}{_NUMBERS[kind]}"
            return list(struct.unpack_from(layout, gguf, place)), place + struct.calcsize(layout)
        values = []
        for _ in range(count):
            value, place = _value(gguf, place, kind)
            values.append(value)
        return values, place
    if kind not in _NUMBERS:
        raise ValueError(f"not a GGUF file: type {kind} of a value is not known")
    layout = f"<{_NUMBERS[kind]}"
    return struct.unpack_from(layout, gguf, place)[0], place + struct.calcsize(layout)
