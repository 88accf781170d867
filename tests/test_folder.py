"""The cache folder is where the environment says, and nothing is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from lg.folder import cache_folder


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "home/.cache/lg"),
        ({"LG_CACHE": ""}, "home/.cache/lg"),
        ({"LG_CACHE": "near"}, "near"),
        ({"LG_CACHE": "~/mine", "XDG_CACHE_HOME": "/shared"}, "home/mine"),
        ({"XDG_CACHE_HOME": "/shared"}, "/shared/lg"),
        ({"XDG_CACHE_HOME": "~/shared"}, "home/.cache/lg"),
        ({"XDG_CACHE_HOME": "not/absolute"}, "home/.cache/lg"),
    ],
)
def test_where_it_is(
    environment: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("LG_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == tmp_path / expected
    assert not list(tmp_path.iterdir())


def test_a_home_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LG_CACHE", "~no-such-user/lg")
    with pytest.raises(ValueError, match=r"^LG_CACHE: '~no-such-user/lg' is no folder \(.*\); one is needed$"):
        cache_folder()
