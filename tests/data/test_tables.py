"""Tables give a document a row, from any row on; what is damaged ends in one sentence, wherever it is found."""

import gzip
import json
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader, IterableDataset

from lg.data import Document, Jsonl, Parquet
from lg.data.source import Source

PATH = r"^data\.init_args\.source\.init_args\.path: "
COLUMN = r"^data\.init_args\.source\.init_args\.column: "

LINES = [b'{"text": "one", "n": 1}', b'{"n": 2, "text": null}', b"", b'{"text": ""}', '{"text": "fünf"}'.encode()]
ROWS = [(0, Document("0", b"one")), (4, Document("4", "fünf".encode()))]


def jsonl(folder: Path, name: str = "a.jsonl", text: bytes = b"\n".join(LINES)) -> str:
    (folder / name).write_bytes(text)
    return str(folder / name)


def parquet(folder: Path, name: str, texts: list[str | None], **columns: list[int]) -> str:
    # Row groups of 2: a start may lie inside one.
    pq.write_table(pa.table({"text": pa.array(texts, pa.string()), **columns}), folder / name, row_group_size=2)
    return str(folder / name)


def test_jsonl_reads_a_line_a_document(tmp_path: Path) -> None:
    source = Jsonl(jsonl(tmp_path))
    assert list(source.numbered()) == ROWS
    assert list(source.documents()) == [document for _, document in ROWS]
    assert list(source.documents(1)) == [ROWS[1][1]]
    assert list(source.numbered(5)) == []
    assert list(source.numbered(99)) == []
    assert not source.streamed
    assert Jsonl(source.path, streaming=True).streamed
    assert pickle.loads(pickle.dumps(source)) == source


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", b"\xef\xbb\xbf" + b"\r\n".join(LINES) + b"\r\n"),
        ("a.jsonl.gz", gzip.compress(b"\n".join(LINES), mtime=0)),
        ("a[1]*?.jsonl", b"\n".join(LINES)),
        (".hidden", b"\n".join(LINES)),
    ],
)
def test_jsonl_of_other_kinds(tmp_path: Path, name: str, text: bytes) -> None:
    assert list(Jsonl(jsonl(tmp_path, name, text)).numbered()) == ROWS


def test_several_files_are_one_table(tmp_path: Path) -> None:
    first, second = jsonl(tmp_path, "b.jsonl", b'{"text": "x"}\n{"text": "y"}'), jsonl(tmp_path, "a.jsonl", LINES[0])
    by_path = [(0, "one"), (1, "x"), (2, "y")]
    for path, expected in (
        (str(tmp_path / "*.jsonl"), by_path),
        ([second, first], by_path),
        ([first, str(tmp_path / "a*")], [(0, "x"), (1, "y"), (2, "one")]),
    ):
        rows = [(number, document.text.decode()) for number, document in Jsonl(path).numbered()]
        assert rows == expected
        for start in range(4):
            assert [number for number, _ in Jsonl(path).numbered(start)] == list(range(start, 3))


def test_jsonl_of_more_than_a_batch(tmp_path: Path) -> None:
    texts = [f"line {number}" if number % 3 else "" for number in range(1000)]
    source = Jsonl(jsonl(tmp_path, text=b"".join(json.dumps({"t": text}).encode() + b"\n" for text in texts)), "t")
    numbers = [number for number in range(1000) if number % 3]
    assert [number for number, _ in source.numbered()] == numbers
    assert list(source.numbered(511)) == [(n, Document(str(n), texts[n].encode())) for n in numbers if n >= 511]


