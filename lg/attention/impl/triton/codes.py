"""Codes of 8 or 4 bits, as keys and values are kept in, as numbers that the tensor cores take.

A vector of codes is read as words of four features: of 8 bits those side by side, of 4 bits two of each half of the
vector, since a byte has feature ``i`` in its lower half and ``i + WIDTH / 2`` in its upper. A product with a vector is
then the sum of four, of a part of the features each: no code has to change places with another.

An instruction that converts whole numbers runs at an eighth of the rate of those that move bits, and takes longer than
the bytes do. In float16, 0x6400 is 1024 with a last bit of 1, and 0x5400 is 64 with a last bit of 1/16: a code laid in
the last bits is a number that is off by 1024, or by 64, and taking that away is exact.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def feature_of(word, PART: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr):
    """Which feature a part of a word has; WIDTH where there is none."""
    if BITS == 8:
        return tl.minimum(word * 4 + PART, WIDTH)
    else:
        byte = word * 2 + PART // 2
        return tl.where(byte < WIDTH // 2, byte + (PART % 2) * (WIDTH // 2), WIDTH)


@triton.jit
def load_part(X, at, asks, PART: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, BITS: tl.constexpr):
    """What of rows of features is multiplied by this part of words: float32 [rows, D / 4]."""
    feature = feature_of(tl.arange(0, D // 4), PART, WIDTH, BITS)
    within = asks[:, None] & (feature < WIDTH)[None, :]
    return tl.load(X + at[:, None] + feature[None, :], mask=within, other=0.0).to(tl.float32)


@triton.jit
def store_part(
    OUT, x, at, asks, PART: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, BITS: tl.constexpr
):  # fmt: skip
    """What comes of this part of words to its features of rows of OUT."""
    feature = feature_of(tl.arange(0, D // 4), PART, WIDTH, BITS)
    within = asks[:, None] & (feature < WIDTH)[None, :]
    tl.store(OUT + at[:, None] + feature[None, :], x.to(OUT.dtype.element_ty), mask=within)


@triton.jit
def load_words(CODES, at, seen, WIDTH: tl.constexpr, D: tl.constexpr, BITS: tl.constexpr):
    """Rows of codes of WIDTH features: [rows, D / 4]; 0 where a row is not seen and beyond."""
    BYTES: tl.constexpr = BITS // 2
    SIZE: tl.constexpr = WIDTH * BITS // 8
    WORD: tl.constexpr = tl.int32 if BITS == 8 else tl.int16
    word = tl.arange(0, D // 4)
    if SIZE % BYTES == 0:
        within = seen[:, None]
        if SIZE // BYTES < D // 4:
            within &= (word < SIZE // BYTES)[None, :]
        CODES = CODES.to(tl.pointer_type(WORD))
        return tl.load(CODES + (at * (SIZE // BYTES))[:, None] + word[None, :], mask=within, other=0)
    else:
        # Rows begin at any byte.
        words = tl.zeros([at.shape[0], D // 4], tl.int32)
        for i in tl.static_range(BYTES):
            byte = word * BYTES + i
            within = seen[:, None] & (byte < SIZE)[None, :]
            codes = tl.load(CODES + (at * SIZE)[:, None] + byte[None, :], mask=within, other=0)
            words |= codes.to(tl.int32) << (8 * i)
        return words.to(WORD)


@triton.jit
def load_steps(SCALES, at, seen):
    """What codes are multiplied by, and what is then added: two numbers of 16 bits, read at once."""
    both = tl.load(SCALES.to(tl.pointer_type(tl.int32)) + at, mask=seen, other=0)
    step = (both & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)
    least = (both >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    return step.to(tl.float32), least.to(tl.float32)


@triton.jit
def numbers(words, BITS: tl.constexpr, HALF: tl.constexpr, PACKED: tl.constexpr):
    """The four codes of each word as numbers: in float16 if HALF, else in float32.

    Args:
        PACKED: two words at a time, in instructions of the device; to Triton's interpreter, one by one.
    """
    if PACKED and BITS == 8:
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b32 lower, upper, x, off, bits;
            mov.b32 bits, 0x64646464;
            mov.b32 off, 0x64006400;
            prmt.b32 lower, $4, $5, 0x5140;
            prmt.b32 upper, $4, $5, 0x7362;
            prmt.b32 x, lower, bits, 0x4140;
            sub.rn.f16x2 $0, x, off;
            prmt.b32 x, lower, bits, 0x4342;
            sub.rn.f16x2 $1, x, off;
            prmt.b32 x, upper, bits, 0x4140;
            sub.rn.f16x2 $2, x, off;
            prmt.b32 x, upper, bits, 0x4342;
            sub.rn.f16x2 $3, x, off;
            }
            """,
            "=r,=r,=r,=r,r,r", [words], (tl.float16, tl.float16, tl.float16, tl.float16), True, 2,
        )  # fmt: skip
    elif PACKED:
        return tl.inline_asm_elementwise(
            """
            {
            .reg .b32 upper, x, off, upper_off;
            mov.b32 off, 0x64006400;
            mov.b32 upper_off, 0x54005400;
            shr.u32 upper, $4, 8;
            lop3.b32 x, $4, 0x000f000f, off, 0xEA;
            sub.rn.f16x2 $0, x, off;
            lop3.b32 x, $4, 0x00f000f0, upper_off, 0xEA;
            sub.rn.f16x2 $1, x, upper_off;
            lop3.b32 x, upper, 0x000f000f, off, 0xEA;
            sub.rn.f16x2 $2, x, off;
            lop3.b32 x, upper, 0x00f000f0, upper_off, 0xEA;
            sub.rn.f16x2 $3, x, upper_off;
            }
            """,
            "=r,=r,=r,=r,r", [words], (tl.float16, tl.float16, tl.float16, tl.float16), True, 2,
        )  # fmt: skip
    else:
        return (
            number(words, BITS, HALF),
            number(words >> BITS, BITS, HALF),
            number(words >> 2 * BITS, BITS, HALF),
            number(words >> 3 * BITS, BITS, HALF),
        )


@triton.jit
def number(words, BITS: tl.constexpr, HALF: tl.constexpr):
    """The last code of each word."""
    code = words & ((1 << BITS) - 1)
    if HALF:
        return (code.to(tl.int16) | 0x6400).to(tl.float16, bitcast=True) - 1024.0
    else:
        return code.to(tl.float32)


@triton.jit
def power_of(x):
    """The power of two at or below numbers above 0, from 2^-126 to 2^126, and one over it."""
    bits = x.to(tl.int32, bitcast=True) & 0x7F800000
    bits = tl.minimum(tl.maximum(bits, 0x00800000), 0x7E800000)
    return bits.to(tl.float32, bitcast=True), (0x7F000000 - bits).to(tl.float32, bitcast=True)


@triton.jit
def exponent_of(x):
    """The whole number at or below the logarithm to the base 2 of numbers above 0, as float32."""
    return ((x.to(tl.int32, bitcast=True) >> 23) - 127).to(tl.float32)
