"""Registries of the tests' own, which the real pip, npm and apt-get read: nothing leaves the machine."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lg.data.assets.archive import Files


def tar(files: Files, mode: str = "w:gz") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size, member.mode = len(content), 0o755
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def deb(files: Files, control: str) -> bytes:
    """A Debian package: an `ar` archive of a version and two compressed tars."""
    members = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": tar({"./control": control.encode()}, "w:xz"),
        "data.tar.xz": tar({f"./{path}": content for path, content in files.items()}, "w:xz"),
    }
    packed = b"!<arch>\n"
    for name, content in members.items():
        packed += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        packed += content + b"\n" * (len(content) % 2)
    return packed


Publish = Callable[[Files], str]
"""Puts a package `tiny` with some files into a registry, and gives the sha256 of the package's file."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder that is not there yet."""
    monkeypatch.setenv("LG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pypi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    index = tmp_path / "pypi"
    index.mkdir()
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))

    def publish(files: Files) -> str:
        wheel = index / "tiny-1.0-py3-none-any.whl"
        about = {
            "tiny-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
            "tiny-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "tiny-1.0.dist-info/RECORD": b"",
        }
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, content in {**files, **about}.items():
                archive.writestr(zipfile.ZipInfo(path), content)
        return hashlib.sha256(wheel.read_bytes()).hexdigest()

    return publish


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publish]:
    if shutil.which("npm") is None:
        pytest.skip("needs npm")
    pages: Files = {}

    class Registry(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path.lower())
            self.send_response(200 if page is not None else 404)
            self.end_headers()
            self.wfile.write(page or b"{}")

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("npm_config_registry", address)
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    monkeypatch.setenv("npm_config_userconfig", os.devnull)

    def publish(files: Files) -> str:
        about = {"name": "@lg/tiny", "version": "1.0.0"}
        packed = tar({"package/package.json": json.dumps(about).encode(), **files})
        integrity = f"sha512-{base64.b64encode(hashlib.sha512(packed).digest()).decode()}"
        version = {**about, "dist": {"tarball": f"{address}/tiny.tgz", "integrity": integrity}}
        pages["/tiny.tgz"] = packed
        pages["/@lg%2ftiny"] = json.dumps({"name": "@lg/tiny", "versions": {"1.0.0": version}}).encode()
        return hashlib.sha256(packed).hexdigest()

    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield publish
        server.shutdown()


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    if shutil.which("apt-get") is None:
        pytest.skip("needs apt-get")
    mirror, state = tmp_path / "debian", tmp_path / "apt"
    mirror.mkdir()
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True)
    (state / "sources.list").write_text(f"deb [trusted=yes] file:{mirror} ./\n")
    (state / "status").touch()
    (state / "apt.conf").write_text(f"""
        Dir::State "{state}/state";
        Dir::State::status "{state}/status";
        Dir::Cache "{state}/cache";
        Dir::Etc::sourcelist "{state}/sources.list";
        Dir::Etc::sourceparts "-";
        APT::Sandbox::User "root";
    """)
    monkeypatch.setenv("APT_CONFIG", str(state / "apt.conf"))

    def publish(files: Files) -> str:
        control = "Package: tiny\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody\nDescription: small\n"
        packed = deb(files, control)
        (mirror / "tiny_1.0_all.deb").write_bytes(packed)
        digest = hashlib.sha256(packed).hexdigest()
        file = f"Filename: ./tiny_1.0_all.deb\nSize: {len(packed)}\nSHA256: {digest}\n"
        (mirror / "Packages").write_text(control + file)
        subprocess.run(["apt-get", "update"], check=True, capture_output=True)
        return digest

    return publish
