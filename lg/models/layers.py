"""The two parts that every block is made of besides its mixer: RMSNorm and the gated MLP."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """Divides by the root mean square of the last axis, then scales each feature.

    Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", section 4,
    https://arxiv.org/abs/1910.07467.
    """

    def __init__(self, width: int, eps: float) -> None:
        """Start from weights of one; ``eps`` is added to the mean square."""
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weights to one, as when built."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` to the same shape and dtype, computed in float32 (float64 stays)."""
        # Both operands are cast here because torch's fused kernel needs one dtype for the two, and
        # because what it does in half precision, or under autocast, differs between versions.
        exact = torch.promote_types(x.dtype, torch.float32)
        normed = F.rms_norm(x.to(exact), self.weight.shape, self.weight.to(exact), self.eps)
        return normed.to(x.dtype)

    def extra_repr(self) -> str:
        """Width and epsilon, for ``print(model)``."""
        return f"{self.weight.shape[0]}, eps={self.eps}"


class SwiGLU(nn.Module):
    """The MLP ``down(silu(gate(x)) * up(x))``, without biases.

    Shazeer 2020, "GLU Variants Improve Transformer", section 2, https://arxiv.org/abs/2002.05202.
    """

    def __init__(self, width: int, ffn_width: int) -> None:
        """Three projections between ``width`` and ``ffn_width`` features."""
        super().__init__()
        self.gate_proj = nn.Linear(width, ffn_width, bias=False)
        self.up_proj = nn.Linear(width, ffn_width, bias=False)
        self.down_proj = nn.Linear(ffn_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` to the same shape."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out
