"""A source is what yields documents: it can be read from any of them on, told apart, and placed in the YAML."""

import pickle
from collections.abc import Iterator

import pytest

from lg.data.source import Document, Part, Source

THREE = [Document("a", b"one"), Document("b", b""), Document("c", b"three")]


class Plain(Source):
    """As a user may write it: without a start."""

    def __init__(self, documents: list[Document]) -> None:
        self.own = documents

    def documents(self):
        return iter(self.own)


class Skipping(Plain):
    def documents(self, start: int = 0) -> Iterator[Document]:
        assert start < 3, "asked for itself"
        return iter(self.own[start:])


@pytest.mark.parametrize("kind", [Plain, Skipping])
def test_a_source_is_read_from_any_document_on(kind: type[Plain]) -> None:
    source = kind(THREE)
    assert list(source.read()) == THREE
    assert list(source.read(2)) == THREE[2:]
    assert list(source.numbered(1)) == [(1, THREE[1]), (2, THREE[2])]
    assert not source.streamed


def test_a_source_without_documents_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Source()


def test_the_fingerprint_is_of_names_and_texts() -> None:
    own = Plain(THREE).fingerprint()
    assert len(own) == 32
    assert own == Skipping(THREE).fingerprint()  # of the content alone, not of the class
    others = [
        THREE[:2],
        [THREE[1], THREE[0], THREE[2]],
        [Document("a", b"one!"), *THREE[1:]],
        [Document("A", b"one"), *THREE[1:]],
        # the same bytes end to end
        [Document("ao", b"ne"), *THREE[1:]],
        [Document("a", b"oneb"), Document("", b""), THREE[2]],
    ]
    assert len({own, *(Plain(documents).fingerprint() for documents in others)}) == len(others) + 1


def test_a_source_is_its_own_only_part() -> None:
    source = Plain(THREE)
    (part,) = source.parts()
    assert (part.name, part.share) == ("", None)
    assert part.source is source
    assert list(part.numbered(2)) == [(2, THREE[2])]
    assert pickle.loads(pickle.dumps(part)).source.own == THREE


class Broken(Source):
    def documents(self):
        yield THREE[0]
        raise ValueError("data.init_args.source.init_args.path: 'x' ends (data.init_args.source.init_args.column)")


def test_an_error_names_the_place_of_its_part() -> None:
    key = "data.init_args.source.init_args.sources.code"
    documents = Part("code", Broken(), 0.5, key).numbered()
    assert next(documents) == (0, THREE[0])
    with pytest.raises(ValueError) as caught:
        next(documents)
    assert str(caught.value) == f"{key}.init_args.path: 'x' ends ({key}.init_args.column)"
    with pytest.raises(ValueError, match=r"^data\.init_args\.source\.init_args\.path: 'x' ends"):
        list(Broken().parts()[0].numbered())
    with pytest.raises(ValueError, match=r"^another's$"), Part("code", Broken(), 0.5, key).placed():
        raise ValueError("another's")
