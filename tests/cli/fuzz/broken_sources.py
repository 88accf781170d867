"""Texts on disk that are missing, damaged, of another kind, or change while they are read."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import damage
from good import TEXTS, Config, config, fit, write_texts
from trial import Case

KIND = "source"
SEEDS = 4  # of each way in which each kind's files are damaged


def folder() -> tuple[Config, list[Path]]:
    write_texts()
    return _node("Folder", path="texts"), sorted(Path("texts").iterdir())


def repositories() -> tuple[Config, list[Path]]:
    for number in range(3):
        write_texts(Path("repositories", str(number)))
    return _node("Repositories", path="repositories"), sorted(Path("repositories").rglob("*.txt"))


def jsonl() -> tuple[Config, list[Path]]:
    Path("t.jsonl").write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in TEXTS))
    return _node("Jsonl", path="t.jsonl"), [Path("t.jsonl")]


def jsonl_stream() -> tuple[Config, list[Path]]:
    node, files = jsonl()
    return _with(node, streaming=True), files


def jsonl_gz() -> tuple[Config, list[Path]]:
    Path("t.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()))
    return _node("Jsonl", path="t.jsonl.gz"), [Path("t.jsonl.gz")]


def parquet() -> tuple[Config, list[Path]]:
    import pyarrow
    from pyarrow import parquet as tables

    tables.write_table(pyarrow.table({"text": TEXTS, "n": list(range(len(TEXTS)))}), "t.parquet", row_group_size=5)
    return _node("Parquet", path="t.parquet"), [Path("t.parquet")]


def parquet_stream() -> tuple[Config, list[Path]]:
    node, files = parquet()
    return _with(node, streaming=True), files


def hugging_face() -> tuple[Config, list[Path]]:
    _, files = parquet()
    return _node("HuggingFace", path="parquet", data_files="t.parquet"), files


def hugging_face_stream() -> tuple[Config, list[Path]]:
    _, files = jsonl()
    return _node("HuggingFace", path="json", data_files="t.jsonl", streaming=True), files


def hugging_face_folder() -> tuple[Config, list[Path]]:
    import datasets

    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk("saved")
    return _node("HuggingFace", path="./saved"), sorted(file for file in Path("saved").iterdir())


def mixture() -> tuple[Config, list[Path]]:
    one, files = folder()
    other, more = jsonl()
    return _node("Mixture", sources={"a": one, "b": other}, shares={"a": 1.0, "b": 2.0}), [*files, *more]


def mixture_stream() -> tuple[Config, list[Path]]:
    one, files = folder()
    other, more = jsonl_stream()
    return _node("Mixture", sources={"a": one, "b": other}, shares={"a": 1.0, "b": 2.0}), [*files, *more]


SOURCES: tuple[Callable[[], tuple[Config, list[Path]]], ...] = (
    folder, repositories, jsonl, jsonl_stream, jsonl_gz, parquet, parquet_stream, hugging_face, hugging_face_stream,
    hugging_face_folder, mixture, mixture_stream,
)  # fmt: skip

LINES: dict[str, bytes] = {
    "no JSON": b"hello\n", "half": b'{"text": "a\n', "list": b'["a"]\n', "number": b"3\n", "null": b"null\n",
    "text is a number": b'{"text": 3}\n', "text is null": b'{"text": null}\n', "text is a list": b'{"text": ["a"]}\n',
    "no text": b'{"other": "a"}\n', "blank lines": b"\n\n  \n", "NUL": b"\0\n", "bytes": bytes(range(256)) + b"\n",
    "surrogate": b'{"text": "\\ud800"}\n', "NaN": b'{"text": NaN}\n', "deep": b"[" * 50_000 + b"\n",
    "twice": b'{"text": "a"} {"text": "b"}\n', "UTF-16": '{"text": "a"}\n'.encode("utf-16"),
    "long number": b'{"text": ' + b"9" * 5000 + b"}\n", "key twice": b'{"text": "a", "text": 3}\n',
    "empty texts": b'{"text": ""}\n' * 3, "no end of line": b'{"text": "a"}',
    "carriage returns": b'{"text": "a"}\r' * 3,
    "line separator": '{"text": "a\u2028b"}\n'.encode(), "long line": b'{"text": "' + b"x" * 3_000_000 + b'"}\n',
}  # fmt: skip


def cases() -> Iterator[Case]:
    """Every kind of source with every damage, then what is particular to some."""
    for make in SOURCES:
        for way in damage.WAYS:
            for seed in range(SEEDS):
                yield _damaged(make, way, seed)
        yield Case(KIND, f"{make.__name__}: deleted meanwhile", lambda make=make: _meanwhile(make, _delete))
        yield Case(KIND, f"{make.__name__}: written meanwhile", lambda make=make: _meanwhile(make, _rewrite))
        yield Case(KIND, f"{make.__name__}: cut meanwhile", lambda make=make: _meanwhile(make, _cut))
        yield Case(KIND, f"{make.__name__}: unreadable", lambda make=make: _unreadable(make))
    for name, line in LINES.items():
        for stream in (False, True):
            yield Case(KIND, f"line: {name}{', streamed' * stream}", lambda line=line, s=stream: _lined(line, s))
    for name, tamper in FOLDERS.items():
        for kind, path in (("Folder", "texts"), ("Repositories", "repositories")):
            yield Case(KIND, f"{kind}: {name}", lambda t=tamper, k=kind, p=path: _tampered(t, k, Path(p)))
    for name, columns in COLUMNS.items():
        yield Case(KIND, f"columns: {name}", lambda columns=columns: _columns(columns))
    for way in damage.WAYS:
        yield Case(KIND, f"fetched: {way.__name__}", lambda way=way: _fetched(way), must_fail=True)
        yield Case(KIND, f"tokenizer: {way.__name__}", lambda way=way: _tokenizer(way))


def _node(class_path: str, **arguments: Any) -> Config:
    return {"class_path": class_path, "init_args": arguments}


def _with(node: Config, **arguments: Any) -> Config:
    return {**node, "init_args": {**node["init_args"], **arguments}}


def _fit(source: Config) -> list[str]:
    given = config()
    given["data"]["init_args"]["source"] = source
    return fit(given)


def _damaged(
    make: Callable[[], tuple[Config, list[Path]]], way: Callable[[random.Random, Path], None], seed: int
) -> Case:
    name = f"{make.__name__}: {way.__name__.replace('_', ' ')} {seed}"

    def prepare() -> list[str]:
        draw = random.Random(name)
        source, files = make()
        way(draw, draw.choice(files))
        return _fit(source)

    return Case(KIND, name, prepare)


def _lined(line: bytes, streaming: bool) -> list[str]:
    source, (file,) = jsonl()
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:7], line, *lines[7:]]))
    return _fit(_with(source, streaming=streaming))


def _meanwhile(make: Callable[[], tuple[Config, list[Path]]], change: Callable[[Path], None]) -> list[str]:
    """From now on, again and again: whatever it hits."""
    source, files = make()
    given = _fit(source)

    def run() -> None:
        draw = random.Random(0)
        while True:
            time.sleep(draw.random() * 0.02)
            with contextlib.suppress(OSError):
                change(draw.choice(files))

    threading.Timer(0.2, run).start()
    return given


def _delete(file: Path) -> None:
    content = file.read_bytes()
    file.unlink()
    time.sleep(0.005)
    file.write_bytes(content)


def _rewrite(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"{}\n")


def _cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _unreadable(make: Callable[[], tuple[Config, list[Path]]]) -> list[str]:
    source, files = make()
    given = _fit(source)
    files[0].chmod(0)
    _become_nobody()
    return given


def _become_nobody() -> None:
    """To whom the superuser's rights do not belong: permissions count."""
    if os.geteuid() == 0:
        for parent, _, _ in os.walk("."):
            os.chown(parent, 65534, 65534)
        os.setegid(65534)
        os.seteuid(65534)


