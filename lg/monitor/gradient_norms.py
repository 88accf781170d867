"""Which kind of layer the gradient is in: its norm, by the pattern that a layer has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import lightning.pytorch as pl
import torch
from torch import Tensor

from lg.models.clipping import whole_norm
from lg.models.hybrid import HybridLM
from lg.monitor.steps import StepCallback

_PARTS = ("embedding", "norm", "head", "other")


class GradientNorms(StepCallback):
    """Logs ``grad_norm/<pattern>``, of all layers that have it, and those of ``embedding``, ``norm`` and ``head``.

    They are norms of the mean gradient over the step's targets, before clipping: the root of the sum of their squares
    is ``train/grad_norm``. A head that is tied to the embedding is counted there. What a subclass has beside the
    decoder is ``grad_norm/other``.

    Args:
        every: optimizer steps from one figure to the next; ``null`` is the trainer's ``log_every_n_steps``.

    Raises:
        ValueError: a pattern is called as one of these parts.
    """

    def __init__(self, every: int | None = None) -> None:
        super().__init__(every)
        self._norms: dict[str, Tensor] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuses names that would mean two things."""
        for name in pl_module.schedule if isinstance(pl_module, HybridLM) else ():
            if name in _PARTS:
                raise ValueError(
                    f"model.init_args.patterns.{name}: GradientNorms shows another part as grad_norm/{name}; a pattern "
                    f"must not be called {', '.join(_PARTS)}"
                )

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Takes the norms, before the module scales gradients and clips them."""
        if isinstance(pl_module, HybridLM) and self.is_due(trainer, trainer.global_step + 1):
            self._norms = {name: norm for name, part in _parts(pl_module).items() if (norm := _norm(part)) is not None}

    def step_done(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Logs them, scaled as the gradients were."""
        for name, norm in self._norms.items():
            assert isinstance(pl_module, HybridLM)
            pl_module.log(f"grad_norm/{name}", norm * pl_module.gradient_factor)
        self._norms = {}


def _parts(module: HybridLM) -> Mapping[str, Sequence[torch.nn.Parameter]]:
    """All parameters, each in one part."""
    model = module.model
    owners: list[tuple[str, torch.nn.Module]] = [("embedding", model.embedding)]
    owners += zip(module.schedule, model.blocks, strict=True)
    owners += [("norm", model.norm), ("head", model.head), ("other", module)]
    parts: dict[str, list[torch.nn.Parameter]] = {}
    seen: set[int] = set()
    for name, owner in owners:
        fresh = [parameter for parameter in owner.parameters() if id(parameter) not in seen]
        parts.setdefault(name, []).extend(fresh)
        seen.update(map(id, fresh))
    return parts


def _norm(parameters: Sequence[torch.nn.Parameter]) -> Tensor | None:
    """The norm of all their gradients together, in float32 at least; None if they have none. Waits for no device."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return None
    exact = torch.promote_types(gradients[0].dtype, torch.float32)
    return whole_norm(gradients, exact)
