"""Packages come through the real clients, from registries of the tests' own, or one sentence says why not."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lg.data.assets.archive import files_in
from lg.data.assets.packages import Debian, Npm, Package, PyPI

TEXT = {"package/text.txt": b"All is well.\n", "package/other.bin": b"\0"}
WRONG = "0" * 64


def fetched(package: Package, tmp_path: Path) -> dict[str, bytes]:
    folder = tmp_path / "arrives"
    folder.mkdir()
    said: list[str] = []
    file = package.download(folder, said.append)
    assert said[0] == f"downloading {package.spelled}: 0.0 MB"
    return files_in(file, ("package/*.txt",))


def refused(package: Package, tmp_path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        fetched(package, tmp_path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_wheel(pypi: Any, tmp_path: Path) -> None:
    sha256 = pypi(TEXT)
    assert fetched(PyPI("tiny", "1.0", sha256), tmp_path) == {"package/text.txt": b"All is well.\n"}


def test_a_package_of_npm(npm: Any, tmp_path: Path) -> None:
    sha256 = npm(TEXT)
    assert fetched(Npm("@lg/tiny", "1.0.0", sha256), tmp_path) == {"package/text.txt": b"All is well.\n"}


def test_a_package_of_debian(debian: Any, tmp_path: Path) -> None:
    debian(TEXT)
    assert fetched(Debian("tiny"), tmp_path) == {"package/text.txt": b"All is well.\n"}


def test_another_wheel(pypi: Any, tmp_path: Path) -> None:
    sha256 = pypi(TEXT)
    told = refused(PyPI("tiny", "1.0", WRONG), tmp_path)
    assert told.startswith(f"tiny==1.0 from PyPI has the sha256 {sha256}, and only {WRONG} is allowed")


def test_another_package_of_npm(npm: Any, tmp_path: Path) -> None:
    sha256 = npm(TEXT)
    told = refused(Npm("@lg/tiny", "1.0.0", WRONG), tmp_path)
    assert told.startswith(f"@lg/tiny@1.0.0 from npm has the sha256 {sha256}, and only {WRONG} is allowed")


@pytest.mark.usefixtures("pypi")
def test_the_script_of_another_source_archive_is_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    with tarfile.open(tmp_path / "pypi" / "tiny-1.0.tar.gz", "w:gz") as archive:
        script = f"open({str(ran)!r}, 'w')\n".encode()
        member = tarfile.TarInfo("tiny-1.0/setup.py")
        member.size = len(script)
        archive.addfile(member, io.BytesIO(script))
    found = hashlib.sha256((tmp_path / "pypi" / "tiny-1.0.tar.gz").read_bytes()).hexdigest()
    assert f"has the sha256 {found}" in refused(PyPI("tiny", "1.0", WRONG), tmp_path)
    assert not ran.exists()


@pytest.mark.usefixtures("pypi")
def test_no_such_version_on_pypi(tmp_path: Path) -> None:
    told = refused(PyPI("tiny", "2.0", WRONG), tmp_path)
    assert told.startswith("tiny==2.0 from PyPI cannot be downloaded: pip says: Could not find a version that")
    assert told.endswith("pip's own settings, must give access to PyPI or a mirror of it")


@pytest.mark.usefixtures("npm")
def test_no_such_package_on_npm(tmp_path: Path) -> None:
    told = refused(Npm("@lg/none", "1.0.0", WRONG), tmp_path)
    assert told.startswith("@lg/none@1.0.0 from npm cannot be downloaded: npm says: 404 Not Found")


def test_no_such_package_in_debian(debian: Any, tmp_path: Path) -> None:
    debian(TEXT)
    told = refused(Debian("none"), tmp_path)
    assert told.startswith("none from Debian cannot be downloaded: apt-get says: Unable to locate package none; ")


@pytest.mark.parametrize(("package", "client"), [(Debian("tiny"), "apt-get"), (Npm("tiny", "1", WRONG), "npm")])
def test_no_client(package: Package, client: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refused(package, tmp_path).endswith(f"needs `{client}`, which this machine does not have")


def test_no_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "distributions", lambda **asked: iter(()))
    assert "tiny==1.0 from PyPI needs pip" in refused(PyPI("tiny", "1.0", WRONG), tmp_path)


def test_nothing_is_said_of_distutils(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Setuptools warns where pip is looked for after the standard library's distutils was imported."""
    monkeypatch.setitem(sys.modules, "distutils", ModuleType("distutils"))
    monkeypatch.setattr(sys, "executable", "/bin/true")
    assert "tiny==1.0 from PyPI" in refused(PyPI("tiny", "1.0", WRONG), tmp_path)


# What clients said on a disk that was full: pip through Python's own last words, npm in its own.
@pytest.mark.parametrize(
    "said", ["OSError: [Errno 28] No space left on device", "npm error nospc ENOSPC: no space left on device, write"]
)
def test_a_client_on_a_full_disk(said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "npm").write_text(f"#!/bin/sh\necho '{said}'\nexit 1\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="No space left on device"):
        fetched(Npm("tiny", "1.0", WRONG), tmp_path)


def test_what_pip_says_when_it_breaks_is_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "ERROR: Exception:\nTraceback (most recent call last):\n  File ...\nKeyError: 'x'"
    (tmp_path / "npm").write_text(f'#!/bin/sh\necho "{said}"\nexit 1\n')
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "npm says: KeyError: 'x'; " in refused(Npm("tiny", "1.0", WRONG), tmp_path)
