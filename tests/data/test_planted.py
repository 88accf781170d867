"""Codes that are told in the middle of texts, and asked for at their ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from lg.data import Document, Mixture, Planted, Source


@dataclass(frozen=True)
class Lines(Source):
    """Texts of numbered lines."""

    count: int = 3

    def documents(self) -> Iterator[Document]:
        for number in range(self.count):
            yield Document(f"{number}", "".join(f"line {i} of {number}\n" for i in range(1000)).encode())


def test_every_code_is_told_once_and_asked_for_once() -> None:
    pieces = list(Planted(Lines(), size=3000, codes=5, digits=4).documents())
    assert len(pieces) == sum(len(document.text) // 3000 for document in Lines().documents())
    assert len({piece.name for piece in pieces}) == len(pieces)
    for piece in pieces:
        text = piece.text.decode()
        told = re.findall(r"^Remember that the (\w+) answers to (\d{4})\.$", text, re.MULTILINE)
        asked = re.findall(r"^What does the (\w+) answer to\? It answers to (\d{4})\.$", text, re.MULTILINE)
        assert len(told) == len(set(told)) == 5 and sorted(told) == sorted(asked)
        assert text.index("What does") > text.rindex("Remember that")


def test_the_text_stays_as_it_is() -> None:
    whole = {document.name: document.text for document in Lines().documents()}
    for piece in Planted(Lines(), size=3000).documents():
        name, number = piece.name.split("#")
        body = piece.text.partition(b"\nWhat does")[0]
        rest = re.sub(rb"Remember that the \w+ answers to \d+\.\n", b"", body)
        assert rest == whole[name][3000 * int(number) : 3000 * (int(number) + 1)]


def test_draws_depend_on_seed_and_name() -> None:
    planted = Planted(Lines(), size=3000)
    assert list(planted.documents()) == list(Planted(Lines(), size=3000).documents())
    assert planted.fingerprint() != Planted(Lines(), size=3000, seed=1).fingerprint()
    # Other documents change nothing.
    assert next(planted.documents()) == next(Planted(Lines(count=1), size=3000).documents())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"size": 0}, "size: 0 is not allowed; it must be from 1"),
        ({"codes": 99}, "codes: 99 is not allowed; it must be from 1 to 36"),
        ({"digits": 0}, "digits: 0"),
    ],
)
def test_bad_numbers(arguments: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Planted(Lines(), **arguments)


def test_a_mixture_is_refused() -> None:
    with pytest.raises(ValueError, match="source: Mixture is not allowed; a single source"):
        Planted(Mixture({"a": Lines(), "b": Lines()}))
