"""The shape of a decoder: every number that fixes its parameters and its arithmetic."""

import math
from dataclasses import dataclass

from lg.models.rope_scaling import RopeScaling

KEY = "model.init_args.decoder"


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder of the Llama family; which layer sees what is the schedule's affair.

    Attributes:
        num_layers: blocks, each a mixer followed by an MLP.
        width: features of the residual stream.
        num_heads: query heads of a layer; a multiple of ``num_kv_heads``.
        num_kv_heads: key/value heads of a layer; each serves ``num_heads // num_kv_heads``
            query heads.
        head_width: features of one head, even because rotary positions turn pairs. It need not be
            ``width // num_heads``.
        ffn_width: features inside the gated MLP.
        vocab_size: rows of the embedding and of the output head, padding rows included.
        rope_theta: base of the rotary frequencies: pair ``i`` turns by
            ``rope_theta ** (-2 * i / head_width)`` radians a position.
        norm_eps: added to the mean square inside every RMSNorm.
        tied_embeddings: whether the output head is the embedding itself.
        qk_norm: whether each head of q and k passes an RMSNorm of ``head_width`` features before
            the rotation, with one weight shared by the heads (Qwen3).
        qkv_bias: whether the q, k and v projections carry a bias (Qwen2).
        rope_scaling: how rotary frequencies are changed to read further; None for not at all.
        no_rope_layers: numbers of the layers whose queries and keys are not rotated (SmolLM3).

    Raises:
        ValueError: a field is of the wrong type or out of range, or the heads do not divide. The
            message names the value, what is allowed and the YAML key.
    """

    num_layers: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_width: int
    ffn_width: int
    vocab_size: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tied_embeddings: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    rope_scaling: RopeScaling | None = None
    no_rope_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a shape that could not be built, while the YAML key is still known."""
        for field in (
            "num_layers",
            "width",
            "num_heads",
            "num_kv_heads",
            "head_width",
            "ffn_width",
            "vocab_size",
        ):
            value = getattr(self, field)
            # bool is an int to Python, but `num_layers: true` is a slip of the pen.
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise _refusal(field, value, "it must be an integer of at least 1")
        for field in ("rope_theta", "norm_eps"):
            value = getattr(self, field)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value <= 0:
                raise _refusal(field, value, "it must be a finite number above 0")
        for field in ("tied_embeddings", "qk_norm", "qkv_bias"):
            value = getattr(self, field)
            if not isinstance(value, bool):
                raise _refusal(field, value, "it must be true or false")
        if not isinstance(self.rope_scaling, RopeScaling | None):
            raise _refusal("rope_scaling", self.rope_scaling, "it must be a RopeScaling, or null")
        whole = isinstance(self.no_rope_layers, tuple) and set(self.no_rope_layers) <= set(range(self.num_layers))
        if not whole:
            allowed = f"it must be a tuple of numbers of layers, 0 to {self.num_layers - 1}"
            raise _refusal("no_rope_layers", self.no_rope_layers, allowed)
        if self.head_width % 2:
            raise _refusal("head_width", self.head_width, "it must be even")
        if self.num_heads % self.num_kv_heads:
            raise _refusal(
                "num_kv_heads",
                self.num_kv_heads,
                f"it must divide num_heads, which is {self.num_heads}",
            )


def _refusal(field: str, value: object, allowed: str) -> ValueError:
    return ValueError(f"{KEY}.{field}: {value!r} is not allowed; {allowed}")
