"""Packings lose no token that they keep, overlap nowhere, keep to the grid, and best fit is best fit decreasing."""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lg.data.packing import BestFit, Chunks, Cut, Packed, Packing, Whole, packed_apart

PACKINGS = [Cut(), BestFit()]
COLUMNS = ("row", "place", "item", "begin", "length")


def packed(packing: Packing, lengths: Sequence[int], row_length: int, align: int = 1) -> Packed:
    return packing.pack(np.array(lengths, np.int64), row_length, align)


def pieces(laid: Packed) -> list[tuple[int, ...]]:
    return list(zip(*(getattr(laid, name).tolist() for name in COLUMNS), strict=True))


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """Lengths, a row length and an align: items about as long as a row, far shorter, exact multiples, equal ones."""
    align = draw(st.sampled_from([1, 1, 2, 3, 8, 64]))
    row_length = align * draw(st.integers(1, 40))
    length = st.one_of(
        st.integers(1, 3 * row_length),
        st.integers(1, max(1, row_length // 4)),
        st.sampled_from([1, align, row_length, 2 * row_length, row_length + 1]),
    )
    lengths = draw(st.lists(length, max_size=60))
    return lengths * draw(st.integers(1, 3)), row_length, align


def table(laid: Packed) -> list[list[tuple[int, int] | None]]:
    """Every row, token by token: (item, token of the item), or None where there is padding."""
    rows: list[list[tuple[int, int] | None]] = [[None] * laid.row_length for _ in range(laid.num_rows)]
    for row, place, item, begin, length in pieces(laid):
        for token in range(length):
            assert rows[row][place + token] is None, "two pieces overlap"
            rows[row][place + token] = (item, begin + token)
    return rows


def fits_decreasing(lengths: Sequence[int], row_length: int, align: int, best: bool) -> int:
    """Rows by best-fit (or first-fit) decreasing, one item after the other as the definition has it."""
    num_whole = sum(length // row_length for length in lengths)
    rests = [-(-(length % row_length) // align) * align for length in lengths]
    left: list[int] = []
    for rest in sorted((r for r in rests if r), reverse=True):
        fitting = [row for row, room in enumerate(left) if room >= rest]
        if fitting:
            left[min(fitting, key=left.__getitem__) if best else fitting[0]] -= rest
        else:
            left.append(row_length - rest)
    return num_whole + len(left)


@pytest.mark.parametrize("packing", PACKINGS)
@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_every_token_is_in_one_piece_and_pieces_keep_to_the_grid(
    packing: Packing, case: tuple[list[int], int, int]
) -> None:
    lengths, row_length, align = case
    laid = packed(packing, lengths, row_length, align)
    tokens = [token for row in table(laid) for token in row if token is not None]
    assert sorted(tokens) == [(item, token) for item, length in enumerate(lengths) for token in range(length)]
    assert laid.row_length == row_length
    assert (laid.place % align == 0).all()
    assert (laid.length >= 1).all()
    order = list(zip(laid.row.tolist(), laid.place.tolist(), strict=True))
    assert order == sorted(set(order))
    assert sorted({row for row, _ in order}) == list(range(laid.num_rows))
    assert [getattr(laid, name).dtype for name in COLUMNS] == [np.int64] * 5


@pytest.mark.parametrize("packing", PACKINGS)
@settings(max_examples=150, deadline=None)
@given(case=cases())
def test_padding_is_what_no_piece_covers(packing: Packing, case: tuple[list[int], int, int]) -> None:
    lengths, row_length, align = case
    laid = packed(packing, lengths, row_length, align)
    rows = table(laid)
    total = sum(token is None for row in rows for token in row)
    before = sum(
        token is None and any(later is not None for later in row[place:])
        for row in rows
        for place, token in enumerate(row)
    )
    assert laid.padding() == (total, before)
    assert all(type(count) is int for count in laid.padding())
    assert laid.padding_share * (laid.num_rows * row_length) == pytest.approx(total)
    if align == 1:
        assert before == 0


@settings(max_examples=200, deadline=None)
@given(case=cases())
def test_cut_lays_items_end_to_end(case: tuple[list[int], int, int]) -> None:
    lengths, row_length, align = case
    stream: list[tuple[int, int] | None] = []
    for item, length in enumerate(lengths):
        stream += [None] * (-len(stream) % align)
        stream += [(item, token) for token in range(length)]
    stream += [None] * (-len(stream) % row_length)
    assert [token for row in table(packed(Cut(), lengths, row_length, align)) for token in row] == stream


@settings(max_examples=200, deadline=None)
@given(case=cases())
def test_best_fit_has_the_rows_of_best_fit_decreasing(case: tuple[list[int], int, int]) -> None:
    lengths, row_length, align = case
    laid = packed(BestFit(), lengths, row_length, align)
    assert laid.num_rows == fits_decreasing(lengths, row_length, align, best=True)
    # Neither is always the better; both need at most 11/9 of the fewest rows and 4 (Johnson et al., 1974).
    assert laid.num_rows <= fits_decreasing(lengths, row_length, align, best=False) * 11 / 9 + 4


@settings(max_examples=200, deadline=None)
@given(case=cases())
def test_best_fit_cuts_only_what_no_row_holds(case: tuple[list[int], int, int]) -> None:
    lengths, row_length, align = case
    laid = packed(BestFit(), lengths, row_length, align)
    num_pieces = np.bincount(laid.item, minlength=len(lengths)).tolist()
    assert num_pieces == [-(-length // row_length) for length in lengths]
    for _, place, item, begin, length in pieces(laid):
        assert begin % row_length == 0
        assert length == min(row_length, lengths[item] - begin)
        assert place == 0 or length < row_length


def test_best_fit_in_rows_of_a_million_tokens() -> None:
    # Numbers of units left in the first, in the last and in far words of the bitset; a reference that searches fast.
    generator = np.random.default_rng(0)
    row_length = 1 << 20
    lengths = np.exp(generator.uniform(0, np.log(2 * row_length), 5000)).astype(np.int64)
    left: list[int] = []
    for rest in sorted((lengths % row_length).tolist(), reverse=True):
        at = bisect_left(left, rest)
        room = left.pop(at) if at < len(left) else row_length
        if rest:
            insort(left, room - rest)
    laid = BestFit().pack(lengths, row_length)
    assert laid.num_rows == (lengths // row_length).sum() + len(left)
    filled = np.bincount(laid.row, laid.length, laid.num_rows)
    assert sorted((row_length - filled[filled < row_length]).astype(int).tolist()) == [room for room in left if room]
    assert sorted(pieces(laid)) == pieces(laid)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("align", [1, 64])
def test_a_million_items_take_no_step_each(packing: Packing, align: int) -> None:
    lengths = np.random.default_rng(0).lognormal(6, 1.2, 1_000_000).astype(np.int64) + 1
    laid = packing.pack(lengths, 4096, align)
    aligned = -(-lengths // align) * align
    assert laid.num_rows - aligned.sum() / 4096 < 2
    assert np.bincount(laid.item, laid.length).astype(np.int64).tolist() == lengths.tolist()


@pytest.mark.parametrize("packing", PACKINGS)
def test_no_item_gives_no_row(packing: Packing) -> None:
    laid = packed(packing, [], 8)
    assert (laid.num_rows, laid.padding(), laid.padding_share) == (0, (0, 0), 0)
    assert pieces(laid) == []


def test_by_hand() -> None:
    lengths = [5, 9, 3, 2]
    assert pieces(packed(Cut(), lengths, 8)) == [
        (0, 0, 0, 0, 5),
        (0, 5, 1, 0, 3),
        (1, 0, 1, 3, 6),
        (1, 6, 2, 0, 2),
        (2, 0, 2, 2, 1),
        (2, 1, 3, 0, 2),
    ]
    fitted = packed(BestFit(), lengths, 8)
    assert pieces(fitted) == [
        (0, 0, 1, 0, 8),
        (1, 0, 0, 0, 5),
        (1, 5, 2, 0, 3),
        (2, 0, 3, 0, 2),
        (2, 2, 1, 8, 1),
    ]
    assert fitted.padding() == (5, 0)
    aligned = packed(Cut(), lengths, 8, align=4)
    assert pieces(aligned)[:3] == [(0, 0, 0, 0, 5), (1, 0, 1, 0, 8), (2, 0, 1, 8, 1)]
    assert pieces(aligned)[3:] == [(2, 4, 2, 0, 3), (3, 0, 3, 0, 2)]
    assert aligned.padding() == (13, 3)


def test_the_same_lengths_give_the_same_rows() -> None:
    lengths = np.random.default_rng(1).integers(1, 300, 1000)
    for packing in PACKINGS:
        assert pieces(packing.pack(lengths, 128, 2)) == pieces(packing.pack(lengths.copy(), 128, 2))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(("lengths", "row_length", "align"), [([1], 10, 4), ([1], 0, 1), ([1], 4, 0), ([3, 0], 4, 1)])
def test_what_no_caller_may_ask(packing: Packing, lengths: list[int], row_length: int, align: int) -> None:
    with pytest.raises(AssertionError):
        packed(packing, lengths, row_length, align)


@given(cases(), st.data())
def test_chunks_are_whole_pieces_of_one_document_side_by_side(
    case: tuple[list[int], int, int], data: st.DataObject
) -> None:
    lengths, row_length, align = case
    units = row_length // align
    length = align * data.draw(st.sampled_from([n for n in range(1, units + 1) if units % n == 0]))
    below = data.draw(st.sampled_from([None, length + 1, 2 * length + 1]))
    packing = Chunks(length, below)
    packing.check(row_length, align)
    laid = packed(packing, lengths, row_length, align)
    want = [
        (item, begin)
        for item, of_item in enumerate(lengths)
        if below is None or of_item < below
        for begin in range(0, of_item - length + 1, length)
    ]
    assert [(item, begin) for _, _, item, begin, _ in pieces(laid)] == want
    assert {piece[4] for piece in pieces(laid)} <= {length}
    # As many a row as there is room for, in order.
    assert [(row, place) for row, place, *_ in pieces(laid)] == [
        divmod(number * length, row_length) for number in range(len(want))
    ]
    kept = packing.kept(np.array(lengths, np.int64), row_length)
    assert kept.tolist() == [length * sum(item == each for each, _ in want) for item in range(len(lengths))]
    if length == row_length:
        assert pieces(packed(Chunks(below=below), lengths, row_length, align)) == pieces(laid)


@given(cases())
def test_whole_leaves_out_what_does_not_fit(case: tuple[list[int], int, int]) -> None:
    lengths, row_length, align = case
    laid = packed(Whole(), lengths, row_length, align)
    fits = [item for item, length in enumerate(lengths) if length <= row_length]
    assert sorted(laid.item.tolist()) == fits
    assert all(begin == 0 and length == lengths[item] for _, _, item, begin, length in pieces(laid))
    of_fits = packed(BestFit(), [lengths[item] for item in fits], row_length, align)
    assert (laid.num_rows, laid.place.tolist()) == (of_fits.num_rows, of_fits.place.tolist())
    kept = Whole().kept(np.array(lengths, np.int64), row_length)
    assert [item for item in range(len(lengths)) if kept[item]] == fits


@given(cases(), st.data())
def test_items_of_other_packings_are_in_rows_of_their_own(
    case: tuple[list[int], int, int], data: st.DataObject
) -> None:
    lengths, row_length, align = case
    packings: list[Packing] = [Cut(), Chunks(), Cut(), BestFit()]
    which = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(lengths), max_size=len(lengths))), np.int64)
    laid = packed_apart(np.array(lengths, np.int64), which, packings, row_length, align)
    assert (np.diff(laid.row) >= 0).all()
    assert len(set(laid.row.tolist())) == laid.num_rows
    kind = np.array([0, 1, 0, 3])[which][laid.item] if len(laid.item) else np.zeros(0)
    for group, packing in [(0, Cut()), (1, Chunks()), (3, BestFit())]:
        items = np.flatnonzero(np.array([0, 1, 0, 3])[which] == group)
        alone = packed(packing, [lengths[item] for item in items], row_length, align)
        mine = kind == group
        assert laid.item[mine].tolist() == items[alone.item].tolist()
        assert (laid.row[mine] - laid.row[mine].min(initial=laid.num_rows)).tolist() == alone.row.tolist()
        assert laid.place[mine].tolist() == alone.place.tolist()
    assert pieces(packed_apart(np.array(lengths, np.int64), which * 0, [Cut()], row_length, align)) == pieces(
        packed(Cut(), lengths, row_length, align)
    )


def test_chunks_say_what_is_wrong() -> None:
    key = r"^data\.init_args\.packing\.init_args\."
    for given_, said in [((0, None), "length: 0 is not"), ((8, 8), "below: 8 is not"), ((None, 1), "below: 1 is not")]:
        with pytest.raises(ValueError, match=key + said):
            Chunks(*given_)
    for packing, row_length, align, said in [
        (Chunks(48), 100, 4, r"length: 48 is not allowed; it must divide data\.init_args\.row_length \(100\)"),
        (Chunks(50), 100, 4, r"length: 50 is not allowed; .* be a multiple of data\.init_args\.align \(4\)"),
        (Chunks(below=64), 64, 1, "below: 64 is not allowed; it must be more than the length of a chunk, 64"),
    ]:
        with pytest.raises(ValueError, match=key + said):
            packing.check(row_length, align)