def _tampered(tamper: Callable[[Path], None], kind: str, path: Path) -> list[str]:
    (folder if kind == "Folder" else repositories)()
    tamper(path)
    return _fit(_node(kind, path=str(path)))


def _no_files(path: Path) -> None:
    for file in path.rglob("*.txt"):
        file.unlink()


def _empty_files(path: Path) -> None:
    for file in path.rglob("*.txt"):
        file.write_text("")


def _gone(path: Path) -> None:
    _no_files(path)
    for inner in (*path.iterdir(), path):
        inner.rmdir()


def _a_file(path: Path) -> None:
    _gone(path)
    path.write_text("text")


def _odd_names(path: Path) -> None:
    for name in (b"\xff\xfe.txt", b"new\nline.txt", b" .txt", b"-rf.txt", b"*.txt", b"\x01.txt", "ü中.txt".encode()):
        Path(os.fsdecode(os.fsencode(path) + b"/" + name)).write_text("odd names are names, too")


def _one_odd_folder(path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(path) + b"/\xff\xfe"))
    odd.mkdir()
    (odd / "a.txt").write_text("text")


def _deep(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path)
    for _ in range(600):
        os.mkdir("a" * 10)
        os.chdir("a" * 10)
    Path("a.txt").write_text("text")
    os.chdir(here)


