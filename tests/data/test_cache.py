"""The cache gives what tokenising in memory gives, whoever else uses it, and whatever has happened to it."""

import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from lg.data import cache
from lg.data.cache import cached
from lg.data.corpus import Corpus
from lg.data.encoders import _PRELUDE as PRELUDE
from lg.data.source import Document, Source
from lg.data.tokenizer import Bytes, Ids, Tokenizer, TokenizerFile

TEXTS = {"a": b"abc", "none": b"", "long": bytes(range(1, 256)) * 40, "b": "naïve ☃".encode()}


@dataclass
class Texts(Source):
    """Some texts, and what happens after the last of them."""

    texts: dict[str, bytes] = field(default_factory=lambda: TEXTS)
    after: Callable[[], object] = lambda: None

    def documents(self, start: int = 0) -> Iterator[Document]:
        for name, text in self.texts.items():
            yield Document(name, text)
        self.after()

    def fingerprint(self) -> str:
        return str(sorted(self.texts.items()))


class Never(Bytes):
    """Is not to be asked; passes for `Bytes`."""

    def encode(self, text: bytes) -> Ids:
        raise AssertionError("tokenised again")

    def fingerprint(self) -> str:
        return Bytes().fingerprint()


def assert_same(found: Corpus, expected: Corpus) -> None:
    for name in ("tokens", "starts", "num_bytes", "places"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), strict=True)


def in_memory(tokenizer: Tokenizer | None = None) -> Corpus:
    return Corpus.of(Texts().documents(), tokenizer or Bytes())


def raising(error: BaseException) -> Callable[[], object]:
    def raise_it() -> None:
        raise error

    return raise_it


def entries(folder: Path) -> list[str]:
    """What the cache holds, locks apart."""
    corpora = folder / "corpora"
    return sorted(path.name for path in corpora.glob("*") if path.suffix != ".lock") if corpora.is_dir() else []


def entry(folder: Path) -> Path:
    (name,) = entries(folder)
    return folder / "corpora" / name


