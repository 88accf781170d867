"""A mixture's sources may be packed each in its own way: shares are of what is kept, and rows are one way's alone."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from lg.data import Chunks, Cut, Document, Jsonl, Loader, Mixture, Source, TextData, Upsample, Whole
from lg.data.rows import IGNORED

KEYS = r"^data\.init_args\.source\.init_args\."


@dataclass(frozen=True)
class Written(Source):
    """Documents of one letter, of given lengths, their ends included."""

    letter: str
    lengths: tuple[int, ...]

    def documents(self) -> list[Document]:
        text = self.letter.encode()
        return [Document(f"{self.letter}{n}", text * (length - 1)) for n, length in enumerate(self.lengths)]


BOOKS = Written("b", tuple(int(n) for n in np.random.default_rng(0).integers(40, 700, 200)))
CODE = Written("c", tuple(int(n) for n in np.random.default_rng(1).integers(40, 900, 200)))
SHORT = Written("s", tuple(int(n) for n in np.random.default_rng(2).integers(4, 60, 900)))
SOURCES: dict[str, Source] = {"books": BOOKS, "code": CODE, "short": SHORT}
SHARES = {"books": 30, "code": 30, "short": 40}


def data(row_length: int = 256, **options: object) -> TextData:
    made = TextData(Mixture(**options), row_length=row_length, align=1, batch_size=2)  # type: ignore[arg-type]
    made.setup()
    return made


def letters(made: TextData, epochs: int = 1) -> dict[str, int]:
    """How many tokens of each letter some epochs have."""
    assert made.train_dataloader().feed is not None
    rows = [made._feed.rows(epoch) for epoch in range(epochs)]  # type: ignore[union-attr]
    tokens = np.concatenate([each[n]["tokens"].numpy() for each in rows for n in range(len(each))])
    return {letter: int((tokens == ord(letter)).sum()) for letter in "bcs"}


def test_long_chunks_beside_packed_short_documents(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        made = data(sources=SOURCES, shares=SHARES, packings={"books": Chunks(), "code": Chunks()})
    told = [line for line in caplog.messages if "leaves out" in line]
    out = sum(length < 256 for length in BOOKS.lengths)
    lost = 1 - sum(length // 256 * 256 for length in BOOKS.lengths) / sum(BOOKS.lengths)
    assert told[0] == (
        f"data.init_args.source.init_args.sources.books: Chunks(length=None, below=None) leaves out {out} of 200 "
        f"documents, and {100 * lost:.1f}% of the tokens"
    )
    assert len(told) == 2
    rows = made.train_rows
    for n in range(len(rows)):
        row = rows[n]
        kinds = set(row["tokens"].tolist()) - {0}
        assert kinds in ({ord("b")}, {ord("c")}, {ord("s")})
        if kinds != {ord("s")}:
            assert (row["document_starts"], row["num_padding"]) == ([0], 0)
            # It predicts the token behind it, too, if its document goes on.
            assert (row["targets"][:-1] != IGNORED).all()
    found = letters(made, epochs=8)
    total = sum(found.values())
    assert [found[letter] / total for letter in "bcs"] == pytest.approx([0.3, 0.3, 0.4], abs=0.02)
    # Held-out rows are made in the same way.
    held = [made.val_rows[n] for n in range(len(made.val_rows))]
    assert {tuple(row["document_starts"]) for row in held if ord("b") in row["tokens"]} == {(0,)}


def test_several_chunks_share_a_row_and_documents_are_told_apart() -> None:
    parts: dict[str, Source] = {"long": CODE, "middle": CODE, "books": BOOKS, "short": SHORT}
    packings = {"long": Chunks(512), "middle": Chunks(128, below=512), "books": Chunks(128, below=512)}
    made = data(512, sources=parts, shares={"long": 3, "middle": 3, "books": 3, "short": 3}, packings=packings)
    kinds = []
    for n in range(len(made.train_rows)):
        row = made.train_rows[n]
        tokens, starts = row["tokens"].numpy(), row["document_starts"]
        if ord("s") in tokens:
            continue
        kinds.append(len(starts))
        if row["num_padding"] == 0:
            assert starts in ([0], [0, 128, 256, 384])
    assert {1, 4} <= set(kinds)
    # Equal packings share rows: both letters, in chunks of their own.
    assert any({ord("b"), ord("c")} <= set(made.train_rows[n]["tokens"].tolist()) for n in range(len(made.train_rows)))
    rates = made._feed.selection  # type: ignore[union-attr]
    longest = [max(rates.corpora[part].lengths[rates.documents[part]]) for part in (0, 1, 2)]
    assert longest[0] >= 512 > max(longest[1:])


def test_a_mixture_of_packings_goes_on_where_it_was() -> None:
    options = {"sources": SOURCES, "shares": SHARES, "packings": {"books": Chunks(), "code": Chunks(128)}}

    def taken(loader: Loader, number: int) -> list[list[list[int]]]:
        batches: list[list[list[int]]] = []
        while len(batches) < number:
            for batch in loader:
                loader.consume()
                batches.append(batch["tokens"].tolist())
                if len(batches) == number:
                    break
        return batches

    whole = data(**options).train_dataloader()  # type: ignore[arg-type]
    number = len(whole) + 5
    want = taken(whole, number)
    first = data(**options).train_dataloader()  # type: ignore[arg-type]
    before = taken(first, 7)
    again = data(**options).train_dataloader()  # type: ignore[arg-type]
    again.go_to(first.place())
    assert before + taken(again, number - 7) == want
    # Without packings of their own an epoch is what it was before there were any.
    plain = data(sources=SOURCES, shares=SHARES)
    own = data(sources=SOURCES, shares=SHARES, packings=dict.fromkeys(SOURCES, Cut()))
    assert [plain.train_rows[n]["tokens"].tolist() for n in range(9)] == [
        own.train_rows[n]["tokens"].tolist() for n in range(9)
    ]


def test_packings_inside_packings(tmp_path: Path) -> None:
    inner = Mixture({"x": BOOKS, "y": CODE}, packings={"x": Chunks(64)})
    mixture = Mixture({"in": inner, "s": SHORT}, packings={"in": Whole()})
    found = [(part.name, part.packing, part.packing_key.removeprefix("data.init_args.")) for part in mixture.parts()]
    assert found == [
        ("in.x", Chunks(64), "source.init_args.sources.in.init_args.packings.x"),
        ("in.y", Whole(), "source.init_args.packings.in"),
        ("s", None, "source.init_args.packings.s"),
    ]
    (tmp_path / "a.jsonl").write_text('{"text": "x"}')
    stream = Jsonl(str(tmp_path / "a.jsonl"), streaming=True)
    with pytest.raises(ValueError, match=KEYS + r"sources\.in\.init_args\.packings\.x: a packing of its own is not"):
        Mixture({"in": Mixture({"x": BOOKS}, packings={"x": Chunks(64)}), "s": stream}, {"in": 1, "s": 1})
    with pytest.raises(ValueError, match=r"^data\.init_args\.packing: Chunks.* is not allowed for a stream"):
        TextData(stream, row_length=8, packing=Chunks()).setup()


@pytest.mark.parametrize(
    ("packings", "said"),
    [
        ({"books": Chunks(1024)}, r"books\.init_args\.length: 1024 is not allowed; it must divide data"),
        ({"short": Chunks(128)}, r"short: Chunks\(length=128, below=None\) is not allowed; it leaves out every "
         r"document of data\.init_args\.source\.init_args\.sources\.short, of which there are 900, "
         r"the longest of 59 tokens"),
        ({"verse": Cut()}, r"verse: not a source of the mixture; they are books, code, short"),
    ],
)  # fmt: skip
def test_packings_that_do_not_serve(packings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=KEYS + r"packings\." + said):
        data(sources=SOURCES, shares=SHARES, packings=packings)


def test_upsampling_raises_long_documents_inside_each_source_and_leaves_its_share() -> None:
    """Fu et al., 2024 (https://arxiv.org/abs/2402.10171), section 3: per-source length upsampling."""

    def of_epochs(upsample: Upsample | None) -> Sequence[float]:
        made = TextData(Mixture({"b": BOOKS, "s": SHORT}), row_length=256, align=1, upsample=upsample)
        made.setup()
        lengths = np.array([
            [len(text), text[0] == ord("b")] for epoch in range(8) for text in made._feed.rows(epoch).texts()  # type: ignore[union-attr]
        ])  # fmt: skip
        tokens, books = lengths.T
        long = tokens > 50
        shares = [tokens[books == 1].sum() / tokens.sum()]
        return shares + [tokens[long & (books == kind)].sum() / tokens[books == kind].sum() for kind in (0, 1)]

    natural, raised = of_epochs(None), of_epochs(Upsample(above=50, share=0.8))
    assert raised[0] == pytest.approx(natural[0], abs=0.01)
    assert natural[1] < 0.5
    assert raised[1:] == pytest.approx([0.8, 0.8], abs=0.02)
