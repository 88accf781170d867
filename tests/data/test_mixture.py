"""Mixtures keep their shares: over an epoch, over the epochs, and along a stream."""

import json
import logging
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lg.data import Document, Jsonl, Mixture, Source, Stdlib, Upsample
from lg.data.mixture import Cursor, Interleaved, appearances, rates
from lg.data.source import Part

KEYS = r"^data\.init_args\.source\.init_args\."


class Texts(Source):
    def __init__(self, *texts: str, streamed: bool = False) -> None:
        self.texts = texts
        self._streamed = streamed

    @property
    def streamed(self) -> bool:
        return self._streamed

    def documents(self, start: int = 0) -> Iterator[Document]:
        return (Document(str(number), self.texts[number].encode()) for number in range(start, len(self.texts)))


def parts(*shares: float | None) -> list[Part]:
    return [Part(f"p{number}", Texts("x"), share) for number, share in enumerate(shares)]


def test_parts_have_the_shares_as_given() -> None:
    a, b = Texts("one", "two"), Texts("three")
    assert [(part.name, part.source, part.share) for part in Mixture({"a": a, "b": b}).parts()] == [
        ("a", a, None),
        ("b", b, None),
    ]
    mixture = Mixture({"a": a, "b": b}, {"b": 1, "a": 3})
    assert [part.share for part in mixture.parts()] == [0.75, 0.25]
    assert mixture.parts()[1].key == "data.init_args.source.init_args.sources.b"
    assert pickle.loads(pickle.dumps(Mixture({"a": Stdlib()}))) == Mixture({"a": Stdlib()})


def test_a_mixture_in_a_mixture_is_taken_apart() -> None:
    inner = Mixture({"x": Texts("x"), "y": Texts("y")}, {"x": 1, "y": 3})
    mixture = Mixture({"a": Texts("a"), "in": inner, "one": Mixture({"z": Texts("z")})}, {"a": 1, "in": 2, "one": 1})
    assert [(part.name, part.share) for part in mixture.parts()] == [
        ("a", 0.25),
        ("in.x", 0.125),
        ("in.y", 0.375),
        ("one.z", 0.25),
    ]
    assert mixture.parts()[2].key == "data.init_args.source.init_args.sources.in.init_args.sources.y"
    with pytest.raises(ValueError, match=KEYS + r"sources\.in\.init_args\.shares: numbers cannot stand where .* null;"):
        Mixture({"a": Texts("a"), "in": inner})
    with pytest.raises(ValueError, match=KEYS + r"sources\.in\.init_args\.shares: null cannot stand where .* numbers;"):
        Mixture({"a": Texts("a"), "in": Mixture(inner.sources)}, {"a": 1, "in": 1})
    with pytest.raises(ValueError, match=KEYS + r"sources: 'in\.x' is the name of two sources"):
        Mixture({"in.x": Texts("a"), "in": inner}, {"in.x": 1, "in": 1})


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"a": 1.0}, r"shares: 'b' is missing; each of a, b needs a number above 0"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, r"shares\.c: not a source of the mixture; they are a, b"),
        ({"a": 1.0, "b": 0.0}, r"shares\.b: 0\.0 is not allowed"),
        ({"a": -1.0, "b": 1.0}, r"shares\.a: -1\.0 is not allowed"),
        ({"a": float("nan"), "b": 1.0}, r"shares\.a: nan is not allowed"),
        ({"a": 1.0, "b": float("inf")}, r"shares\.b: inf is not allowed"),
        ({}, r"shares: 'a' is missing"),
    ],
)
def test_shares_that_are_none(shares: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=KEYS + said):
        Mixture({"a": Texts("a"), "b": Texts("b")}, shares)


def test_a_stream_needs_shares_and_makes_all_streams() -> None:
    sources: dict[str, Source] = {"a": Texts("a"), "b": Texts("b", streamed=True)}
    assert Mixture(sources, {"a": 1, "b": 1}).streamed
    assert not Mixture({"a": Texts("a")}).streamed
    assert Mixture({"b": sources["b"]}).streamed
    with pytest.raises(ValueError, match=KEYS + r"shares: null is not allowed where a source is streamed"):
        Mixture(sources)
    with pytest.raises(ValueError, match=KEYS + r"sources: \{\} is not allowed"):
        Mixture({})


