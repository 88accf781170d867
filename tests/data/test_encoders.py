"""However many processes tokenise, the documents come in their order; what goes wrong there is one error here."""

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lg.data import encoders
from lg.data.corpus import Corpus
from lg.data.encoders import tokenised
from lg.data.source import Document
from lg.data.tokenizer import Bytes, Tokenizer

# A user's own, in a file that is on the path of the program that trains.
CAPRICIOUS = '''
import os
import signal
import time

from lg.data.tokenizer import Bytes


class Capricious(Bytes):
    """Does what a document asks for."""

    def __init__(self):
        self.state = "kept"

    def encode(self, text):
        assert self.state == "kept"
        print("a tokenizer may print")
        if text == b"slow":
            time.sleep(0.2)
        elif text == b"bad":
            raise ValueError("data.init_args.tokenizer: no such text")
        elif text == b"broken":
            raise KeyError("bug")
        elif text == b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(text)
'''


@pytest.fixture
def capricious(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tokenizer]:
    """One of the user's tokenizers, and batches of one document each."""
    (tmp_path / "capricious.py").write_text(CAPRICIOUS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(encoders, "_BATCH", 1)
    module = __import__("capricious")
    yield module.Capricious()
    del sys.modules["capricious"]


def documents(*texts: bytes) -> list[Document]:
    return [Document(str(number), text) for number, text in enumerate(texts)]


def joined(pieces: Iterator[Corpus]) -> bytes:
    return b"".join(piece.tokens.tobytes() for piece in pieces)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that were started."""
    found = []

    class Noted(encoders._Process):
        def __init__(self) -> None:
            super().__init__()
            found.append(self._popen)

    monkeypatch.setattr(encoders, "_Process", Noted)
    return found


Started = list[subprocess.Popen[bytes]]


def ended(started: Started) -> list[bool]:
    return [process.poll() is not None for process in started]


def test_in_order_whoever_is_slow(capricious: Tokenizer, started: Started, capfd: pytest.CaptureFixture[str]) -> None:
    texts = [b"slow", *(str(number).encode() for number in range(20)), b"slow", b"", b"end"]
    pieces = tokenised(documents(*texts), capricious, processes=2)
    assert joined(pieces) == b"\0".join(texts) + b"\0"
    assert ended(started) == [True, True]
    written = capfd.readouterr()
    assert written.err.count("a tokenizer may print") == len(texts)
    assert not written.out


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (b"bad", ValueError, r"^data\.init_args\.tokenizer: no such text$"),
        (b"broken", RuntimeError, "(?s)another process.*Capricious.*KeyError: 'bug'|in encode"),
        (b"die", ValueError, r"^data\.init_args\.tokenizer: a process died \(SIGKILL\) as it tokenised document '3'; "),
    ],
)
def test_what_goes_wrong_is_one_error(
    capricious: Tokenizer, started: Started, text: bytes, error: type[Exception], said: str
) -> None:
    threads = threading.active_count()
    with pytest.raises(error, match=said):
        list(tokenised(documents(b"a", b"slow", b"b", text, *[b"c"] * 50), capricious, processes=2))
    assert ended(started) == [True, True]
    assert threading.active_count() == threads


def test_closed_early_it_ends_its_processes_and_reads_no_further(capricious: Tokenizer, started: Started) -> None:
    read = []

    def endless() -> Iterator[Document]:
        number = 0
        while True:
            read.append(number)
            yield Document(str(number), b"text")
            number += 1

    pieces = tokenised(endless(), capricious, processes=2)
    next(pieces)
    assert ended(started) == [False, False]
    pieces.close()
    assert ended(started) == [True, True]
    assert len(read) < 10


def test_one_that_cannot_be_sent_works_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Local(Bytes):
        pass

    with caplog.at_level(logging.INFO, "lg"):
        assert joined(tokenised(documents(b"a", b"b"), Local(), processes=2)) == b"a\0b\0"
    assert "Local cannot be sent to other processes (" in caplog.text


@pytest.mark.slow  # imports lg.data as a whole, lightning among it
def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    """Its own tokenizer works alone; one in a module beside it, that imports from `lg.data`, is sent."""
    (tmp_path / "beside.py").write_text("from lg.data import Bytes\nclass Beside(Bytes): pass\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import logging\n"
        "from beside import Beside\n"
        "from lg.data.encoders import tokenised\n"
        "from lg.data.source import Document\n"
        "from lg.data.tokenizer import Bytes\n"
        "class Own(Bytes): pass\n"
        "logging.basicConfig(level='INFO')\n"
        "print('once')\n"
        "for tokenizer in Own(), Beside(), Bytes():\n"
        "    print(len(list(tokenised([Document('a', b'a')], tokenizer, processes=2))))\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", script], capture_output=True, text=True)
    assert done.stdout.split() == ["once", "1", "1", "1"], done.stderr
    assert done.stderr.count("cannot be sent") == done.stderr.count("Own cannot be sent") == 1


def test_by_default_short_text_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "_FAST", float("inf"))
    monkeypatch.setattr(encoders, "_num_cores", lambda: 2)
    monkeypatch.setattr(encoders, "_Crew", None)
    monkeypatch.setattr(encoders, "_TRIAL", 100)
    assert joined(tokenised(documents(b"a", b"b"), Bytes())) == b"a\0b\0"
    with pytest.raises(TypeError, match="NoneType"):
        list(tokenised(documents(bytes(200)), Bytes()))
    monkeypatch.setattr(encoders, "_FAST", 0)
    assert len(joined(tokenised(documents(bytes(200), bytes(200)), Bytes()))) == 402


def test_batches_are_of_whole_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    texts = [random.bytes(size) for size in random.integers(0, 3000, 200)]
    monkeypatch.setattr(encoders, "_BATCH", 5000)
    pieces = list(tokenised(documents(*texts), Bytes(), processes=1))
    assert 10 < len(pieces) < 200
    assert sum(len(piece) for piece in pieces) == 200
    assert b"".join(piece.tokens.tobytes() for piece in pieces) == b"".join(text + b"\0" for text in texts)
