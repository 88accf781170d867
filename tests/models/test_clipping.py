"""Gradients are clipped as torch does it."""

import math

import pytest
import torch

from lg.models.clipping import clip_by_norm


def weights() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(5).double())]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    return [*parameters, torch.nn.Parameter(torch.randn(2))]


@pytest.mark.parametrize("most", [0.1, 100.0, math.inf])
def test_all_are_scaled_alike(most: float) -> None:
    ours, theirs = weights(), weights()
    norm = clip_by_norm(ours, most)
    torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs, most), check_dtype=False)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_without_gradients_the_norm_is_0() -> None:
    assert clip_by_norm([torch.nn.Parameter(torch.ones(2))], 1.0) == 0