def test_documents_and_fingerprint_are_those_of_the_sources() -> None:
    mixture = Mixture({"a": Texts("one", "two"), "b": Texts("three")})
    named = [Document("a/0", b"one"), Document("a/1", b"two"), Document("b/0", b"three")]
    assert list(mixture.documents()) == named
    assert list(mixture.read(1)) == named[1:]
    assert list(mixture.read(9)) == []
    other = Mixture({"a": Texts("one"), "b": Texts("two", "three")})
    renamed = Mixture({"a": mixture.sources["a"], "c": mixture.sources["b"]})
    assert len({each.fingerprint() for each in (mixture, other, renamed)}) == 3
    assert mixture.fingerprint() == Mixture(dict(mixture.sources), {"a": 1, "b": 1}).fingerprint()


def test_an_error_names_the_source_of_the_mixture(tmp_path) -> None:
    mixture = Mixture({"a": Texts("one"), "b": Jsonl(str(tmp_path / "gone"))}, {"a": 1, "b": 1})
    for read in (mixture.fingerprint, lambda: list(mixture.documents()), lambda: list(Interleaved(mixture.parts()))):
        with pytest.raises(ValueError, match=KEYS + r"sources\.b\.init_args\.path: .*gone' is not a file"):
            read()


LENGTHS = st.lists(st.lists(st.integers(1, 10_000), min_size=1, max_size=20), min_size=1, max_size=4)


@given(LENGTHS, st.data())
def test_rates_give_each_part_its_share(drawn: list[list[int]], data: st.DataObject) -> None:
    lengths = [np.array(each) for each in drawn]
    shares = data.draw(st.lists(st.floats(0.01, 10), min_size=len(drawn), max_size=len(drawn)))
    given_rates = rates(lengths, parts(*shares))
    tokens = [float(rate @ each) for rate, each in zip(given_rates, lengths, strict=True)]
    total = sum(int(each.sum()) for each in lengths)
    assert np.allclose(tokens, [share / sum(shares) * total for share in shares], rtol=1e-9)
    natural = rates(lengths, parts(*[None] * len(drawn)))
    assert all((rate == 1.0).all() and rate.dtype == np.float64 for rate in natural)


@given(LENGTHS, st.integers(1, 10_000), st.floats(0.01, 0.99))
def test_upsampling_gives_long_documents_their_share_of_each_part(
    drawn: list[list[int]], above: int, share: float
) -> None:
    lengths = [np.array(each) for each in drawn]
    shares = [float(number + 1) for number in range(len(drawn))]
    for given_parts in (parts(*shares), parts(*[None] * len(drawn))):
        plain = rates(lengths, given_parts)
        upsampled = rates(lengths, given_parts, Upsample(above, share))
        for each, before, after in zip(lengths, plain, upsampled, strict=True):
            assert after @ each == pytest.approx(before @ each)
            is_long = each > above
            if is_long.any() and not is_long.all():
                assert after[is_long] @ each[is_long] == pytest.approx(share * (after @ each))
                assert len(set(after[is_long])) == len(set(after[~is_long])) == 1
            else:
                assert (after == before).all()


def test_upsampling_without_long_or_short_documents_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        given_rates = rates([np.array([5, 6]), np.array([50, 60])], parts(None, None), Upsample(10, 0.5))
    assert all((rate == 1.0).all() for rate in given_rates)
    assert [record.getMessage().split(" are longer")[0] for record in caplog.records] == [
        "data.init_args.source: no documents",
        "data.init_args.source: all documents",
    ]


def test_upsample_and_rates_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"^data\.init_args\.upsample\.above: 0 is not allowed"):
        Upsample(0, 0.5)
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"^data\.init_args\.upsample\.share: .* is not allowed"):
            Upsample(1, share)
    none = np.zeros(0, np.int64)
    with pytest.raises(ValueError, match=r"^data\.init_args\.source: no document of it is left to train on"):
        rates([none, np.array([3])], parts(1.0, 1.0))
    assert [len(rate) for rate in rates([none, np.array([3])], parts(None, None), Upsample(1, 0.5))] == [0, 1]


@given(st.lists(st.floats(0, 20), min_size=1, max_size=30), st.integers(0, 2**63), st.integers(1, 40))
def test_over_the_epochs_a_document_appears_as_often_as_its_rate_says(
    drawn: list[float], seed: int, num_epochs: int
) -> None:
    rate = np.array(drawn)
    counts = np.stack([appearances([rate, rate], seed, epoch) for epoch in range(num_epochs)])
    assert counts.dtype == np.int64
    assert counts.shape == (num_epochs, 2 * len(rate))
    both = np.tile(rate, 2)
    assert (np.abs(counts - both) < 1 + 1e-9).all()  # in each epoch
    assert (np.abs(np.cumsum(counts, 0) - both * np.arange(1, num_epochs + 1)[:, None]) < 1 + 1e-9).all()


