"""A strategy whose ranks wait for each other in every micro-step, as sharded models do, for balance.py."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from lightning.pytorch.strategies import DDPStrategy


class EveryMicroStep(DDPStrategy):
    """DDP that reduces gradients after each micro-batch, also of an accumulated step."""

    def block_backward_sync(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Blocks nothing."""
        return nullcontext()
