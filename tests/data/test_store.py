"""A folder of arrays is opened as it was written, or not at all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lg.data import store
from lg.data.store import Damaged, Draft, opened, verify

ORIGIN = {"version": 1, "source": "naïve ☃", "ids": "<u2"}
ARRAYS = {"tokens": np.arange(300, dtype="<u2"), "starts": np.array([0, 200, 300]), "none": np.zeros(0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that nothing has touched."""
    final = tmp_path_factory.mktemp("store") / "final"
    with Draft(final.with_name("part"), ARRAYS) as draft:
        for name, array in ARRAYS.items():
            for piece in np.array_split(array, 3):
                draft.append(name, piece)
        draft.finish(final, ORIGIN)
    return final


def same(folder: Path) -> bool:
    """Whether a folder that passes as sound holds what was written."""
    verify(folder, ORIGIN)
    found = opened(folder)
    return set(found) == set(ARRAYS) and all(
        found[name].dtype == array.dtype and np.array_equal(found[name], array) for name, array in ARRAYS.items()
    )


def test_what_is_written_is_opened(folder: Path) -> None:
    assert same(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["final"]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_byte_that_changes_is_noticed(folder: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(file for file in folder.iterdir() if file.stat().st_size)))
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    path.write_bytes(content[:place] + bytes([other]) + content[place + 1 :])
    try:
        assert same(folder), f"byte {place} of {path.name} as {other}"  # white space in meta.json
    except Damaged as damage:
        assert str(path) in str(damage)
    finally:
        path.write_bytes(content)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_other_length_is_noticed(folder: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = path.read_bytes()
    shorter = st.integers(0, len(content)).map(lambda size: content[:size])
    longer = st.binary(min_size=1).map(lambda more: content + more)
    path.write_bytes(data.draw(shorter | longer))
    try:
        assert same(folder), path.name
    except Damaged as damage:
        assert str(path) in str(damage)
    finally:
        path.write_bytes(content)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["origin", "files", "crc32"]), inner),
)


@settings(max_examples=100, deadline=None)
@given(content=JSON)
def test_json_of_another_shape_is_noticed(folder: Path, content: object) -> None:
    meta = folder / "meta.json"
    written = meta.read_bytes()
    meta.write_text(json.dumps(content))
    try:
        with pytest.raises(Damaged, match=r"meta\.json has changed"):
            verify(folder, ORIGIN)
    finally:
        meta.write_bytes(written)


def in_place_of(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "starts.bin").unlink(), "starts.bin is missing"),
        (lambda folder: (folder / "meta.json").unlink(), "meta.json cannot be read: No such file"),
        (in_place_of("tokens.bin", Path.mkdir), "tokens.bin is missing"),
        (in_place_of("meta.json", Path.mkdir), "meta.json cannot be read: Is a directory"),
        (in_place_of("meta.json", lambda path: path.write_text("[" * 100_000)), "meta.json is not JSON"),
        (in_place_of("meta.json", lambda path: path.write_bytes(b"\xff")), "meta.json is not JSON"),
        (in_place_of("meta.json", lambda path: path.write_text("9" * 5000)), "meta.json (is not JSON|has changed)"),
        (shutil.rmtree, "meta.json cannot be read"),
    ],
)
def test_other_damage_is_told(folder: Path, tmp_path: Path, spoil: Callable[[Path], object], said: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    spoil(copy)
    with pytest.raises(Damaged, match=said):
        verify(copy, ORIGIN)


def test_another_origin_is_noticed(folder: Path) -> None:
    with pytest.raises(Damaged, match=r"meta\.json is of another text, tokenizer or version"):
        verify(folder, {**ORIGIN, "version": 2})


def test_checksums_reach_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_BLOCK", 64)
    array = np.arange(1000)
    with Draft(tmp_path / "part", ["tokens"]) as draft:
        for piece in np.split(array, [1, 7, 20, 500]):
            draft.append("tokens", piece)
        draft.finish(tmp_path / "final", ORIGIN)
    verify(tmp_path / "final", ORIGIN)
    meta = json.loads((tmp_path / "final" / "meta.json").read_text())
    assert len(meta["files"]["tokens"]["crc32"]) == 8000 / 64
    path = tmp_path / "final" / "tokens.bin"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match=r"tokens\.bin has changed"):
        verify(tmp_path / "final", ORIGIN)


def test_a_draft_not_finished_leaves_nothing(tmp_path: Path) -> None:
    part = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt), Draft(part, ["tokens"]) as draft:
        draft.append("tokens", np.arange(5))
        assert part.is_dir()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_draft_takes_the_place_of_a_killed_ones(tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.mkdir()
    (part / "tokens.bin").write_bytes(b"half")
    with Draft(part, ["tokens"]) as draft:
        draft.append("tokens", np.arange(5))
        draft.finish(tmp_path / "final", ORIGIN)
    np.testing.assert_array_equal(opened(tmp_path / "final")["tokens"], np.arange(5))


def test_what_the_file_system_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for part in (tmp_path / "file" / "part", tmp_path / "gone" / "part", tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with (
            pytest.raises(ValueError, match=r"^data\.init_args\.cache: '.*' cannot be written: .*LG_CACHE$"),
            Draft(part, ["tokens"]),
        ):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_gone_when_it_is_mapped_is_told(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "tokens.bin").write_bytes(b"short")
    with pytest.raises(Damaged, match=r"tokens\.bin cannot be mapped: "):
        opened(tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy")
    with pytest.raises(Damaged, match=r"meta\.json cannot be read"):
        opened(tmp_path / "copy")
