"""The kernel that lays pages of keys or values end to end, where many new tokens read them at once.

Legend: G KV heads, F groups of them, M pages of a group, n rows of a head, WIDTH head width, D head width, padded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lg.attention.impl.triton.codes import load_steps
from lg.attention.impl.triton.decode import load_features, page_of


@triton.jit(do_not_specialize=["num_pages", "num_rows"])
def gather_pages(
    ROOM, SCALES, HEADS, PAGES, PLACES, OUT, num_pages, num_rows,
    WIDTH: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, BITS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Each page of PAGES [F, M] to rows PLACES and on of its heads in OUT [G, n, WIDTH], up to its end."""
    entry, head = tl.program_id(0), tl.program_id(1)
    HALVES: tl.constexpr = 2 if BITS == 4 else 1
    LIMIT: tl.constexpr = WIDTH // HALVES
    group, base, stride = page_of(HEADS, head)
    place = tl.load(PLACES + group * num_pages + entry)
    # Where there is no page, nothing is there.
    row = tl.arange(0, PAGE)
    there = tl.where(place >= 0, place + row, num_rows) < num_rows
    number = tl.load(PAGES + group * num_pages + entry).to(tl.int64) * stride + base
    at = number * PAGE + row
    column = tl.arange(0, D // HALVES)
    to = OUT + ((head.to(tl.int64) * num_rows + place + row) * WIDTH)[:, None] + column[None, :]
    within = there[:, None] & (column < LIMIT)[None, :]
    x = load_features(ROOM, at, there, 0, LIMIT, D // HALVES, LIMIT, UPCAST and BITS == 0)
    if BITS == 0:
        tl.store(to, x.to(OUT.dtype.element_ty), mask=within)
    else:
        step, least = load_steps(SCALES, at, there)
        step, least = step[:, None], least[:, None]
        codes = (x & 15) if BITS == 4 else x
        tl.store(to, (codes.to(tl.float32) * step + least).to(OUT.dtype.element_ty), mask=within)
        if BITS == 4:
            other = (x >> 4).to(tl.float32) * step + least
            tl.store(to + LIMIT, other.to(OUT.dtype.element_ty), mask=within)