def test_half_a_character_is_a_question_mark(tmp_path: Path) -> None:
    assert [document.text for document in Jsonl(jsonl(tmp_path, text=b'{"text": "\\ud800x"}')).documents()] == [b"?x"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "cut', PATH + r"'.*a\.jsonl', line 2 is not JSON: Unterminated string"),
        (b"\0\0", PATH + r".*line 2 is not JSON"),
        (b"[" * 100_000, PATH + r".*line 2 is not JSON: maximum recursion"),
        (b'{"n": ' + b"1" * 5000 + b"}", PATH + r".*line 2 is not JSON: Exceeds the limit"),
        (b"[1, 2]", PATH + r".*line 2 is of type list; each line must be a JSON object"),
        (b'{"txet": "x"}', COLUMN + r"'text' is not a key of .*line 2; it has 'txet'"),
        (b'{"text": 5}', COLUMN + r"'text' is not text but of type int in .*line 2"),
        (b'{"text": "\xe4"}', PATH + r".*a\.jsonl' cannot be read: 'utf-8' codec"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes, said: str) -> None:
    path = jsonl(tmp_path, text=b'{"text": "fine"}\n' + line + b'\n{"text": "fine"}\n')
    with pytest.raises(ValueError, match=said) as caught:
        list(Jsonl(path, streaming=True).documents())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("source", [Jsonl, Parquet])
def test_files_that_are_not_there(tmp_path: Path, source: type[Jsonl | Parquet]) -> None:
    empty = jsonl(tmp_path, "empty.jsonl", b"")
    for path, said in (
        (str(tmp_path / "gone"), r"'.*gone' is not a file"),
        (str(tmp_path / "*.gone"), r"'.*\*\.gone' matches no file"),
        (str(tmp_path), r"'.*' is a folder; its files are needed, as in '.*/\*'"),
        ([], r"\[\] names no file"),
        ("", r"'' is not a file"),
        ("a\0b", r"'a\\x00b' is not a file"),
        (empty, r"'.*empty\.jsonl' is empty"),
    ):
        with pytest.raises(ValueError, match=PATH + said):
            source(path).documents()
        with pytest.raises(ValueError, match=PATH + said):
            source(path).fingerprint()


def test_a_table_without_text(tmp_path: Path) -> None:
    for path in (jsonl(tmp_path, "null.jsonl", b'{"text": null}\n'), jsonl(tmp_path, "blank.jsonl", b"\n \n")):
        with pytest.raises(ValueError, match=PATH + r".* has no text in column 'text'"):
            Jsonl(path).documents()
    for texts in ([], [None, ""]):
        with pytest.raises(ValueError, match=PATH + r".* has no text in column 'text'"):
            Parquet(parquet(tmp_path, "none.parquet", texts)).documents()


def test_parquet_reads_a_row_a_document(tmp_path: Path) -> None:
    parquet(tmp_path, "a.parquet", ["zero", None, "two", "three", ""], n=[1, 2, 3, 4, 5])
    parquet(tmp_path, "b.parquet", ["five", "six"])
    source = Parquet(str(tmp_path / "*.parquet"))
    rows = [(0, "zero"), (2, "two"), (3, "three"), (5, "five"), (6, "six")]
    for start in range(9):
        read = [(number, document.text.decode()) for number, document in source.numbered(start)]
        assert read == [row for row in rows if row[0] >= start]
    assert [document.name for document in source.documents()] == ["0", "2", "3", "5", "6"]


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    whole = Path(parquet(tmp_path, "whole.parquet", ["one", "two", "three"], n=[1, 2, 3]))
    damaged = tmp_path / "damaged.parquet"
    # Cut short, of another kind, and with a broken page in front of a footer that is fine.
    for content in (whole.read_bytes()[:-20], b'{"text": "one"}', b"PAR1" + b"\xff" * 40 + whole.read_bytes()[44:]):
        damaged.write_bytes(content)
        with pytest.raises(ValueError, match=PATH + r"'.*damaged\.parquet' cannot be read: ") as caught:
            list(Parquet([str(whole), str(damaged)]).documents())
        assert "\n" not in str(caught.value)
    for column, known in (("n", "'text'"), ("gone", "'text'")):
        with pytest.raises(ValueError, match=COLUMN + rf"'{column}' is not a column of text; '.*' has {known}"):
            Parquet(str(whole), column).documents()


def test_a_damage_on_the_way_is_told_there(tmp_path: Path) -> None:
    documents = Parquet([parquet(tmp_path, "a.parquet", ["one"]), jsonl(tmp_path)], streaming=True).documents()
    assert next(documents).text == b"one"
    with pytest.raises(ValueError, match=PATH + r".*a\.jsonl' cannot be read"):
        next(documents)


@pytest.mark.parametrize("kind", [Jsonl, Parquet])
def test_the_fingerprint_is_of_the_content(tmp_path: Path, kind: type[Jsonl | Parquet]) -> None:
    files = []
    for name in ("a", "b", "c"):
        text = "other" if name == "c" else "same!"
        files.append(
            jsonl(tmp_path, name, json.dumps({"text": text}).encode())
            if kind is Jsonl
            else parquet(tmp_path, name, [text])
        )
    a, b, c = (kind(file).fingerprint() for file in files)
    assert a == b != c
    assert kind(files[:2]).fingerprint() not in (a, kind([files[0], files[2]]).fingerprint())
    assert kind(files[0], "other").fingerprint() != a
    # A stream is not read for it.
    assert kind(files[0], streaming=True).fingerprint() != kind(files[1], streaming=True).fingerprint()


class Numbers(IterableDataset[int]):
    def __init__(self, source: Source) -> None:
        self.source = source

    def __iter__(self):
        return (number for number, _ in self.source.numbered(1))


@pytest.mark.parametrize("kind", [Jsonl, Parquet])
def test_a_worker_of_a_loader_reads_every_row(tmp_path: Path, kind: type[Jsonl | Parquet]) -> None:
    # `datasets` would give each worker a share of the files.
    for name in ("a", "b"):
        if kind is Jsonl:
            jsonl(tmp_path, name, b'{"text": "x"}\n' * 3)
        else:
            parquet(tmp_path, name, ["x"] * 3)
    source = kind(str(tmp_path / "*"), streaming=True)
    next(source.documents())
    loader = DataLoader(Numbers(source), batch_size=None, num_workers=2)
    assert sorted(int(number) for number in loader) == sorted([1, 2, 3, 4, 5] * 2)


def test_the_library_is_kept_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        Parquet(jsonl(tmp_path)).documents()
    list(Jsonl(jsonl(tmp_path)).documents())
    assert capfd.readouterr() == ("", "")
