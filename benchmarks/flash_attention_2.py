"""Dense attention by FlashAttention-2 as torch has it, where cuDNN would be taken: LongGen's baseline kernel."""

from __future__ import annotations

import lightning.pytorch as pl
from torch.nn.attention import SDPBackend

from lg.attention.impl import fused


class FlashAttention2(pl.Callback):
    """Takes torch's other kernels away from `sdpa`, which full causal attention must then be asked of by name."""

    def __init__(self) -> None:
        fused.BACKENDS[:] = [SDPBackend.FLASH_ATTENTION]
