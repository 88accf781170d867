"""What packings waste and cut on real sources, and what aligned document starts save in tiles.

    python benchmarks/packing.py [OUT.json]

Needs `lg data fetch shakespeare essays`. Tokens are bytes, and a document has one more, its end. Documents come in a
drawn order, as in training. Tiles are of 128 x 128 tokens, over all rows; stretches of padding count as documents of
their own, as they do in training.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from report import parser, processor, write

from lg.attention import Documents, Pattern, SinkWindow, Strided
from lg.data import BestFit, Cut, Document, Packed, Packing, Source, Stdlib
from lg.data.assets import Fetched

ALIGNS = (1, 64, 128)
ROW_LENGTHS = (4096, 32_768, 131_072)
PACKINGS: tuple[Packing, ...] = (Cut(), BestFit())
# Heads alike, so that one is counted. A block of 64 is half a tile: a single stripe of it fills none.
PATTERNS: tuple[Pattern, ...] = (
    Strided(block=64, local_blocks=16, stride=128, head_step=0),
    Strided(block=128, local_blocks=8, stride=8, head_step=0),
    SinkWindow(window=1984, sinks=64),
)


class StdlibFiles(Source):
    """The documents of Stdlib taken apart again: one for each file."""

    def documents(self) -> Iterator[Document]:
        for package in Stdlib().documents():
            for file in re.split(rb"^# file: .*\n", package.text, flags=re.MULTILINE)[1:]:
                if file:
                    yield Document(package.name, file)


SOURCES: dict[str, Source] = {
    "standard library, a file each": StdlibFiles(),
    "standard library, a package each": Stdlib(),
    "essays": Fetched("essays"),
    "shakespeare": Fetched("shakespeare"),
}


def lengths(source: Source) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Tokens of each document, its end included, in a drawn order."""
    counts = np.array([len(document.text) + 1 for document in source.documents()], np.int64)
    return np.random.default_rng(0).permutation(counts)


def waste(items: np.ndarray[Any, np.dtype[np.int64]], row_length: int) -> Iterator[dict[str, Any]]:
    """Padding and cut documents of every packing and align."""
    for packing in PACKINGS:
        for align in ALIGNS:
            start = time.perf_counter()
            packed = packing.pack(items, row_length, align)
            seconds = time.perf_counter() - start
            cut = np.bincount(packed.item) > 1
            yield {
                "packing": str(packing).removesuffix("()"),
                "align": align,
                "row_length": row_length,
                "rows": packed.num_rows,
                "padding_percent": round(100 * packed.padding_share, 3),
                "align_percent": round(100 * packed.padding()[1] / (packed.num_rows * row_length), 3),
                "cut_documents_percent": round(100 * float(cut.mean()), 2),
                "cut_though_they_fit_percent": round(100 * float((cut & (items <= row_length)).mean()), 2),
                "pack_ms": round(1e3 * seconds, 1),
            }


def layouts(packed: Packed) -> Iterator[Documents]:
    """Each row's documents, padding among them."""
    for pieces in np.split(np.arange(len(packed.row)), np.flatnonzero(np.diff(packed.row)) + 1):
        begins = packed.place[pieces]
        starts = np.union1d(begins, begins + packed.length[pieces])
        yield Documents(packed.row_length, starts[starts < packed.row_length].tolist())


def tiles(items: np.ndarray[Any, np.dtype[np.int64]], row_length: int) -> Iterator[dict[str, Any]]:
    """Full and partial tiles of every pattern and align, in rows packed by best fit."""
    packings = {align: BestFit().pack(items, row_length, align) for align in ALIGNS}
    for pattern in PATTERNS:
        counts = {}
        for align, packed in packings.items():
            tables = [pattern.tiles(documents).table() for documents in layouts(packed)]
            counts[align] = (sum(table.num_full for table in tables), sum(table.num_partial for table in tables))
        for align, (full, partial) in counts.items():
            yield {
                "pattern": str(pattern),
                "grid": pattern.grid,
                "align": align,
                "row_length": row_length,
                "rows": packings[align].num_rows,
                "padding_percent": round(100 * packings[align].padding_share, 3),
                "full_tiles": full,
                "partial_tiles": partial,
                "tiles_saved_percent": round(100 * (1 - (full + partial) / sum(counts[1])), 2),
                "partial_saved_percent": round(100 * (1 - partial / counts[1][1]), 2),
            }


def main() -> None:
    """Runs every case and writes the file."""
    args = parser(__doc__).parse_args()
    torch.set_num_threads(1)  # tables are small
    rows = []
    for name, source in SOURCES.items():
        items = lengths(source)
        about = {"source": name, "documents": len(items), "tokens": int(items.sum())}
        for row_length in ROW_LENGTHS:
            # Rows of 4,096 tokens have few tiles to save: a local part of 1,024 or 2,048 tokens is most of them.
            counted = tiles(items, row_length) if row_length > 4096 else ()
            for row in (*waste(items, row_length), *counted):
                rows.append({**about, **row})
                print(json.dumps(rows[-1]), flush=True)
    device = f"{processor()}, {os.cpu_count()} cores"
    what = "padding and cut documents of packings, and tiles by align, on real texts"
    write(args.out, what, device, ["torch", "numpy"], rows)


if __name__ == "__main__":
    main()
