import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lg.models.layers import RMSNorm, SwiGLU

# Half a unit in the last place, relative, of each dtype: what one rounding may cost.
HALF_ULP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}


def exact_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x, weight = x.double(), weight.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def norm_and_input(x_dtype: torch.dtype, weight_dtype: torch.dtype, width: int = 192) -> tuple[RMSNorm, Tensor]:
    generator = torch.Generator().manual_seed(0)
    norm = RMSNorm(width, eps=1e-5).to(weight_dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(width, generator=generator) + 0.5)
    # Rows of very different size: the smallest are where eps matters.
    size = torch.logspace(-4, 1, 21)[:, None]
    return norm, (torch.randn(21, width, generator=generator) * size).to(x_dtype)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
def test_norm_costs_one_rounding(x_dtype: torch.dtype, weight_dtype: torch.dtype, autocast: bool) -> None:
    norm, x = norm_and_input(x_dtype, weight_dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = norm(x)
    assert y.dtype == x_dtype
    want = exact_norm(x, norm.weight, 1e-5)
    # A few roundings in float32, then the one to x's dtype.
    budget = HALF_ULP[x_dtype] + 8 * HALF_ULP[torch.float32]
    assert ((y.double() - want).abs() <= budget * want.abs()).all()


def test_norm_survives_float16_that_would_overflow_when_squared() -> None:
    norm, x = norm_and_input(torch.float16, torch.float16)
    y = norm(x * 1000)
    assert y.dtype == torch.float16
    assert y.isfinite().all()


def test_norm_in_float64_stays_float64() -> None:
    norm, x = norm_and_input(torch.float64, torch.float64)
    y = norm(x)
    assert y.dtype == torch.float64
    torch.testing.assert_close(y, exact_norm(x, norm.weight, 1e-5), rtol=1e-14, atol=0)


def test_norm_gradients_equal_the_formula() -> None:
    norm, x = norm_and_input(torch.float64, torch.float64, width=6)
    x.requires_grad_()
    upstream = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(norm(x), (x, norm.weight), upstream)
    want = torch.autograd.grad(exact_norm(x, norm.weight, 1e-5), (x, norm.weight), upstream)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_swiglu_is_its_formula_and_has_no_biases() -> None:
    torch.manual_seed(0)
    mlp = SwiGLU(12, 20).double()
    weights = dict(mlp.named_parameters())
    assert set(weights) == {"gate_proj.weight", "up_proj.weight", "down_proj.weight"}
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    gate = x @ weights["gate_proj.weight"].T
    want = (F.sigmoid(gate) * gate * (x @ weights["up_proj.weight"].T)) @ weights["down_proj.weight"].T
    torch.testing.assert_close(mlp(x), want)
