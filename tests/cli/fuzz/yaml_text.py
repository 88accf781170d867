"""YAML files as they come out of editors, merges and broken transfers: the text itself is tampered with."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from good import config, fit, text
from trial import Case

KIND = "YAML text"


def truncated(draw: random.Random, content: bytes) -> bytes:
    return content[: draw.randrange(1, len(content))]


def bytes_changed(draw: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.randint(1, 6)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def binary_put_in(draw: random.Random, content: bytes) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + draw.randbytes(draw.randint(1, 40)) + content[at:]


def lines_indented(draw: random.Random, content: bytes) -> bytes:
    lines = content.split(b"\n")
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(lines))
        lines[at] = draw.choice((b" ", b"  ", b"   ", b"\t", b" \t")) + lines[at]
    return b"\n".join(lines)


def lines_outdented(draw: random.Random, content: bytes) -> bytes:
    lines = content.split(b"\n")
    at = draw.randrange(len(lines))
    lines[at] = lines[at].removeprefix(b" " * draw.randint(1, 4))
    return b"\n".join(lines)


def line_dropped(draw: random.Random, content: bytes) -> bytes:
    lines = content.split(b"\n")
    del lines[draw.randrange(len(lines))]
    return b"\n".join(lines)


def line_doubled(draw: random.Random, content: bytes) -> bytes:
    lines = content.split(b"\n")
    at = draw.randrange(len(lines))
    return b"\n".join([*lines[: at + 1], *lines[at:]])


def lines_swapped(draw: random.Random, content: bytes) -> bytes:
    lines = content.split(b"\n")
    one, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return b"\n".join(lines)


def sign_changed(draw: random.Random, content: bytes) -> bytes:
    at = draw.choice([n for n, sign in enumerate(content) if sign in b":-{}[],"])
    return (
        content[:at]
        + draw.choice(
            (
                b"",
                b":",
                b"{",
                b"}",
                b"[",
                b"]",
                b"- ",
                b"&a ",
                b"*a ",
                b"!",
                b"|",
                b">",
                b"%",
                b"@",
                b"?",
                b"#",
                b'"',
                b"'",
            )
        )
        + content[at + 1 :]
    )


def letter_changed(draw: random.Random, content: bytes) -> bytes:
    at = draw.choice([n for n, sign in enumerate(content) if chr(sign).isalpha()])
    return content[:at] + draw.choice((b"", b"x", content[at : at + 1] * 2)) + content[at + 1 :]


MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    truncated, bytes_changed, binary_put_in, lines_indented, lines_outdented, line_dropped, line_doubled,
    lines_swapped, sign_changed, letter_changed,
)  # fmt: skip

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
DEEP_NESTING = 20_000

WHOLE: dict[str, bytes] = {
    "empty": b"",
    "blank": b"  \n\n",
    "comment": b"# nothing\n",
    "null": b"null\n",
    "list": b"- model\n- data\n",
    "number": b"3\n",
    "string": b"hello\n",
    "NUL": b"\0" * 64,
    "UTF-16": text().encode("utf-16"),
    "UTF-16 without mark": text().encode("utf-16-le"),
    "Latin-1": text().replace("texts", "t\xe9xts").encode("latin-1"),
    "byte order mark": b"\xef\xbb\xbf" + text().encode(),
    "CRLF": text().replace("\n", "\r\n").encode(),
    "CR": text().replace("\n", "\r").encode(),
    "tabs": text().replace("  ", "\t").encode(),
    "two documents": (text() + "---\n" + text()).encode(),
    "end mark and more": (text() + "...\n]]]").encode(),
    "unknown anchor": (text() + "extra: *nobody\n").encode(),
    "anchor of itself": (text() + "extra: &me [*me]\n").encode(),
    "anchor of itself in a dict": (text() + "extra: &me {me: *me}\n").encode(),
    "anchor of itself below data": text().replace("row_length: 64", "row_length: &me [*me]").encode(),
    "billion laughs": (text() + LAUGHS).encode(),
    "billion laughs alone": LAUGHS.encode(),
    "billion laughs in a value": (LAUGHS.replace("\n", "\n  ") + "\n").replace("a0:", "data:\n  a0:", 1).encode(),
    "merge key": (text() + "extra:\n  <<: {a: 1}\n").encode(),
    "merge key of a number": text().replace("preset: tiny", "<<: 3").encode(),
    "merge key of itself": text().replace("    preset: tiny", "    <<: &m {<<: *m}").encode(),
    "doubled key": text().replace("preset: tiny", "preset: tiny\n    preset: tiny").encode(),
    "doubled section": (text() + "model: HybridLM\n").encode(),
    "deep lists": b"model: " + b"[" * DEEP_NESTING + b"]" * DEEP_NESTING,
    "deep dicts": b"model: " + b"{a: " * DEEP_NESTING + b"1" + b"}" * DEEP_NESTING,
    "deep indentation": b"".join(b" " * n + b"a:\n" for n in range(1500)),
    "deep lists, less": b"model: " + b"[" * 300 + b"]" * 300,
    "deep dicts, less": b"model: " + b"{a: " * 150 + b"1" + b"}" * 150,
    "long line": b"model: " + b"x" * 1_000_000,
    "long key": b"x" * 100_000 + b": 1\n",
    "long integer": text().replace("row_length: 64", "row_length: " + "9" * 5000).encode(),
    "python object": text().replace("tokenizer: Bytes", "tokenizer: !!python/object/apply:os.getcwd []").encode(),
    "python name": text().replace("tokenizer: Bytes", "tokenizer: !!python/name:os.getcwd").encode(),
    "unknown tag": text().replace("tokenizer: Bytes", "tokenizer: !nothing Bytes").encode(),
    "set": text().replace("row_length: 64", "row_length: !!set {a, b}").encode(),
    "binary": text().replace("row_length: 64", "row_length: !!binary aGVsbG8=").encode(),
    "broken binary": text().replace("row_length: 64", "row_length: !!binary '*'").encode(),
    "omap": text().replace("row_length: 64", "row_length: !!omap [a: 1]").encode(),
    "int of words": text().replace("row_length: 64", "row_length: !!int many").encode(),
    "float of words": text().replace("row_length: 64", "row_length: !!float many").encode(),
    "timestamp of words": text().replace("row_length: 64", "row_length: !!timestamp never").encode(),
    "bool of words": text().replace("row_length: 64", "row_length: !!bool perhaps").encode(),
    "date": text().replace("row_length: 64", "row_length: 2001-01-01").encode(),
    "date that is none": text().replace("row_length: 64", "row_length: 2001-13-45").encode(),
    "sexagesimal": text().replace("row_length: 64", "row_length: 1:04").encode(),
    "octal": text().replace("row_length: 64", "row_length: 0100").encode(),
    "underscores": text().replace("row_length: 64", "row_length: 6_4").encode(),
    "underscores alone": text().replace("row_length: 64", "row_length: 0x_").encode(),
    "number as key": (text() + "1: 2\n").encode(),
    "null as key": (text() + "null: 2\n").encode(),
    "empty key": (text() + "'': 2\n").encode(),
    "bool as key": text().replace("preset: tiny", "true: tiny").encode(),
    "number as key below": text().replace("preset: tiny", "3: tiny").encode(),
    "list as key": (text() + "[a, b]: 2\n").encode(),
    "tuple as key": (text() + "? !!python/tuple [1, 2]\n: 2\n").encode(),
    "dict as key": (text() + "{a: b}: 2\n").encode(),
    "date as key": (text() + "2001-01-01: 2\n").encode(),
    "dotted keys": (text() + "trainer.max_steps: 1\n").encode(),
    "dotted key of nothing": (text() + "data.: 1\n").encode(),
    "dots as key": (text() + "..: 1\n").encode(),
    "blank as key": (text() + "' ': 1\n").encode(),
    "key with a blank": (text() + "my key: 1\n").encode(),
    "key of an option": (text() + "--config: c.yaml\n").encode(),
    "config in itself": (text() + "config: c.yaml\n").encode(),
    "print_config": (text() + "print_config: true\n").encode(),
    "help": (text() + "help: true\n").encode(),
    "subcommand": (text() + "subcommand: validate\n").encode(),
    "fit below itself": ("fit:\n" + text().replace("\n", "\n  ") + "\n").encode(),
    "surrogate": (text() + 'extra: "\\ud800"\n').encode(),
    "surrogate in a path": text().replace("path: texts", 'path: "\\ud800"').encode(),
    "NUL in a path": text().replace("path: texts", 'path: "a\\0b"').encode(),
    "NUL in the log folder": text().replace("save_dir: logs", 'save_dir: "a\\0b"').encode(),
    "base is missing": b"base: nowhere.yaml\n" + text().encode(),
    "base is itself": b"base: c.yaml\n",
    "base is itself by another way": b"base: texts/../c.yaml\n",
    "base is a folder": b"base: .\n",
    "base is a list": b"base: [a.yaml, b.yaml]\n",
    "base is a number": b"base: 3\n",
    "base is false": b"base: false\n" + text().encode(),
    "base is empty": b"base: ''\n" + text().encode(),
    "base is binary": b"base: texts/0.txt\n",
    "base has a NUL": b'base: "a\\0b"\n',
    "base is long": b"base: " + b"x" * 5000 + b"\n",
    "base is a device": b"base: /dev/null\n",
    "base is a surrogate": b'base: "\\ud800.yaml"\n',
}

# Words of the command line that are no YAML file's matter, but stand beside it.
WORDS: dict[str, tuple[str, ...]] = {
    "config without a file": ("--config",),
    "config is empty": ("--config=",),
    "config is a folder": ("--config=texts",),
    "config is missing": ("--config=nowhere.yaml",),
    "config has a NUL": ("--config=a\0b",),
    "config is long": ("--config=" + "x" * 5000,),
    "option without a value": ("--trainer.max_steps",),
    "option without a name": ("--=3",),
    "option of dots": ("--..=3",),
    "word": ("hello",),
    "option twice": ("--trainer.max_steps=1", "--trainer.max_steps=2"),
    "YAML that is none": ("--data.source={",),
    "YAML of laughs": (f"--data.source={{{LAUGHS.replace(chr(10), ', ').rstrip(', ')}}}",),
    "anchor of itself": ("--data.source=&a [*a]",),
    "deep": ("--data.source=" + "[" * 3000,),
    "surrogate": ("--data.source=\udc80",),
    "number for a section": ("--trainer=3",),
    "list for a section": ("--trainer=[1]",),
    "item of a dict": ("--model.patterns.local.window.size=3",),
    "append to a number": ("--data.row_length+=3",),
    "append to a list": ("--trainer.callbacks+=Nothing",),
}


def cases() -> Iterator[Case]:
    """Whole files first, then random changes of a good one."""
    for name, content in WHOLE.items():
        yield Case(KIND, name, lambda content=content: fit(content))
    for name, words in WORDS.items():
        yield Case(KIND, f"words: {name}", lambda words=words: fit(config(), *words))
    yield Case(KIND, "a link to itself", _linked, must_fail=True)
    for mutation in MUTATIONS:
        for seed in range(16):
            name = f"{mutation.__name__.replace('_', ' ')} {seed}"

            def prepare(mutation: Callable[[random.Random, bytes], bytes] = mutation, name: str = name) -> list[str]:
                return fit(mutation(random.Random(name), text().encode()))

            yield Case(KIND, name, prepare)


def _linked() -> list[str]:
    Path("c.yaml").symlink_to("c.yaml")
    return ["fit", "--config=c.yaml"]