def test_appearances_are_a_function_of_seed_epoch_part_and_document() -> None:
    rate = np.full(1000, 0.5)
    first = appearances([rate, rate], 3, 7)
    assert (first == appearances([rate, rate], 3, 7)).all()
    assert (first[:500] == appearances([rate[:500]], 3, 7)).all()  # whatever else there is
    others = [appearances([rate, rate], 4, 7), appearances([rate, rate], 3, 8), np.roll(first, 1000)]
    assert all((first != other).any() for other in others)
    # Half of them in each epoch, not all in one.
    assert all(900 < appearances([rate, rate], seed, 0).sum() < 1100 for seed in range(20))
    assert len(appearances([], 0, 0)) == 0


def test_rate_one_is_once_in_each_epoch_for_ever() -> None:
    rate = np.ones(200_000)
    for epoch in (0, 1, 2, 1023, 1024, 999_999):
        assert (appearances([rate], 0, epoch) == 1).all()


def lengthy(lengths: list[int], name: str) -> Texts:
    return Texts(*(name * length for length in lengths))


def shares_of(documents: list[Document], names: str) -> list[float]:
    total = sum(len(document.text) + 1 for document in documents)
    return [sum(len(d.text) + 1 for d in documents if d.text.decode()[0] == name) / total for name in names]


def test_a_stream_is_always_near_its_shares() -> None:
    generator = np.random.default_rng(0)
    longest = 500
    mixture = Mixture(
        {name: lengthy(generator.integers(1, longest, 50).tolist(), name) for name in "abc"}, {"a": 5, "b": 3, "c": 2}
    )
    reader = Interleaved(mixture.parts())
    documents = [next(reader) for _ in range(2000)]  # read through many times
    for count in (10, 100, 1000, 2000):
        size = sum(len(document.text) + 1 for document in documents[:count])
        near = np.abs(np.array(shares_of(documents[:count], "abc")) - [0.5, 0.3, 0.2]) * size
        assert near.max() <= 2 * (longest + 1)
    assert min(place["passes"] for place in reader.cursor().values()) > 5


@pytest.mark.parametrize("stop", [0, 1, 5, 17, 60])
def test_a_stream_goes_on_from_its_cursor(stop: int) -> None:
    mixture = Mixture({"a": lengthy([3, 1, 4], "a"), "b": lengthy([1, 5, 9, 2], "b")}, {"a": 2, "b": 1})
    straight = Interleaved(mixture.parts())
    expected = [next(straight) for _ in range(100)]
    reader = Interleaved(mixture.parts())
    assert [next(reader) for _ in range(stop)] == expected[:stop]
    saved: Cursor = json.loads(json.dumps(reader.cursor()))
    next(reader)  # what is read on changes nothing in what is saved
    resumed = Interleaved(mixture.parts(), saved)
    assert [next(resumed) for _ in range(100 - stop)] == expected[stop:]
    assert resumed.cursor() == straight.cursor()


def test_a_stream_of_one_source_is_that_source_again_and_again() -> None:
    source = Texts("one", "", "three")
    reader = Interleaved(source.parts())
    assert [next(reader).name for _ in range(7)] == ["0", "1", "2", "0", "1", "2", "0"]
    assert reader.cursor() == {"": {"number": 1, "bytes": 26, "passes": 2}}


def test_a_stream_of_rows_has_gaps(tmp_path) -> None:
    (tmp_path / "a").write_text('{"text": "x"}\n\n\n{"text": "y"}\n\n')
    (part,) = Jsonl(str(tmp_path / "a"), streaming=True).parts()
    reader = Interleaved([part])
    assert [next(reader).name for _ in range(3)] == ["0", "3", "0"]
    for number, name in ((1, "3"), (4, "0"), (5, "0")):
        cursor = {"": {"number": number, "bytes": 0, "passes": 0}}
        assert next(Interleaved([part], cursor)).name == name


def test_a_stream_without_documents_ends_in_an_error() -> None:
    mixture = Mixture({"a": Texts("x"), "none": Texts()}, {"a": 1, "none": 1})
    with pytest.raises(ValueError, match=KEYS + r"sources\.none: it has no document; at least one is needed"):
        list(Interleaved(mixture.parts()))
