"""How a stage begins: with the weights that the one before has ended with, and its optimizer's state if that is kept.

Steps, the learning rate's schedule and the place in the data begin anew.
"""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info

from lg.cli.trouble import Refused
from lg.parallel.consolidate import shapes_in


class FromStage(pl.Callback):
    """Reads the checkpoint when weights and optimizer are there, on many devices each rank its part.

    Args:
        checkpoint: a file, or a folder of many files.
        keeps_optimizer: whether its state is taken as well. What the configuration says of it, such as the learning
            rate, holds in any case.
        key: names the stage in a complaint.
    """

    def __init__(self, checkpoint: Path, keeps_optimizer: bool, key: str) -> None:
        self.checkpoint = checkpoint
        self.keeps_optimizer = keeps_optimizer
        self.key = key

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reads it.

        Raises:
            Refused: if the model has another shape.
        """
        self._check_shapes(pl_module)
        strategy = trainer.strategy
        optimizers = strategy.optimizers
        options = [[{**group, "params": None} for group in optimizer.param_groups] for optimizer in optimizers]
        strategy.optimizers = optimizers if self.keeps_optimizer else []
        try:
            # What Lightning does to resume, without loops, callbacks and schedulers.
            content = strategy.load_checkpoint(self.checkpoint, weights_only=True)
            strategy.load_model_state_dict(content, strict=True)
            if self.keeps_optimizer:
                self._check_groups(content, strategy.optimizers)
                strategy.load_optimizer_state_dict(content)
        finally:
            strategy.optimizers = optimizers
        for optimizer, groups in zip(optimizers, options, strict=True):
            for group, own in zip(optimizer.param_groups, groups, strict=True):
                group.update({name: value for name, value in own.items() if name != "params"})
        what = "weights and optimizer state" if self.keeps_optimizer else "weights"
        rank_zero_info(f"begins with the {what} of {self.checkpoint}")

    def _check_shapes(self, module: pl.LightningModule) -> None:
        there = shapes_in(self.checkpoint)
        own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        others = [name for name in own if name in there and own[name] != there[name]]
        others += sorted(there.keys() - own.keys())
        # By these a weight that is tied to another has one name.
        others += [name for name, _ in module.named_parameters() if name not in there]
        if others:
            was, now = (shapes.get(others[0], "not there") for shapes in (there, own))
            raise Refused(
                f"{self.key}.model: the shape is not that of the stage before: {others[0]} was {was}, is {now}; stages "
                "may differ in all but the shape"
            )

    def _check_groups(self, content: dict[str, object], optimizers: list[torch.optim.Optimizer]) -> None:
        saved = content.get("optimizer_states")
        if not isinstance(saved, list):  # the strategy has read it
            return
        for state, optimizer in zip(saved, optimizers, strict=True):
            sizes, own = (
                [len(group["params"]) for group in g] for g in (state["param_groups"], optimizer.param_groups)
            )
            if sizes != own:
                raise Refused(
                    f"{self.key}.optimizer: 'kept' is not allowed; the stage before trained groups of {sizes} weights, "
                    f"and this one trains {own}"
                )
