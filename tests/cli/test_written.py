"""Files are there whole, whoever else writes them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from lg.cli.written import write


def test_several_at_once_leave_the_whole_of_one(tmp_path: Path) -> None:
    path, failed = tmp_path / "figures.json", []

    def often(letter: bytes) -> None:
        try:
            for _ in range(50):
                write(path, letter * 100_000, "json")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=often, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    seen = set()
    while any(thread.is_alive() for thread in threads):
        seen.add(path.read_bytes() if path.exists() else b"a" * 100_000)
    assert not failed
    assert seen <= {letter * 100_000 for letter in (b"a", b"b", b"c")}
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(ValueError, match=r"--png: '.*a.png' cannot be written: Is a directory"):
        write(tmp_path / "a.png", b"", "--png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(ValueError, match=r"out: .* cannot be written: No such file or directory"):
        write(tmp_path / "gone" / "a.png", b"", "out")
