"""Full causal attention by torch's own kernels, one call for each document: nothing is faster where all is seen.

Shapes: B batch, H query heads, G KV heads, L tokens, D head width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from lg.attention.patterns import Causal
from lg.attention.tiles import Tiles

# By preference where several can run; torch's own order takes FlashAttention-2 where cuDNN is much faster (Hopper).
_BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def refusal(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> str | None:
    """Only the pattern that sees every earlier key."""
    if tiles.pattern.text != Causal().text:
        return f"it computes full causal attention only, not {tiles.pattern}"
    return None


def run(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, scale: float) -> Tensor:
    """Causal attention within each document: [B, H, L, D]."""
    gqa = q.shape[1] != k.shape[1]
    with sdpa_kernel(_BACKENDS, set_priority=True):
        parts = [
            scaled_dot_product_attention(
                q[:, :, i:j], k[:, :, i:j], v[:, :, i:j], is_causal=True, scale=scale, enable_gqa=gqa
            )
            for i, j in tiles.documents.bounds.T.tolist()
        ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)
