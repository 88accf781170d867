"""Sources of files give whole documents, in one order, and say what is wrong when there are none."""

import os
import pickle
import shutil
import sysconfig
from pathlib import Path

import pytest

from lg.data import Document, Folder, Repositories, Stdlib

PATH = r"^data\.init_args\.source\.init_args\.path: "


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


def test_stdlib_is_read_from_any_document_on(stdlib: dict[str, bytes]) -> None:
    number, document = next(Stdlib().numbered(100))
    assert (number, document.name) == (100, list(stdlib)[100])


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
    assert list(Folder(path).numbered(1)) == [(1, expected[1]), (2, expected[2])]
    assert list(Folder(path, suffixes=(".bin",)).documents()) == [Document("c.bin", b"no text")]


def test_folder_missing_or_empty_is_an_error_before_the_first_document(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=PATH + r".*nowhere"):
        Folder(str(tmp_path / "nowhere")).documents()
    path = write(tmp_path, {"a.bin": b"no text", "b.txt": b""})
    with pytest.raises(ValueError, match=PATH + r".*\.txt, \.md"):
        Folder(path).documents()
    with pytest.raises(ValueError, match="is not a folder"):
        Folder(str(tmp_path / "a.bin")).documents()


@pytest.mark.parametrize("source", [Folder, Repositories])
def test_what_is_gone_since_it_was_listed_is_named(tmp_path: Path, source: type[Folder | Repositories]) -> None:
    path = write(tmp_path, {"r/a.txt": b"one", "s/b.txt": b"two"})
    documents = source(path).documents()
    next(documents)
    shutil.rmtree(tmp_path / "s")
    with pytest.raises(ValueError, match=PATH + r"'.*s(/b\.txt)?' cannot be read: No such file or directory$"):
        next(documents)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
@pytest.mark.parametrize("locked", ["r", "r/a.txt"])
@pytest.mark.parametrize("source", [Folder, Repositories])
def test_what_may_not_be_read_is_named(tmp_path: Path, source: type[Folder | Repositories], locked: str) -> None:
    path = write(tmp_path, {"r/a.txt": b"one"})
    (tmp_path / locked).chmod(0)
    try:
        with pytest.raises(ValueError, match=PATH + rf"'.*{locked}' cannot be read: Permission denied$"):
            list(source(path).documents())
    finally:
        (tmp_path / locked).chmod(0o700)


def test_repository_is_its_text_files_joined_in_path_order(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "b/main.c": b"int main;",
            "b/lib/z.rs": b"fn z\n",
            "b/lib.h": b"#pragma\n",
            "b/LICENSE": b"",
            "b/logo.png": b"\x89PNG\0\0",
            "b/late.txt": b"x" * 8192 + b"\0",
            "b/.git/HEAD": b"ref",
            "b/.hidden": b"no",
            "a.repo/x.py": b"x",
            "loose.txt": b"in no repository",
            ".cache/x.txt": b"hidden",
            "images/i.png": b"\0",
        },
    )
    first, second = Repositories(str(tmp_path)).documents()
    assert first == Document("a.repo", b"# file: x.py\nx\n")
    assert second.name == "b"
    late = b"x" * 8192 + b"\0\n"
    assert second.text == (
        b"# file: LICENSE\n# file: late.txt\n" + late + b"# file: lib/z.rs\nfn z\n"
        b"# file: lib.h\n#pragma\n# file: main.c\nint main;\n"
    )
    assert list(Repositories(str(tmp_path)).numbered(1)) == [(1, second)]
    (only,) = Repositories(str(tmp_path), suffixes=(".c", ".h")).documents()
    assert only == Document("b", b"# file: lib.h\n#pragma\n# file: main.c\nint main;\n")


def test_repository_links_are_read_only_inside_it(tmp_path: Path) -> None:
    write(tmp_path, {"top/r/a.txt": b"a", "top/r/sub/b.txt": b"b", "outside/secret.txt": b"no", "linked/c.txt": b"c"})
    repository = tmp_path / "top" / "r"
    (repository / "inside.txt").symlink_to("a.txt")
    (repository / "outside.txt").symlink_to(tmp_path / "outside" / "secret.txt")
    (repository / "outside").symlink_to(tmp_path / "outside")
    (repository / "loop.txt").symlink_to("loop.txt")
    (repository / "sub" / "up").symlink_to("..")
    (repository / "nowhere.txt").symlink_to("nothing")
    (tmp_path / "top" / "self").symlink_to(".")
    (tmp_path / "top" / "linked").symlink_to(tmp_path / "linked")  # a checkout kept elsewhere
    assert list(Repositories(str(tmp_path / "top")).documents()) == [
        Document("linked", b"# file: c.txt\nc\n"),
        Document("r", b"# file: a.txt\na\n# file: inside.txt\na\n# file: sub/b.txt\nb\n"),
    ]


def test_repositories_missing_or_without_text_are_an_error_before_the_first(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=PATH + r".*gone' is not a folder"):
        Repositories(str(tmp_path / "gone")).documents()
    write(tmp_path, {"loose.txt": b"text"})
    with pytest.raises(ValueError, match=PATH + r".* holds 0 folders, none with text;"):
        Repositories(str(tmp_path)).documents()
    write(tmp_path, {"r/a.png": b"\0", "r/empty.txt": b"", "s/x.py": b"x"})
    (tmp_path / "s" / "x.py").rename(tmp_path / "s" / ".x.py")
    with pytest.raises(ValueError, match=PATH + r".* holds 2 folders, none with text;"):
        Repositories(str(tmp_path)).documents()
    write(tmp_path, {"s/x.py": b"x"})
    with pytest.raises(ValueError, match=r"none with text in files that end in one of \.c, \.h;"):
        Repositories(str(tmp_path), suffixes=(".c", ".h")).documents()


def test_names_that_are_not_utf_8_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    try:
        Path(str(folder).encode().decode(), "caf\udce9.txt").write_bytes(b"text")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (document,) = Folder(str(folder)).documents()
    assert document == Document("caf\ufffd.txt", b"text")
    (document,) = Repositories(str(tmp_path)).documents()
    assert document == Document("r", b"# file: caf\xe9.txt\ntext\n")
    assert len(Folder(str(folder)).fingerprint()) == 32


@pytest.mark.parametrize("source", [Stdlib(), Folder("x"), Repositories("x", (".c",))])
def test_sources_travel_to_other_processes(source: Stdlib | Folder | Repositories) -> None:
    assert pickle.loads(pickle.dumps(source)) == source