def bpe(folder: Path, vocab_size: int) -> TokenizerFile:
    """A byte-level BPE, trained on this file."""
    tokenizer = tokenizers.Tokenizer(BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=["</s>"], show_progress=False)
    tokenizer.train_from_iterator([Path(__file__).read_text(encoding="utf-8")], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return TokenizerFile(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("processes", [None, 1, 2])
def test_the_cache_gives_what_memory_gives(tmp_path: Path, processes: int | None) -> None:
    tokenizer = bpe(tmp_path, 400)
    for source in Texts(), Texts({}):
        expected = Corpus.of(source.documents(), tokenizer)
        for _ in range(2):
            found = cached(source, tokenizer, str(tmp_path / "cache"), processes)
            assert_same(found, expected)
            assert found.tokens.dtype == np.uint16
    assert isinstance(cached(Texts(), tokenizer, str(tmp_path / "cache")).tokens, np.memmap)


def test_what_is_there_is_not_tokenised_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lg")
    threads = threading.active_count()
    cached(Texts(), Bytes(), str(tmp_path))
    assert threading.active_count() == threads
    num = sum(map(len, TEXTS.values())) + 4
    assert f"{num} tokens of 4 documents ({num} bytes) tokenised in " in caplog.text
    caplog.clear()
    assert_same(cached(Texts(), Never(), str(tmp_path)), in_memory())
    assert [record.getMessage() for record in caplog.records] == [
        f"{num} tokens of 4 documents are in the cache, {entry(tmp_path)}"
    ]


def test_another_text_or_tokenizer_is_another_entry(tmp_path: Path) -> None:
    tokenizer = bpe(tmp_path, 300)
    texts = {**TEXTS, "a": b"abd"}
    for source in Texts(), Texts(texts):
        for each in Bytes(), tokenizer:
            assert_same(cached(source, each, str(tmp_path)), Corpus.of(source.documents(), each))
    assert len(entries(tmp_path)) == 4


def test_another_version_is_another_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(Texts(), Bytes(), str(tmp_path))
    monkeypatch.setattr(cache, "_VERSION", cache._VERSION + 1)
    cached(Texts(), Bytes(), str(tmp_path))
    assert len(entries(tmp_path)) == 2


def test_by_default_it_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LG_CACHE", str(tmp_path / "lg"))
    cached(Texts(), Bytes())
    assert entry(tmp_path / "lg").is_dir()


def test_reading_needs_no_lock(tmp_path: Path) -> None:
    cached(Texts(), Bytes(), str(tmp_path))
    with FileLock(entry(tmp_path).with_suffix(".lock")):
        assert_same(cached(Texts(), Never(), str(tmp_path)), in_memory())


# Damage.


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_one_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture, data: st.DataObject) -> None:
    cached(Texts(), Bytes(), str(tmp_path))
    path = data.draw(st.sampled_from(sorted(entry(tmp_path).iterdir())))
    content = path.read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    spoilt = data.draw(
        st.sampled_from(
            [None, b"", b"{}", content[:place], content + b"0", content[:place] + b"\x07" + content[place + 1 :]]
        ).filter(lambda other: other != content)
    )
    if spoilt is None:
        path.unlink()
    else:
        path.write_bytes(spoilt)
    caplog.clear()
    assert_same(cached(Texts(), Bytes(), str(tmp_path)), in_memory())
    (notice,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert notice.startswith(f"the cache is damaged, and is made anew: {path} ")
    assert_same(cached(Texts(), Never(), str(tmp_path)), in_memory())
    assert len(entries(tmp_path)) == 1


@pytest.mark.parametrize("spoil", [Path.touch, Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_what_is_no_entry_gives_way(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    cached(Texts(), Bytes(), str(tmp_path))
    there = entry(tmp_path)
    shutil.rmtree(there)
    spoil(there)
    assert_same(cached(Texts(), Bytes(), str(tmp_path)), in_memory())


def test_one_that_another_process_reads_stays_readable(tmp_path: Path) -> None:
    first = cached(Texts(), Bytes(), str(tmp_path))
    (entry(tmp_path) / "places.bin").unlink()
    cached(Texts(), Bytes(), str(tmp_path))
    assert_same(first, in_memory())
    assert_same(pickle.loads(pickle.dumps(first)), in_memory())


# What goes wrong meanwhile.


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (ValueError("data.init_args.source: mine"), ValueError, "^data.init_args.source: mine$"),
        (PermissionError(13, "Permission denied", "x.txt"), ValueError, r"source: Texts cannot be read: .*'x\.txt'"),
        (KeyError("bug"), KeyError, "bug"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_a_source_that_fails_leaves_nothing(
    tmp_path: Path, error: BaseException, kind: type[BaseException], said: str | None
) -> None:
    with pytest.raises(kind, match=said):
        cached(Texts(after=raising(error)), Bytes(), str(tmp_path))
    assert not entries(tmp_path)


def test_a_tokenizer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="tokenised again"):
        cached(Texts(), Never(), str(tmp_path))
    assert not entries(tmp_path)


def test_a_source_that_changes_meanwhile_is_an_error(tmp_path: Path) -> None:
    texts = dict(TEXTS)
    with pytest.raises(ValueError, match=r"^data\.init_args\.source: the text of Texts changed while it was read"):
        cached(Texts(texts, lambda: texts.update(a=b"other")), Bytes(), str(tmp_path))
    assert not entries(tmp_path)


def test_where_no_folder_can_be_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for folder in ("file", "file/below", "x" * 300, "a\0b"):
        with pytest.raises(
            ValueError, match=r"^data\.init_args\.cache: '.*' cannot be written: .*; a folder on a disk"
        ):
            cached(Texts(), Bytes(), str(tmp_path / folder))
    with pytest.raises(ValueError, match=r"^data\.init_args\.cache: '~nobody-at-all/x' is no folder \(.*\); one is"):
        cached(Texts(), Bytes(), "~nobody-at-all/x")
    (tmp_path / "corpora").touch()
    with pytest.raises(ValueError, match=r"corpora.* cannot be written: "):
        cached(Texts(), Bytes(), str(tmp_path))
    for name in ("HOME", "LG_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda user: {}[user])  # a user without an entry in the password file
    with pytest.raises(ValueError, match=r"^data\.init_args\.cache: None is no folder \("):
        cached(Texts(), Bytes())


# Other processes, and disks without room.

# A program that tokenises slowly, if asked to, and says what it found; it does not import all of lg.data, which takes
# seconds.
SCRIPT = """
import logging, os, resource, time
from dataclasses import dataclass
from pathlib import Path
from lg.data.cache import cached
from lg.data.source import Document, Source
from lg.data.tokenizer import Bytes
from lg.data import encoders

encoders._BATCH = 1
logging.basicConfig(level="INFO", format="%(message)s")
folder, pause, limit = sys.argv[2], float(sys.argv[3]), int(sys.argv[4])

class Numbers(Source):
    def documents(self, start=0):
        for number in range(40):
            yield Document(str(number), bytes([number]) * 10_000)

class Slow(Bytes):
    def encode(self, text):
        time.sleep(pause)
        return super().encode(text)
    def fingerprint(self):
        return "slow"

if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    corpus = cached(Numbers(), Slow(), folder, processes=1)
except ValueError as error:
    print("error:", error)
else:
    assert corpus.tokens.tobytes() == b"".join(bytes([number]) * 10_000 + bytes(1) for number in range(40))
    print("right")
print(sorted(name for name in os.listdir(folder + "/corpora") if not name.endswith(".lock")))
"""


def command(folder: Path, pause: float = 0, limit: int = 0) -> list[str]:
    path = json.dumps([str(Path(each).absolute()) for each in sys.path])
    return [sys.executable, "-c", PRELUDE + SCRIPT, path, str(folder), str(pause), str(limit)]


def started(folder: Path, pause: float = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(command(folder, pause), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def half_written(folder: Path) -> bool:
    return any(path.stat().st_size for path in folder.glob("corpora/*.part/tokens.bin"))


def test_of_three_at_once_one_makes_it(tmp_path: Path) -> None:
    processes = [started(tmp_path, pause=0.05) for _ in range(3)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert all(out.startswith("right\n") for out, _ in outputs), outputs
    assert sum("tokenised in" in log for _, log in outputs) == 1
    assert sum("are in the cache" in log for _, log in outputs) == 2
    assert len(entries(tmp_path)) == 1


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_one_that_is_killed_does_not_stop_the_others(tmp_path: Path, ending: signal.Signals) -> None:
    # Long enough for the second one to begin while it works, on a busy machine too: it is killed before its end.
    first = started(tmp_path, pause=0.8)
    until(lambda: half_written(tmp_path))
    second = started(tmp_path)
    assert second.stderr
    assert "another process makes" in second.stderr.readline()
    first.send_signal(ending)
    first.communicate(timeout=60)
    assert first.returncode == -ending
    out, log = second.communicate(timeout=60)
    assert out.startswith("right\n")
    assert "tokenised in" in log
    assert len(entries(tmp_path)) == 1


def test_the_next_build_removes_what_killed_ones_left_and_no_more(tmp_path: Path) -> None:
    process = started(tmp_path, pause=0.2)
    until(lambda: half_written(tmp_path))
    process.kill()
    process.communicate(timeout=60)
    (left,) = entries(tmp_path)
    assert left.endswith(".part")
    other = tmp_path / "corpora" / "other.part"
    other.mkdir()
    with FileLock(other.with_suffix(".lock")):  # being written
        cached(Texts(), Bytes(), str(tmp_path))
    assert left not in entries(tmp_path)
    assert other.is_dir()


def test_files_too_large_are_one_error(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path, limit=100_000), capture_output=True, text=True, timeout=60)
    error, listed = done.stdout.splitlines()
    assert error.startswith("error: data.init_args.cache: ")
    assert "cannot be written: File too large; a folder on a disk with room is needed" in error
    assert listed == "[]"


@pytest.mark.parametrize("pages", [1, 3, 50, 101])
def test_a_full_disk_is_one_error(tmp_path: Path, pages: int) -> None:
    size = pages * os.sysconf("SC_PAGESIZE")
    mount = 'mount -t tmpfs -o size=$1,mode=700 none "$2" && shift 2 && exec "$@"'
    inside = ["unshare", "-rm", "sh", "-c", mount, "sh", str(size), str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("nobody may mount a disk of a chosen size here")
    done = subprocess.run([*inside, *command(tmp_path)], capture_output=True, text=True, timeout=60)
    error, listed = done.stdout.splitlines()
    assert error.startswith("error: data.init_args.cache: ")
    assert "cannot be written: No space left on device; a folder on a disk with room is needed" in error
    assert listed == "[]"


def test_another_process_opens_what_it_is_sent(tmp_path: Path) -> None:
    corpus = cached(Texts(), Bytes(), str(tmp_path))
    script = PRELUDE + "import pickle\nprint(pickle.loads(bytes.fromhex(sys.argv[2])).tokens[:3].tolist())"
    sent = pickle.dumps(corpus).hex()
    path = json.dumps([str(Path(each).absolute()) for each in sys.path])
    done = subprocess.run([sys.executable, "-c", script, path, sent], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(list(b"abc"))
