"""Ids stand for the text and nothing else, and encoding can be undone."""

import importlib.util
import json
import linecache
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from lg.data import Bytes, TokenizerFile
from lg.data.encoders import _PRELUDE as PRELUDE

TEXT = "def f(x):\n\treturn 'naïve ☃'\n".encode()


def save(folder: Path, special: list[str], padded_and_cut: bool = False) -> str:
    """A byte-level BPE of about 300 ids, special tokens added last."""
    tokenizer = tokenizers.Tokenizer(BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT.decode() * 20], trainer)
    tokenizer.add_special_tokens(special)
    if padded_and_cut:
        tokenizer.enable_padding(length=64)
        tokenizer.enable_truncation(4)
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return str(path)


def test_bytes_are_their_own_ids() -> None:
    tokenizer = Bytes()
    every = bytes(range(256))
    assert (tokenizer.vocab_size, tokenizer.end) == (256, 0)
    assert tokenizer.encode(every).dtype == np.uint8
    assert tokenizer.encode(every).tolist() == list(range(256))
    assert tokenizer.decode(tokenizer.encode(every).astype(np.int64)) == every
    assert tokenizer.decode([104, 105]) == b"hi"


def test_file_encodes_and_decodes(tmp_path: Path) -> None:
    tokenizer = TokenizerFile(save(tmp_path, ["<pad>", "<|endoftext|>"], padded_and_cut=True))
    ids = tokenizer.encode(TEXT)
    assert 4 < len(ids) < len(TEXT)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.decode([*ids.tolist(), tokenizer.end]) == TEXT + b"<|endoftext|>"
    assert len(tokenizer.encode(b"")) == 0


def test_file_counts_added_tokens_and_gaps(tmp_path: Path) -> None:
    path = Path(save(tmp_path, ["<pad>", "</s>"]))
    tokenizer = TokenizerFile(str(path))
    assert tokenizer.end == tokenizer.vocab_size - 1
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    highest = max(vocabulary, key=vocabulary.get)
    vocabulary[highest] += 1000
    path.write_text(json.dumps(content))
    assert TokenizerFile(str(path)).vocab_size == vocabulary[highest] + 1


def test_a_special_token_spelled_out_in_the_text_ends_nothing(tmp_path: Path) -> None:
    tokenizer = TokenizerFile(save(tmp_path, ["<|endoftext|>"]))
    ids = tokenizer.encode(b"a <|endoftext|> b")
    assert tokenizer.end not in ids
    assert tokenizer.decode(ids) == b"a <|endoftext|> b"


def test_bytes_that_are_no_utf8_are_replaced(tmp_path: Path) -> None:
    tokenizer = TokenizerFile(save(tmp_path, ["</s>"]))
    assert tokenizer.decode(tokenizer.encode(b"a\xffb")) == "a\ufffdb".encode()


def test_the_end_token(tmp_path: Path) -> None:
    path = save(tmp_path, ["</s>", "<|endoftext|>", "<mine>"])
    first, chosen = TokenizerFile(path), TokenizerFile(path, end="<mine>")
    assert first.decode([first.end]) == b"<|endoftext|>"
    assert chosen.decode([chosen.end]) == b"<mine>"
    with pytest.raises(ValueError, match=r"tokenizer\.init_args\.end: '<none>' is not allowed"):
        TokenizerFile(path, end="<none>")
    with pytest.raises(ValueError, match=r"tokenizer\.init_args\.end: None .*</s> or <|im_end|>"):
        TokenizerFile(save(tmp_path, []))


def test_a_bad_file_is_an_error(tmp_path: Path) -> None:
    key = r"^data\.init_args\.tokenizer\.init_args\.path: "
    with pytest.raises(ValueError, match=key + ".*gone.json' is not a file"):
        TokenizerFile(str(tmp_path / "gone.json"))
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    with pytest.raises(ValueError, match=key + r".*bad.json' is not a tokenizer\.json"):
        TokenizerFile(str(bad))


