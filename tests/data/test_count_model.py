"""The count model is the published formula, and scores what a network is scored on."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from lg.data import IGNORED, Bytes, CountModel, Document, PackedRows, Stdlib, Tokenizer, pack

DISCOUNT = 0.75


class KneserNey:
    """The same model, spelled out over dictionaries."""

    def __init__(self, texts: Sequence[bytes], order: int) -> None:
        n = order + 1
        self.tables = [Counter(text[i : i + n] for text in texts for i in range(len(text) - order))]
        for _ in range(order):
            self.tables.insert(0, Counter(gram[1:] for gram in self.tables[0]))

    def probability(self, context: bytes, byte: int) -> float:
        shorter = self.probability(context[1:], byte) if context else 1 / 256
        counts = {g[-1]: c for g, c in self.tables[len(context)].items() if g[:-1] == context}
        if not counts:
            return shorter
        kept = max(counts.get(byte, 0) - DISCOUNT, 0)
        return (kept + DISCOUNT * len(counts) * shorter) / sum(counts.values())


def documents(seed: int, lengths: Sequence[int]) -> list[Document]:
    """Text of few distinct bytes, so that contexts recur."""
    generator = np.random.default_rng(seed)
    letters = np.frombuffer(b"aab c", np.uint8)
    return [Document(str(i), generator.choice(letters, n).tobytes()) for i, n in enumerate(lengths)]


def brute_force(model: KneserNey, order: int, rows: PackedRows) -> float:
    bits = []
    for row in map(rows.__getitem__, range(len(rows))):
        tokens, targets = row["tokens"].tolist(), row["targets"].tolist()
        for i, target in enumerate(targets):
            if target != IGNORED:
                start = max(s for s in row["document_starts"] if s <= i)
                context = bytes(tokens[max(start, i + 1 - order) : i + 1])
                bits.append(-math.log2(model.probability(context, target)))
    return sum(bits) / len(bits)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_score_equals_the_formula_spelled_out(order: int) -> None:
    train, held_out = documents(0, [200, 3, 1, 0, 90]), documents(1, [40, 2, 0, 30])
    held_out.append(Document("new", b"a never seen"))
    rows = pack(held_out, Bytes(), row_length=9)
    reference = KneserNey([document.text + b"\0" for document in train], order)
    score = CountModel(order).fit(pack(train, Bytes(), row_length=16)).bits_per_byte(rows)
    assert score == pytest.approx(brute_force(reference, order, rows), rel=1e-12)


def test_probabilities_sum_to_one() -> None:
    reference = KneserNey([document.text for document in documents(0, [100])], order=2)
    for context in (b"", b"a", b"ab", b"xb", b"xx"):
        assert sum(reference.probability(context, byte) for byte in range(256)) == pytest.approx(1)


def test_without_a_document_mask_strings_cross_documents() -> None:
    texts = [Document("0", b"ab"), Document("1", b"ab")]
    rows = pack(texts, Bytes(), row_length=3, document_mask=False)
    reference = KneserNey([b"ab\0ab\0"], order=2)
    score = CountModel().fit(rows).bits_per_byte(rows)
    assert score == pytest.approx(brute_force(reference, 2, rows), rel=1e-12)


def test_counting_in_slices_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pack(documents(0, [100, 7, 55]), Bytes(), row_length=16)
    whole = CountModel().fit(rows).bits_per_byte(rows)
    monkeypatch.setattr("lg.data.count_model._SLICE", 13)
    assert CountModel(1).fit(rows).bits_per_byte(rows) > whole
    assert CountModel().fit(rows).bits_per_byte(rows) == whole


def test_only_the_first_rows() -> None:
    rows = pack(documents(0, [100, 7, 55]), Bytes(), row_length=16)
    model = CountModel().fit(rows)
    weights = [int((rows[i]["targets"] != IGNORED).sum()) for i in range(2)]
    one, two = (model.bits_per_byte(rows, num_rows=n) for n in (1, 2))
    assert two * sum(weights) - one * weights[0] == pytest.approx(model._costs(rows[1]).sum())
    assert model.bits_per_byte(rows, num_rows=99) == model.bits_per_byte(rows)


def test_real_code_costs_what_an_order_2_model_should() -> None:
    names = ["argparse", "asyncio", "email", "http", "inspect", "json", "logging", "typing"]
    texts = [document for document in Stdlib().documents() if document.name in names]
    held_out = [document for document in texts if document.name == "json"]
    train = [document for document in texts if document.name != "json"]
    train_rows, rows = pack(train, Bytes(), 4096), pack(held_out, Bytes(), 4096)
    scores = [CountModel(order).fit(train_rows).bits_per_byte(rows) for order in (0, 1, 2)]
    assert 4.0 < scores[0] < 5.0
    assert scores[1] < scores[0] - 0.7
    assert scores[2] < scores[1] - 0.6


def test_rows_that_are_not_bytes_and_other_orders_are_errors() -> None:
    class Pairs(Bytes):
        def encode(self, text: bytes) -> np.ndarray:
            return np.frombuffer(text, np.uint8)[::2]

    class Wide(Bytes):
        vocab_size = 300

    tokenizers: list[Tokenizer] = [Pairs(), Wide()]
    for tokenizer in tokenizers:
        with pytest.raises(ValueError, match=r"data\.init_args\.tokenizer: .* must be Bytes"):
            CountModel().fit(pack(documents(0, [40]), tokenizer, row_length=4))
    with pytest.raises(ValueError, match="order: 3 is not allowed"):
        CountModel(order=3)
