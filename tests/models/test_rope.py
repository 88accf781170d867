import pytest
import torch
from torch import Tensor

from lg.models.rope import rotary_angles, rotate

EPS = 2.0**-24  # half a unit in the last place of float32, relative


def exact_angles(positions: Tensor, head_width: int, theta: float) -> Tensor:
    exponents = torch.arange(0, head_width, 2, dtype=torch.float64) / head_width
    return positions.double()[:, None] / theta**exponents


@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6])
@pytest.mark.parametrize("head_width", [32, 64, 96, 128])
@pytest.mark.parametrize("first", [0, 4096, 131_072, 1_000_003])
def test_angles_keep_the_budget_of_float32(first: int, head_width: int, theta: float) -> None:
    positions = torch.arange(first, first + 64)
    cos, sin = rotary_angles(positions, head_width, theta)
    assert cos.dtype == sin.dtype == torch.float32
    assert cos.shape == sin.shape == (64, head_width // 2)
    angles = exact_angles(positions, head_width, theta)
    # Relative error of the float32 angle, in roundings: the exponent e <= 1 is rounded once, which
    # the power multiplies by e * ln(theta) < 14; power (two), reciprocal and product add four. For
    # head widths that are powers of two the exponent is exact. Cosine and sine have slope at most
    # 1 and add one unit in the last place of their own.
    roundings = 4 if head_width & (head_width - 1) == 0 else 18
    budget = roundings * EPS * angles + 2 * EPS
    assert ((cos.double() - angles.cos()).abs() <= budget).all()
    assert ((sin.double() - angles.sin()).abs() <= budget).all()


def test_the_slow_pairs_still_tell_neighbours_apart_at_a_million() -> None:
    cos, sin = rotary_angles(torch.arange(1_000_003, 1_000_003 + 64), 64, 5e5)
    rows = torch.cat((cos, sin), dim=1)
    assert len(rows.unique(dim=0)) == 64


def test_autocast_and_default_dtype_have_no_say() -> None:
    positions = torch.arange(100_000, 100_064)
    want = rotary_angles(positions, 64, 1e4)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = rotary_angles(positions, 64, 1e4)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        under_default = rotary_angles(positions, 64, 1e4)
    finally:
        torch.set_default_dtype(before)
    for got in (under_autocast, under_default):
        torch.testing.assert_close(got, want, rtol=0, atol=0)
        assert got[0].dtype == torch.float32


def test_a_pair_is_a_feature_of_each_half() -> None:
    cos, sin = rotary_angles(torch.tensor([3]), 8, 1e4)
    x = torch.zeros(1, 8)
    x[0, 1] = 1.0
    want = torch.zeros(1, 8)
    want[0, 1], want[0, 5] = cos[0, 1], sin[0, 1]
    torch.testing.assert_close(rotate(x, cos, sin), want, rtol=0, atol=0)


def test_rotation_is_a_complex_product_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 50, 16, generator=generator, dtype=torch.float64)
    cos, sin = rotary_angles(torch.arange(50), 16, 1e4)
    got = rotate(x, cos, sin)
    assert got.dtype == torch.float64
    turned = torch.complex(x[..., :8], x[..., 8:]) * torch.complex(cos.double(), sin.double())
    torch.testing.assert_close(got, torch.cat((turned.real, turned.imag), -1), rtol=0, atol=1e-14)


@pytest.mark.parametrize("shift", [1, 777, 10_000])
def test_scores_depend_on_the_distance_only(shift: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(40, 32, generator=generator, dtype=torch.float64)
    k = torch.randn(40, 32, generator=generator, dtype=torch.float64)

    def scores(first: int) -> Tensor:
        cos, sin = rotary_angles(torch.arange(first, first + 40), 32, 1e4)
        return rotate(q, cos, sin) @ rotate(k, cos, sin).T

    # q and k are each turned by an angle that is off by at most 4 roundings of the largest one.
    budget = 2 * 4 * EPS * (shift + 40) * (q.norm(dim=1)[:, None] * k.norm(dim=1)) + 1e-5
    assert ((scores(shift) - scores(0)).abs() <= budget).all()


def test_low_precision_is_rounded_once_and_autocast_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 64, 32, generator=generator).bfloat16()
    cos, sin = rotary_angles(torch.arange(200_000, 200_064), 32, 1e4)
    want = rotate(x.double(), cos, sin)
    got = rotate(x, cos, sin)
    assert got.dtype == torch.bfloat16
    # Near 0 a difference of products keeps the absolute error of its float32 terms.
    budget = 2.0**-8 * want.abs() + 4 * EPS * x.double().abs().amax()
    assert ((got.double() - want).abs() <= budget).all()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(rotate(x, cos, sin), got, rtol=0, atol=0)