def test_without_the_library_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, ["</s>"])
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match=r"pip install 'lg\[hf\]'"):
        TokenizerFile(path)


def module(folder: Path, source: str) -> Any:
    """A user's module, as it is when a program starts."""
    (folder / "own.py").write_text(source)
    linecache.clearcache()
    spec = importlib.util.spec_from_file_location("own", folder / "own.py")
    assert spec and spec.loader
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["own"] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    yield lambda source: module(tmp_path, "from lg.data import Bytes, TokenizerFile\n" + source)
    sys.modules.pop("own", None)


def test_a_file_survives_pickling_with_its_settings(tmp_path: Path) -> None:
    path = save(tmp_path, ["</s>", "<|endoftext|>", "<mine>"], padded_and_cut=True)
    tokenizer = TokenizerFile(path, end="<mine>")
    Path(path).unlink()
    again = pickle.loads(pickle.dumps(tokenizer))
    text = TEXT + b"<mine> <|endoftext|>"
    assert again.encode(text).tolist() == tokenizer.encode(text).tolist()
    assert again.end not in again.encode(text)
    assert (again.end, again.vocab_size) == (tokenizer.end, tokenizer.vocab_size)
    assert again.fingerprint() == tokenizer.fingerprint()


def test_a_fingerprint_is_the_same_in_every_process(tmp_path: Path) -> None:
    path = save(tmp_path, ["</s>"])
    command = (
        f"{PRELUDE}from lg.data.tokenizer import *; print(Bytes().fingerprint(), TokenizerFile({path!r}).fingerprint())"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, json.dumps(sys.path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [Bytes().fingerprint(), TokenizerFile(path).fingerprint()]


def test_a_fingerprint_tells_what_gives_other_ids(tmp_path: Path) -> None:
    path = save(tmp_path, ["</s>", "<|endoftext|>"])
    found = [Bytes().fingerprint(), TokenizerFile(path).fingerprint(), TokenizerFile(path, "</s>").fingerprint()]
    content = json.loads(Path(path).read_text())
    content["model"]["merges"].pop()
    Path(path).write_text(json.dumps(content))
    found.append(TokenizerFile(path).fingerprint())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    Path(path).write_text(json.dumps(content))
    assert TokenizerFile(path).fingerprint() == found[-1]  # what is not used does not count
    assert len(set(found)) == 4


def test_changed_code_has_another_fingerprint(own: Callable[[str], Any]) -> None:
    code = "MARK = 1\nclass Own(Bytes):\n    def __init__(self, size=1):\n        self.size = size\n"
    first = own(code)
    fingerprint = first.Own().fingerprint()
    assert fingerprint == first.Own().fingerprint() != first.Own(2).fingerprint()
    assert own(code).Own().fingerprint() == fingerprint
    assert own(code.replace("MARK = 1", "MARK = 2")).Own().fingerprint() != fingerprint
    assert own(
        code + "\n    def encode(self, text):\n        return super().encode(text[:1])\n"
    ).Own().fingerprint() != (fingerprint)


def test_a_subclass_of_lgs_own_is_another_tokenizer(own: Callable[[str], Any], tmp_path: Path) -> None:
    path = save(tmp_path, ["</s>"])
    loaded = own("class Mine(Bytes): pass\nclass MyFile(TokenizerFile): pass\n")
    assert loaded.Mine().fingerprint() != Bytes().fingerprint()
    assert loaded.MyFile(path).fingerprint() != TokenizerFile(path).fingerprint()


def test_one_that_cannot_be_pickled_is_an_error(own: Callable[[str], Any]) -> None:
    loaded = own("class Own(Bytes):\n    def __init__(self):\n        self.encoder = lambda text: text\n")
    with pytest.raises(ValueError, match=r"^data\.init_args\.tokenizer: Own cannot be pickled: "):
        loaded.Own().fingerprint()
