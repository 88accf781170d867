"""Tile tables stay small: they grow with rows and runs, at any length."""

import pytest
from largest import Largest

from lg.attention import Causal, Documents, Pattern, SinkWindow, Strided, Window


@pytest.mark.parametrize(
    ("pattern", "heads", "length"),
    [
        (Causal(), 1, 1_048_576),
        (SinkWindow(window=4096, sinks=128), 1, 1_048_576),
        (Window(window=1984), 1, 1_000_003),
        (Strided(block=64, local_blocks=16, stride=128, head_step=4), 32, 131_072),
    ],
    ids=str,
)
def test_no_tensor_grows_with_the_square_of_the_tiles(pattern: Pattern, heads: int, length: int) -> None:
    tiles = pattern.tiles(Documents(length, (0, length // 3, length // 2 + 17)), heads)
    with Largest() as largest:
        table, transposed = tiles.table(), tiles.transposed()
    rows = heads * table.num_rows
    # What is listed, once for each level of the halving, and never a row times a column.
    listed = table.run_count.numel() + transposed.run_count.numel() + table.num_partial + rows
    assert largest.elements <= 16 * listed
    assert table.num_full == transposed.num_full
    assert table.num_partial == transposed.num_partial


def test_a_million_tokens_of_full_attention_are_one_run_a_row() -> None:
    table = Causal().tiles(Documents(1_048_576)).table()
    assert table.num_rows == 8192
    assert table.run_count.numel() == 8191
    assert table.num_full == 8192 * 8191 // 2
    assert table.num_partial == 8192


def test_the_ragged_end_is_partial() -> None:
    table = Causal().tiles(Documents(300)).table(128, 128)
    assert table.run_count.tolist() == [1]
    assert table.partial_index.tolist() == [0, 1, 0, 1, 2]


def test_a_document_sees_nothing_of_another() -> None:
    table = Causal().tiles(Documents(512, (0, 256))).table(128, 128)
    assert table.full_lists()[1].tolist() == [0, 2]
    assert table.partial_index.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("starts", [(), (1,), (0, 5, 5), (0, 10), (0, 7, 3)])
def test_document_starts_that_make_no_layout_are_refused(starts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="document starts"):
        Documents(10, starts)


def test_documents_count_positions_from_their_own_start() -> None:
    documents = Documents(7, [0, 2, 6])
    assert documents.positions.tolist() == [0, 1, 0, 1, 2, 3, 0]
    assert documents.start_of_token.tolist() == [0, 0, 2, 2, 2, 2, 6]
