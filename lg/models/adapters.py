"""Small weights beside large ones that stay as they are: what LoRA adds to a pretrained decoder, and trains.

>>> from lg.models.presets import preset
>>> LoRA(rank=8, also_train=("embedding", "norm")).counted(preset("llama-2-7b")).trained
139726848

Names: r rank, X features in, Y features out.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lg.models.config import DecoderConfig
from lg.models.layers import RMSNorm

_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_PARTS = ("embedding", "norm", "head")
_KEY = "model.init_args.adapter.init_args"


@dataclass(frozen=True)
class Counted:
    """A decoder's weights, by what becomes of them.

    Attributes:
        added: those that the adapter adds; a token is multiplied with each, and all are trained.
        trained: all that are trained.
        frozen: those that a token is multiplied with, and that have no gradient.
        head: whether the output head is trained.
    """

    added: int
    trained: int
    frozen: int
    head: bool


def adapter_work(adapted: Counted | None) -> int:
    """Floating-point operations of training that an adapter adds for each token: less than nothing, as a rule.

    Six for a weight that is added, forward and backward; two less for one that is frozen, which needs no gradient.
    """
    return 0 if adapted is None else 6 * adapted.added - 2 * adapted.frozen


class Adapter(ABC):
    """What is trained of a decoder in place of all of it."""

    @abstractmethod
    def check(self, config: DecoderConfig) -> None:
        """Refuses a decoder that it cannot be added to.

        Raises:
            ValueError: naming the YAML key.
        """

    @abstractmethod
    def adapt(self, part: nn.Module, name: str) -> None:
        """Changes one part of a decoder in place, once it has its weights: "embedding", "blocks.3", "norm", "head"."""

    @abstractmethod
    def merged(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a plain decoder that computes the same, from those of an adapted one, by name."""

    @abstractmethod
    def learning_rate_factor(self, name: str) -> float:
        """What the learning rate of the weight of this name is multiplied by."""

    @abstractmethod
    def counted(self, config: DecoderConfig) -> Counted:
        """How many weights of a decoder of this shape are trained."""


