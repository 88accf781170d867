"""A yard-stick: what plain counting of the last bytes gives, for the network's loss to beat."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from lg.data.packed import PackedRows
from lg.data.rows import IGNORED, Row

_DISCOUNT = 0.75  # the usual one; on the standard library 0.5 to 0.9 are within 0.001 bits
_SLICE = 1 << 22  # tokens counted at once, or one document: bounds the memory, whatever the length of the text


class CountModel:
    """Predicts a byte from the ``order`` bytes before it, in the same document, by their counts.

    Interpolated Kneser-Ney: each count gives up a discount, which is shared out as the next
    shorter context predicts, where a byte counts by the number of contexts it was seen in; the
    shortest falls back on 1/256 (Chen and Goodman, 1999, "An empirical study of smoothing
    techniques for language modeling", https://doi.org/10.1006/csla.1999.0128, section 2.7).
    It has no parameter fitted to the text it is judged on.

    Args:
        order: bytes of context, 0 to 2; at 2 the table takes 64 MiB.

    Raises:
        ValueError: another ``order``.
    """

    def __init__(self, order: int = 2) -> None:
        if order not in (0, 1, 2):
            raise ValueError(f"order: {order} is not allowed; it must be 0, 1 or 2")
        self.order = order
        self._counts: list[npt.NDArray[np.uint32]] = []
        self._totals: list[npt.NDArray[np.float64]] = []
        self._distinct: list[npt.NDArray[np.float64]] = []

    def fit(self, rows: PackedRows) -> "CountModel":
        """Count the whole stream behind some rows of bytes, and return this model.

        Raises:
            ValueError: the rows are not of bytes.
        """
        _check_bytes(rows)
        counts = _count(rows, self.order)
        # From the longest context to none: a shorter one counts the contexts that it was seen in.
        tables = [counts]
        for _ in range(self.order):
            tables.append((tables[-1] > 0).sum(axis=0, dtype=np.uint32))
        self._counts = tables[::-1]
        self._totals = [table.sum(axis=-1, dtype=np.float64) for table in self._counts]
        self._distinct = [(table > 0).sum(axis=-1, dtype=np.float64) for table in self._counts]
        return self

    def bits_per_byte(self, rows: PackedRows, num_rows: int | None = None) -> float:
        """Mean cost in bits of the targets that are not ignored, as a network is scored on them.

        Args:
            rows: of bytes. The context ends where a row or a document begins, as a network's does.
            num_rows: score only the first so many rows; all of them by default.

        Raises:
            ValueError: the rows are not of bytes.
        """
        assert self._counts, "fit first"
        _check_bytes(rows)
        costs = [self._costs(rows[index]) for index in range(len(rows))[:num_rows]]
        return float(np.concatenate(costs).mean())

    def _costs(self, row: Row) -> npt.NDArray[np.float64]:
        """Bits of each target of a row that is not ignored."""
        tokens, targets = row["tokens"].numpy(), row["targets"].numpy()
        starts = np.asarray(row["document_starts"])
        scored = np.flatnonzero(targets != IGNORED)
        # Bytes of context: the token at a target's own position is the first of them.
        known = scored + 1 - starts[np.searchsorted(starts, scored, side="right") - 1]
        target = targets[scored]
        probability = np.full(len(scored), 1 / 256)
        for length in range(self.order + 1):
            # Reaches before the row where less is known; such a value is not used.
            context = tuple(tokens[scored - back] for back in reversed(range(length)))
            longer = self._interpolated(length, context, target, probability)
            probability = np.where(known >= length, longer, probability)
        bits: npt.NDArray[np.float64] = -np.log2(probability)
        return bits

    def _interpolated(
        self,
        length: int,
        context: tuple[npt.NDArray[np.int64], ...],
        target: npt.NDArray[np.int64],
        shorter: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.float64]:
        """The probability of each target after ``length`` bytes, given that after one fewer."""
        total = self._totals[length][context]
        kept = np.maximum(self._counts[length][(*context, target)] - _DISCOUNT, 0)
        shared = _DISCOUNT * self._distinct[length][context] * shorter
        return np.where(total > 0, (kept + shared) / np.maximum(total, 1), shorter)


def _count(rows: PackedRows, order: int) -> npt.NDArray[np.uint32]:
    """How often each string of ``order + 1`` bytes occurs inside a document."""
    num_strings = 256 ** (order + 1)
    counts = np.zeros(num_strings, dtype=np.uint32)
    for stream, starts in _slices(rows):
        crosses = np.zeros(len(stream), dtype=bool)  # at a string's last byte: it began elsewhere
        for back in range(order):
            behind = starts + back
            crosses[behind[behind < len(stream)]] = True
        last = np.flatnonzero(~crosses)
        codes = np.zeros(len(last), dtype=np.int64)
        for back in reversed(range(order + 1)):
            codes = codes << 8 | stream[last - back]
        counts += np.bincount(codes, minlength=num_strings).astype(np.uint32)
    return counts.reshape((256,) * (order + 1))


def _slices(rows: PackedRows) -> Iterator[tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.int64]]]:
    """Documents end to end, some at a time, and where strings may not cross."""
    texts: list[npt.NDArray[np.integer[Any]]] = []
    for text in rows.texts():
        texts.append(text)
        if sum(map(len, texts)) >= _SLICE:
            yield _together(texts, rows)
            texts = []
    if texts:
        yield _together(texts, rows)


def _together(
    texts: list[npt.NDArray[np.integer[Any]]], rows: PackedRows
) -> tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.int64]]:
    starts = np.cumsum([0, *map(len, texts[:-1])], dtype=np.int64)
    return np.concatenate(texts), starts if rows.shape.document_mask else starts[:1]


def _check_bytes(rows: PackedRows) -> None:
    types = {corpus.tokens.dtype for corpus in rows.reader.corpora}
    if rows.bytes_per_token != 1 or types != {np.dtype(np.uint8)}:
        raise ValueError(
            "data.init_args.tokenizer: CountModel counts bytes, and these rows have "
            f"{rows.bytes_per_token:.2f} bytes a token as {', '.join(map(str, types))}; "
            "the tokenizer must be Bytes"
        )
