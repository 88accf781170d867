"""Datasets of the ``datasets`` library are read mapped or streamed, and none is waited for in vain."""

import json
import pickle
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lg.data import Document, HuggingFace

KEYS = r"^data\.init_args\.source\.init_args\."
FIRST, THIRD = Document("0", b"first"), Document("2", "dritte Zeile: ä".encode())


@pytest.fixture
def jsonl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"text": text, "size": len(text)} for text in ("first", "", "dritte Zeile: ä")]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return str(file)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a hub that does not answer, whatever this machine's own settings."""
    import datasets

    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        yield address


@pytest.mark.parametrize("streaming", [False, True])
def test_a_column_is_read_from_any_row_on(jsonl: str, streaming: bool) -> None:
    source = HuggingFace("json", data_files=jsonl, streaming=streaming)
    assert source.streamed is streaming
    assert list(source.documents()) == [FIRST, THIRD]
    for start in range(5):
        assert list(source.numbered(start)) == [pair for pair in ((0, FIRST), (2, THIRD)) if pair[0] >= start]
    assert pickle.loads(pickle.dumps(source)) == source


@pytest.mark.parametrize("streaming", [False, True])
def test_what_is_wrong_is_said_before_the_first_document(jsonl: str, streaming: bool) -> None:
    with pytest.raises(ValueError, match=KEYS + r"column: 'size' is not a column of text; 'json' has 'text'"):
        HuggingFace("json", data_files=jsonl, column="size", streaming=streaming).documents()
    with pytest.raises(ValueError, match=KEYS + r"path: 'json' \(split 'dev'.*cannot be loaded: .*dev"):
        HuggingFace("json", data_files=jsonl, split="dev", streaming=streaming).documents()
    with pytest.raises(ValueError, match=KEYS + r"path: 'json' .*cannot be loaded"):
        HuggingFace("json", data_files=jsonl + ".gone", streaming=streaming).documents()
    Path(jsonl).write_text('{"text": "cut sho')
    with pytest.raises(ValueError, match=KEYS + r"path: 'json' .*cannot be (loaded|read): JSON parse error"):
        HuggingFace("json", data_files=jsonl, streaming=streaming).documents()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_is_read(jsonl: str, tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "folder").mkdir()
    Path(jsonl).rename(tmp_path / "folder" / "train.jsonl")
    assert list(HuggingFace(str(tmp_path / "folder"), streaming=streaming).documents()) == [FIRST, THIRD]
    import datasets

    saved = datasets.Dataset.from_dict({"text": ["first"]})
    saved.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": saved, "dev": saved.select([])}).save_to_disk(str(tmp_path / "two"))
    for name in ("one", "two"):
        assert list(HuggingFace(str(tmp_path / name), streaming=streaming).documents()) == [FIRST]


def test_what_is_here_opens_no_connection(
    jsonl: str, hub: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: asked.append(host) or [])
    assert len(list(HuggingFace("json", data_files=jsonl).documents())) == 2
    with pytest.raises(ValueError, match=KEYS + r"path: './nowhere' is not a folder"):
        HuggingFace("./nowhere").documents()
    with pytest.raises(ValueError, match=KEYS + r"path: '.*rows\.jsonl' is not a folder"):
        HuggingFace(jsonl).documents()
    assert not asked
    with pytest.raises(ValueError):
        HuggingFace("no/such").documents()
    assert asked == ["127.0.0.1"]
    assert capfd.readouterr() == ("", "")


def test_a_format_needs_its_files() -> None:
    with pytest.raises(ValueError, match=KEYS + r"data_files: null is not allowed for the format 'json'"):
        HuggingFace("json").documents()


def test_a_name_is_refused_at_once_where_the_hub_is_not(hub: str) -> None:
    begin = time.monotonic()
    with pytest.raises(ValueError, match=KEYS + rf"path: 'no/such' is no folder here, and {hub} cannot be reached"):
        HuggingFace("no/such").documents()
    assert time.monotonic() - begin < 5


def test_the_fingerprint_changes_with_what_is_read(jsonl: str) -> None:
    own = HuggingFace("json", data_files=jsonl).fingerprint()
    assert own == HuggingFace("json", data_files=jsonl).fingerprint()
    assert own != HuggingFace("json", data_files=jsonl, split="train[:1]").fingerprint()
    stream = HuggingFace("json", data_files=jsonl, streaming=True)
    assert stream.fingerprint() == HuggingFace("json", data_files=jsonl, streaming=True).fingerprint() != own
    Path(jsonl).write_text('{"text": "other"}')
    assert HuggingFace("json", data_files=jsonl).fingerprint() != own