@dataclass(frozen=True)
class LoRA(Adapter):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685, section 4.1): ``W x + alpha / r * B A x``, W frozen.

    A is drawn, B is zero, so training begins with the model as it was. These are layers of lg's own, since a decoder is
    sharded part by part while it is made, which the library ``peft`` knows nothing of; ``lg export --adapter`` writes
    its file format.

    Args:
        rank: r.
        alpha: by which, over r, the addition is scaled.
        dropout: the share of features that A is not shown, in training.
        targets: the projections that get it, in every layer.
        also_train: what else is trained, whole: embedding, norm (every norm), head. LongLoRA (Chen et al. 2023, arXiv
            2309.12307, section 3.3) trains embedding and norm; a head that is tied to the embedding is trained with it.
        learning_rate_ratio: B's learning rate over A's: LoRA+ (Hayou et al. 2024, arXiv 2402.12354), which proposes
            about 16. What LongLoRA calls LoRA+ is ``also_train``.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: Sequence[str] = ("q_proj", "k_proj", "v_proj", "o_proj")
    also_train: Sequence[str] = ()
    learning_rate_ratio: float = 1.0

    def __post_init__(self) -> None:
        # YAML and checkpoints have lists, which would make equal adapters differ.
        object.__setattr__(self, "targets", tuple(self.targets))
        object.__setattr__(self, "also_train", tuple(self.also_train))
        for field, allowed, what in (
            ("rank", self.rank >= 1, "at least 1"),
            ("alpha", 0 < self.alpha < math.inf, "above 0"),
            ("dropout", 0 <= self.dropout < 1, "at least 0 and below 1"),
            ("learning_rate_ratio", 0 < self.learning_rate_ratio < math.inf, "above 0"),
        ):
            if not allowed:
                raise ValueError(f"{_KEY}.{field}: {getattr(self, field)} is not allowed; it must be {what}")
        if not self.targets:
            raise ValueError(f"{_KEY}.targets: [] is not allowed; allowed are {', '.join(_LINEAR)}")
        for field, names, known in (("targets", self.targets, _LINEAR), ("also_train", self.also_train, _PARTS)):
            for name in names:
                if name not in known:
                    raise ValueError(f"{_KEY}.{field}: {name!r} is unknown; allowed are {', '.join(known)}")

    @property
    def scale(self) -> float:
        """What ``B A x`` is multiplied by."""
        return self.alpha / self.rank

    def check(self, config: DecoderConfig) -> None:
        if config.tied_embeddings and "head" in self.also_train and "embedding" not in self.also_train:
            raise ValueError(
                f"{_KEY}.also_train: 'head' is not allowed without 'embedding', since the decoder's head is tied to "
                "its embedding"
            )

    def adapt(self, part: nn.Module, name: str) -> None:
        for module in part.modules():
            kind = "norm" if isinstance(module, RMSNorm) else name
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(kind in self.also_train)
        found = [
            (inner, module)
            for inner, module in part.named_modules()
            if isinstance(module, nn.Linear) and inner.rpartition(".")[2] in self.targets
        ]
        for inner, module in found:
            owner, _, called = inner.rpartition(".")
            setattr(part.get_submodule(owner), called, LoRALinear(module, self.rank, self.scale, self.dropout))

    def merged(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        plain = {name: tensor for name, tensor in weights.items() if not name.endswith((".lora_a", ".lora_b"))}
        for name in weights:
            if name.endswith(".lora_a"):
                layer = name.removesuffix(".lora_a")
                weight, a, b = (weights[f"{layer}.{one}"] for one in ("weight", "lora_a", "lora_b"))
                exact = torch.promote_types(weight.dtype, torch.float32)
                plain[f"{layer}.weight"] = (weight.to(exact) + self.scale * b.to(exact) @ a.to(exact)).to(weight.dtype)
        return plain

    def learning_rate_factor(self, name: str) -> float:
        return self.learning_rate_ratio if name.endswith(".lora_b") else 1.0

    def counted(self, config: DecoderConfig) -> Counted:
        c = config
        q, kv, ffn = c.num_heads * c.head_width, c.num_kv_heads * c.head_width, c.ffn_width
        sizes = {
            "q_proj": (c.width, q), "k_proj": (c.width, kv), "v_proj": (c.width, kv), "o_proj": (q, c.width),
            "gate_proj": (c.width, ffn), "up_proj": (c.width, ffn), "down_proj": (ffn, c.width),
        }  # fmt: skip
        added = c.num_layers * sum(self.rank * sum(sizes[name]) for name in set(self.targets))
        embedding, head = c.vocab_size * c.width, 0 if c.tied_embeddings else c.vocab_size * c.width
        norms = c.width + c.num_layers * (2 * c.width + (2 * c.head_width if c.qk_norm else 0))
        whole = {"embedding": embedding, "norm": norms, "head": head}
        trained = added + sum(whole[name] for name in set(self.also_train))
        head_trains = ("embedding" if c.tied_embeddings else "head") in self.also_train
        blocks = c.num_layers * sum(rows * columns for rows, columns in sizes.values())
        return Counted(added, trained, blocks + (0 if head_trains else embedding), head_trains)


class LoRALinear(nn.Linear):
    """A linear layer whose weights are frozen, and a low-rank one beside it.

    Its weight and bias are called as before; beside them are ``lora_a`` [r, X], drawn as torch draws a linear layer,
    and ``lora_b`` [Y, r], zero.

    Args:
        base: the layer, whose weights it takes over.
        rank: r.
        scale: what the low-rank part is multiplied by.
        dropout: the share of features that the low-rank part is not shown, in training.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float) -> None:
        super().__init__(base.in_features, base.out_features, bias=False, device="meta")
        self.weight, self.bias = base.weight, base.bias
        self.lora_a = nn.Parameter(self.weight.new_empty(rank, self.in_features))
        self.lora_b = nn.Parameter(self.weight.new_zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.scale, self.dropout = scale, dropout

    def forward(self, x: Tensor) -> Tensor:
        """``[..., X]`` to ``[..., Y]``."""
        shown = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return F.linear(x, self.weight, self.bias) + self.scale * F.linear(F.linear(shown, self.lora_a), self.lora_b)

    def extra_repr(self) -> str:
        """The base layer's, rank and scale, for ``print(model)``."""
        return f"{super().extra_repr()}, rank={self.lora_a.shape[0]}, scale={self.scale:g}"