FOLDERS: dict[str, Callable[[Path], None]] = {
    "gone": _gone,
    "a file": _a_file,
    "no files": _no_files,
    "empty files": _empty_files,
    "odd names": _odd_names,
    "one odd folder": _one_odd_folder,
    "deep": _deep,
    "a link to itself": lambda path: (path / "loop.txt").symlink_to("loop.txt"),
    "links in a circle": lambda path: (
        [(path / f"{n}l.txt").symlink_to(f"{(n + 1) % 3}l.txt") for n in range(3)] and None
    ),
    "a link to the folder above": lambda path: (path / "up").symlink_to(".."),
    "a link to the root": lambda path: (path / "root").symlink_to("/"),
    "a pipe": lambda path: os.mkfifo(path / "pipe.txt"),
    "a pipe behind a link": lambda path: (os.mkfifo("pipe"), (path / "l.txt").symlink_to(Path("pipe").absolute()))[1],
    "a device": lambda path: (path / "zero.txt").symlink_to("/dev/zero"),
    "a file of the kernel": lambda path: (path / "mem.txt").symlink_to("/proc/self/mem"),
    "only one file": lambda path: [file.unlink() for file in sorted(path.rglob("*.txt"))[1:]] and None,
    "hidden only": lambda path: [file.rename(file.with_name(f".{file.name}")) for file in path.rglob("*.txt")] and None,
    "binary": lambda path: [file.write_bytes(bytes(range(256))) for file in path.rglob("*.txt")] and None,
    "NULs": lambda path: [file.write_bytes(b"\0" * 50) for file in path.rglob("*.txt")] and None,
    "one byte each": lambda path: [file.write_bytes(b"a") for file in path.rglob("*.txt")] and None,
}

COLUMNS: dict[str, dict[str, list[Any]]] = {
    "none": {},
    "another": {"body": ["a", "b"]},
    "numbers": {"text": [1, 2]},
    "lists": {"text": [["a"], ["b"]]},
    "dicts": {"text": [{"a": 1}, {"a": 2}]},
    "bytes": {"text": [b"a", b"\xff"]},
    "nulls": {"text": [None, None]},
    "no rows": {"text": []},
    "one row": {"text": ["a"]},
    "empty texts": {"text": ["", ""]},
    "some nulls": {"text": ["a", None, "b"]},
    "bools": {"text": [True, False]},
}


def _columns(columns: dict[str, list[Any]]) -> list[str]:
    import pyarrow
    from pyarrow import parquet as tables

    tables.write_table(pyarrow.table(columns), "t.parquet")
    return _fit(_node("Parquet", path="t.parquet"))


def _fetched(way: Callable[[random.Random, Path], None]) -> list[str]:
    asset = Path("cache", "assets", "austen")
    asset.mkdir(parents=True)
    (asset / "SHA256SUMS").write_text(f"{'0' * 64}  emma.txt\n")
    (asset / "emma.txt").write_text("Emma Woodhouse, handsome, clever, and rich")
    way(random.Random(0), asset / "SHA256SUMS")
    return _fit(_node("lg.data.assets.Fetched", name="austen"))


def _tokenizer(way: Callable[[random.Random, Path], None]) -> list[str]:
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "</s>": 1, "b": 2}, []))
    made.save("t.json")
    way(random.Random(0), Path("t.json"))
    given = config()
    given["data"]["init_args"]["tokenizer"] = _node("TokenizerFile", path="t.json")
    return fit(given)
