"""The sources give whole documents, in one order, and say what is wrong when there are none."""

import json
import sysconfig
from pathlib import Path

import pytest

from lg.data import Document, Folder, HuggingFace, Source, Stdlib


def write(folder: Path, files: dict[str, bytes]) -> str:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text)
    return str(folder)


@pytest.fixture(scope="module")
def stdlib() -> dict[str, bytes]:
    return {document.name: document.text for document in Stdlib().documents()}


def test_stdlib_package_is_its_files_joined_in_path_order(stdlib: dict[str, bytes]) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    expected = b""
    for path in sorted((library / "email").rglob("*.py")):
        text = path.read_bytes()
        expected += f"# file: {path.relative_to(library).as_posix()}\n".encode() + text
        expected += b"" if text.endswith(b"\n") or not text else b"\n"
    assert stdlib["email"] == expected
    assert expected.count(b"# file: email/mime/") > 5


def test_stdlib_module_is_a_document(stdlib: dict[str, bytes]) -> None:
    text = Path(sysconfig.get_path("stdlib"), "argparse.py").read_bytes()
    assert stdlib["argparse"] == b"# file: argparse.py\n" + text


def test_stdlib_holds_the_library_and_nothing_else(stdlib: dict[str, bytes]) -> None:
    assert len(stdlib) > 150
    assert 8e6 < sum(map(len, stdlib.values())) < 40e6
    assert list(stdlib) == sorted(stdlib)
    # turtle.cfg of some builds must not hide turtle.py, nor may what was installed later get in
    assert {"asyncio", "turtle", "inspect", "json"} <= set(stdlib)
    assert not {"test", "torch", "pip", "__pycache__", "lib-dynload"} & set(stdlib)
    assert not any(name.startswith("_sysconfigdata") for name in stdlib)
    assert not any(b"# file: site-packages" in text for text in stdlib.values())


def test_stdlib_leaves_out_what_it_is_told_to(stdlib: dict[str, bytes]) -> None:
    names = {document.name for document in Stdlib(exclude=("test", "asyncio", "json")).documents()}
    assert names == set(stdlib) - {"asyncio", "json"}


def test_stdlib_without_files_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match=r"data\.init_args\.source: Stdlib found no \.py file"):
        Stdlib().documents()


def test_folder_reads_text_files_in_path_order(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {
            "b.md": b"two",
            "a/z.txt": b"one \xff",
            "c.bin": b"no text",
            "empty.txt": b"",
            ".git/x.txt": b"hidden",
            "c.py": b"three",
        },
    )
    expected = [
        Document("a/z.txt", b"one \xff"),
        Document("b.md", b"two"),
        Document("c.py", b"three"),
    ]
    assert list(Folder(path).documents()) == expected
    assert list(Folder(path, suffixes=(".bin",)).documents()) == [Document("c.bin", b"no text")]


def test_folder_missing_or_empty_is_an_error_before_the_first_document(tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"^data\.init_args\.source\.init_args\.path: .*nowhere"):
        Folder(missing).documents()
    path = write(tmp_path, {"a.bin": b"no text", "b.txt": b""})
    with pytest.raises(ValueError, match=r"^data\.init_args\.source\.init_args\.path: .*\.txt, \.md"):
        Folder(path).documents()
    with pytest.raises(ValueError, match="is not a folder"):
        Folder(str(tmp_path / "a.bin")).documents()


@pytest.fixture
def jsonl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"text": text, "size": len(text)} for text in ("first", "", "dritte Zeile: ä")]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


def test_hugging_face_reads_a_column(jsonl: str) -> None:
    documents = HuggingFace("json", data_files=jsonl).documents()
    assert list(documents) == [Document("0", b"first"), Document("2", "dritte Zeile: ä".encode())]


def test_hugging_face_says_what_is_wrong(jsonl: str) -> None:
    with pytest.raises(ValueError, match=r"init_args\.column: 'size' is not .* has text"):
        HuggingFace("json", data_files=jsonl, column="size").documents()
    with pytest.raises(ValueError, match=r"init_args\.path: 'json' \(split 'dev'"):
        HuggingFace("json", data_files=jsonl, split="dev").documents()
    with pytest.raises(ValueError, match=r"init_args\.path: 'json' .*cannot be loaded"):
        HuggingFace("json", data_files=jsonl + ".gone").documents()


def test_a_source_is_what_yields_documents() -> None:
    class Two(Source):
        def documents(self):
            return iter([Document("a", b"a"), Document("b", b"b")])

    assert len(list(Two().documents())) == 2
    with pytest.raises(TypeError, match="abstract"):
        Source()
