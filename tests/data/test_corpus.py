"""A corpus is its documents' ids end to end, and travels to other processes as what it is."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lg.data.corpus import Corpus, id_type, place
from lg.data.source import Document
from lg.data.store import Draft
from lg.data.tokenizer import Bytes, Ids, Tokenizer

DOCUMENTS = [Document("a", b"abc"), Document("empty", b""), Document("b", b"\x00\xff")]


@dataclass
class Fixed(Tokenizer):
    """Gives the same for every text."""

    ids: Any
    vocab_size: int = 300  # type: ignore[assignment]
    end: int = 0  # type: ignore[assignment]

    def encode(self, text: bytes) -> Ids:
        return self.ids  # type: ignore[no-any-return]

    def decode(self, ids: Ids | Sequence[int]) -> bytes:
        raise NotImplementedError


def test_documents_lie_end_to_end_each_with_its_end() -> None:
    corpus = Corpus.of(DOCUMENTS, Bytes())
    assert corpus.tokens.tolist() == [*b"abc", 0, 0, 0, 255, 0]
    assert corpus.starts.tolist() == [0, 4, 5, 8]
    assert corpus.lengths.tolist() == corpus.num_bytes.tolist() == [4, 1, 3]
    assert corpus.places.tolist() == [place("a"), place("empty"), place("b")]
    assert len(corpus) == 3


def test_no_documents_make_an_empty_corpus() -> None:
    corpus = Corpus.of([], Bytes())
    assert (len(corpus), corpus.tokens.dtype, corpus.starts.tolist()) == (0, np.uint8, [0])


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [(256, np.uint8), (257, np.uint16), (65536, np.uint16), (65537, np.int32), (200_000, np.int32)],
)
def test_ids_take_the_smallest_type(vocab_size: int, dtype: type) -> None:
    highest = Fixed([0, vocab_size - 1], vocab_size, vocab_size - 1)
    corpus = Corpus.of(DOCUMENTS[:1], highest)
    assert corpus.tokens.dtype == id_type(highest) == dtype
    assert corpus.tokens.tolist() == [0, vocab_size - 1, vocab_size - 1]


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        (Fixed([0, 300]), "document 'a' into ids from 0 to 300; they must be .* below its vocab_size of 300"),
        (Fixed(np.array([-1], np.int8)), "document 'a' into ids from -1 to -1"),
        (Fixed([0.5]), "document 'a' into float64 of shape .1.; it must be one row of integers"),
        (Fixed([[1]]), r"document 'a' into int64 of shape .1, 1.; it must be one row"),
        (Fixed(None), "document 'a' into object of shape "),
        (Fixed([2**70]), "document 'a' into object of shape "),
        (Fixed([], end=300), "the end of a document into ids from 300 to 300"),
    ],
)
def test_what_is_no_id_is_an_error(tokenizer: Tokenizer, said: str) -> None:
    with pytest.raises(ValueError, match=r"^data\.init_args\.tokenizer: Fixed turns " + said):
        Corpus.of(DOCUMENTS, tokenizer)


def test_a_place_hangs_on_the_name_alone() -> None:
    assert place("abc") == 0xBA7816BF8F01 / 2**48  # the best known SHA-256 of all
    places = [place(str(number)) for number in range(1000)]
    assert 0 <= min(places) < 0.01 < 0.99 < max(places) < 1
    assert place("not \udcff UTF-8") != place("not \udcfe UTF-8")


def test_in_memory_it_is_pickled_whole() -> None:
    corpus = Corpus.of(DOCUMENTS, Bytes())
    again = pickle.loads(pickle.dumps(corpus))
    for name in ("tokens", "starts", "num_bytes", "places"):
        np.testing.assert_array_equal(getattr(again, name), getattr(corpus, name))


def test_in_a_folder_it_is_pickled_as_its_path(tmp_path: Path) -> None:
    corpus = Corpus.of([*DOCUMENTS, Document("long", bytes(100_000))], Bytes())
    names = ("tokens", "starts", "num_bytes", "places")
    with Draft(tmp_path / "part", names) as draft:
        for name in names:
            draft.append(name, getattr(corpus, name))
        draft.finish(tmp_path / "final", {})
    mapped = Corpus.mapped(tmp_path / "final")
    pickled = pickle.dumps(mapped)
    assert len(pickled) < 500
    again = pickle.loads(pickled)
    assert isinstance(again.tokens, np.memmap)
    for name in names:
        np.testing.assert_array_equal(getattr(again, name), getattr(corpus, name))
        assert not getattr(again, name).flags.writeable
