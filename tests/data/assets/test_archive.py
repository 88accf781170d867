"""Files are read out of every kind of package, and a damaged package is told."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from lg.data.assets.archive import files_in

FILES = {"a/one.txt": b"1", "a/b/two.txt": b"2", "a/three.md": b"3"}


def packed(name: str) -> bytes:
    content = io.BytesIO()
    if name.endswith(".whl"):
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as wheel:
            for path, text in FILES.items():
                wheel.writestr(path, text * 1000)
    else:
        with tarfile.open(fileobj=content, mode="w:gz") as archive:
            for path, text in FILES.items():
                member = tarfile.TarInfo(path)
                member.size = 1000
                archive.addfile(member, io.BytesIO(text * 1000))
            link = tarfile.TarInfo("a/link.txt")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
    return content.getvalue()


@pytest.mark.parametrize("name", ["x.whl", "x.tgz", "x.tar.gz"])
def test_what_matches_is_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(packed(name))
    assert files_in(tmp_path / name, ("*.txt",)) == {"a/one.txt": b"1" * 1000, "a/b/two.txt": b"2" * 1000}
    assert files_in(tmp_path / name, ("a/three.md", "none")) == {"a/three.md": b"3" * 1000}


@pytest.mark.parametrize("name", ["x.whl", "x.tgz", "x.deb"])
@pytest.mark.parametrize("content", [b"", b"not an archive"])
def test_what_is_no_archive(name: str, content: bytes, tmp_path: Path) -> None:
    if name.endswith(".deb") and not shutil.which("dpkg-deb"):
        pytest.skip("needs dpkg-deb")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"^{name} cannot be unpacked: "):
        files_in(tmp_path / name, ("*",))


@pytest.mark.parametrize("name", ["x.whl", "x.tgz"])
def test_one_that_ends_too_early(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(packed(name)[:-60])
    with pytest.raises(ValueError, match=f"^{name} cannot be unpacked: "):
        files_in(tmp_path / name, ("*",))


def test_a_kind_that_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "x.rar").touch()
    with pytest.raises(ValueError, match=r"^x.rar cannot be unpacked; its name must end in .whl, .deb, .tar.gz, .tgz$"):
        files_in(tmp_path / "x.rar", ("*",))


def test_a_deb_without_dpkg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"^x.deb cannot be unpacked without `dpkg-deb`"):
        files_in(tmp_path / "x.deb", ("*",))
