"""Which weights an optimizer changes, by what it does with them: their decay, and their learning rate."""

from __future__ import annotations

from typing import Any

from torch import nn

from lg.models.adapters import Adapter
from lg.models.loss import LMHead


def parameter_groups(
    module: nn.Module, learning_rate: float, weight_decay: float, adapter: Adapter | None
) -> list[dict[str, Any]]:
    """Groups for AdamW of what a module trains; some may be empty.

    Args:
        module: matrices of its linear layers, and a head's that is no embedding's, decay; norms, biases and embeddings
            do not.
        learning_rate: the peak.
        weight_decay: of what decays.
        adapter: what tells which weights have another rate.
    """
    looked_up = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    multiplied = [m for m in module.modules() if isinstance(m, nn.Linear | LMHead)]
    decayed = {id(p) for m in multiplied for p in m.parameters(recurse=False) if p.ndim == 2} - looked_up
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    factors = {name: 1.0 if adapter is None else adapter.learning_rate_factor(name) for name in trained}
    # A fused step takes no mixture of weights that are whole with such that lie on many devices in parts.
    return [
        {
            "params": [
                p
                for name, p in trained.items()
                if type(p) is kind and (id(p) in decayed) == decays and factors[name] == factor
            ],
            "weight_decay": decay,
            "lr": factor * learning_rate,
        }
        for kind in dict.fromkeys(map(type, trained.values()))
        for factor in dict.fromkeys((1.0, *factors.values()))
        for decays, decay in ((True, weight_decay), (False, 0.0))
    ]
