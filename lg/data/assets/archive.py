"""Reads files out of a package's file, without writing any: wheels, source archives, npm's and Debian's packages."""

import io
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

Files = dict[str, bytes]
"""The contents of files, by their paths in a package."""

_Wanted = Callable[[str], bool]


def files_in(package: Path, patterns: tuple[str, ...]) -> Files:
    """The files of a package whose path matches one of some patterns.

    Args:
        package: the package's file; the ending of its name says what it is.
        patterns: as the shell's, but ``*`` matches ``/`` too.

    Raises:
        ValueError: the package is damaged, or of no known kind.
    """
    for ending, read in _READERS.items():
        if package.name.endswith(ending):
            try:
                return read(package, lambda path: any(fnmatchcase(path, pattern) for pattern in patterns))
            except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
                raise ValueError(f"{package.name} cannot be unpacked: {error}") from error
    raise ValueError(f"{package.name} cannot be unpacked; its name must end in {', '.join(_READERS)}")


def _in_zip(package: Path, wanted: _Wanted) -> Files:
    with zipfile.ZipFile(package) as archive:
        return {path: archive.read(path) for path in archive.namelist() if wanted(path)}


def _in_tar(package: Path, wanted: _Wanted) -> Files:
    with tarfile.open(package) as archive:
        return _of_tar(archive, wanted)


def _in_deb(package: Path, wanted: _Wanted) -> Files:
    # Debian's own program knows every compression that Debian has used.
    program = shutil.which("dpkg-deb")
    if program is None:
        raise ValueError(f"{package.name} cannot be unpacked without `dpkg-deb`, which this machine does not have")
    done = subprocess.run([program, "--fsys-tarfile", str(package)], stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        raise ValueError(f"{package.name} cannot be unpacked: {done.stderr.decode(errors='replace').strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        return _of_tar(archive, wanted)


def _of_tar(archive: tarfile.TarFile, wanted: _Wanted) -> Files:
    files = {}
    for member in archive:
        path = member.name.removeprefix("./")
        file = archive.extractfile(member) if member.isfile() and wanted(path) else None
        if file is not None:
            files[path] = file.read()
    return files


_READERS: dict[str, Callable[[Path, _Wanted], Files]] = {
    ".whl": _in_zip,
    ".deb": _in_deb,
    ".tar.gz": _in_tar,
    ".tgz": _in_tar,
}
