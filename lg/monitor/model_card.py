"""What was built: the resolved schedule and the parameters."""

from __future__ import annotations

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from lg.attention.schedule import written
from lg.models.hybrid import HybridLM
from lg.monitor.board import board


class ModelCard(pl.Callback):
    """Prints each pattern, the resolved schedule and the parameter table, and logs them as ``model/card``."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints and logs the card."""
        if not isinstance(pl_module, HybridLM):
            return
        text = card(pl_module)
        rank_zero_info(text)
        writer = board(trainer)
        if writer is not None:
            # TensorBoard reads Markdown: four spaces keep columns as they are.
            writer.add_text("model/card", "\n".join(f"    {line}" for line in text.splitlines()))


def card(module: HybridLM) -> str:
    """The schedule as it was built, then parameters by part."""
    lines = [f"schedule   {written(module.schedule)}"]
    for name in dict.fromkeys(module.schedule):
        other = module.evaluated.get(name, name)
        told = "" if other == name else f"; {other} in evaluation: {module.patterns[other]}"
        lines.append(f"  {name:<8} {module.patterns[name]}  layers {_ranges(module.schedule, name)}{told}")
    model = module.model
    parts = {"embedding": model.embedding, "blocks": model.blocks, "norm": model.norm, "head": model.head}
    seen: set[int] = set()
    lines.append("parameters")
    for name, part in parts.items():
        fresh = {id(p): p.numel() for p in part.parameters() if id(p) not in seen}
        tied = " (tied to the embedding)" if not fresh else ""
        lines.append(f"  {name:<10} {sum(fresh.values()):>15,}{tied}")
        seen |= fresh.keys()
    lines.append(f"  {'total':<10} {sum(p.numel() for p in module.parameters()):>15,}")
    if module.adapter is not None:
        lines.append(f"  {'trained':<10} {sum(p.numel() for p in module.parameters() if p.requires_grad):>15,}")
    return "\n".join(lines)


def _ranges(schedule: list[str], name: str) -> str:
    """Layer numbers in short form, as in "0-1, 4-5"."""
    edges: list[list[int]] = []
    for layer in (n for n, own in enumerate(schedule) if own == name):
        if edges and edges[-1][1] == layer - 1:
            edges[-1][1] = layer
        else:
            edges.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in edges)
