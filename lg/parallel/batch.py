"""One rank's part of a batch whose tokens lie on several ranks: tokens and targets its own, documents of all.

Shapes: B rows, L tokens of a row, N tokens of the sequence that they make, n of them on this rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from lg.attention import Documents, Pattern
from lg.attention.part import Held
from lg.parallel.balance import padded_length, split

_IGNORED = -100


def own_part(
    batch: Mapping[str, Any], layers: Sequence[Pattern], num_kv_heads: int, num_ranks: int, rank: int
) -> tuple[dict[str, Any], Held]:
    """What a rank computes of a batch.

    Args:
        batch: "tokens", "targets" and, if there are any, "positions" [B, L], the same on every rank of the context
            group; "document_starts" in the sequence of B * L tokens, and what else tells of documents. Stays as it is.
        layers: what each layer sees.
        num_kv_heads: KV heads of a layer.
        num_ranks: how many share the sequence.
        rank: which of them this is.

    Returns:
        The batch with "tokens", "targets" and "positions" [1, n], and which tokens these are of the sequence.
        Everything else is of the whole sequence, which may have been filled up with a document of padding at its end,
        to N.
    """
    length = batch["tokens"].numel()
    whole = {**batch}
    if num_padding := padded_length(length, num_ranks) - length:
        whole["document_starts"] = [*batch["document_starts"], length]
        attributes = batch.get("document_attributes", {})
        whole["document_attributes"] = {name: [*values, 0] for name, values in attributes.items()}
        whole["num_padding"] = batch.get("num_padding", 0) + num_padding
        if "document_padding" in batch:
            whole["document_padding"] = [*batch["document_padding"], True]
    starts, attributes = whole["document_starts"], whole.get("document_attributes", {})
    documents = Documents(length + num_padding, starts, attributes)
    held = Held(split(documents, layers, num_kv_heads, num_ranks), rank)
    for name, filling in (("tokens", 0), ("targets", _IGNORED), ("positions", 0)):
        if name in batch:
            whole[name] = F.pad(batch[name].flatten(), (0, num_padding), value=filling)[held.tokens][None]
    return whole, held


def check_alike(batch: Mapping[str, Any], group: dist.ProcessGroup, device: torch.device) -> None:
    """Refuses data that are not the same on all ranks of a context group; to be called by all of them.

    Raises:
        ValueError: if they differ.
    """
    tokens: Tensor = batch["tokens"].flatten()
    places = torch.arange(1, len(tokens) + 1, device=tokens.device)
    # Of batches that differ, sums weighted by place differ too; but for bad luck.
    starts = sum(number * start for number, start in enumerate(batch["document_starts"]))
    # Fractions as integers, whose sum has no order.
    turned = (batch["positions"].flatten().double() * 4096).long() if "positions" in batch else places
    own = torch.tensor([len(tokens), int((tokens * places).sum()), starts, int((turned * places).sum())], device=device)
    everyone = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, own, group=group)
    # Asked of all, so that all end.
    if bool((torch.stack(everyone) != everyone[0]).any()):
        raise ValueError(
            "data: the ranks that share a sequence (trainer.strategy.init_args.context_parallel_size) have read "
            "different batches; data must be sharded by lg.data.data_axis(trainer), and be in one order"
        )
