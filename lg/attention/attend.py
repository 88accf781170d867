"""`attend` computes attention under a pattern: the only place where an implementation is chosen.

>>> import torch
>>> from lg.attention import Documents, Window, attend
>>> q, k, v = torch.randn(1, 4, 100, 16), torch.randn(1, 2, 100, 16), torch.randn(1, 2, 100, 16)
>>> attend(q, k, v, Window(8).tiles(Documents(100, (0, 60)))).shape
torch.Size([1, 4, 100, 16])
"""

from __future__ import annotations

import logging
from functools import cache

from torch import Tensor

from lg.attention.check import refused
from lg.attention.impl import Implementation, dense, flash, flex, gather, sdpa, triton
from lg.attention.impl.proof import Proven
from lg.attention.pattern import Pattern
from lg.attention.rates import ranked
from lg.attention.routed import Routed, RoutedTiles
from lg.attention.tiles import Tiles

log = logging.getLogger(__name__)


IMPLEMENTATIONS: dict[str, Implementation] = {
    "dense": dense,
    "gather": gather,
    "sdpa": sdpa,
    "flex": flex.TRITON,
    "triton": triton,
    "flex_flash": Proven("flex_flash", flex.FLASH),
    "flash": Proven("flash", flash),
}

# What `auto` tries on each kind of device, and why each would be taken there: in this order, but first of all those
# that were measured, the fastest first.
_CHOICE = {
    "cuda": {
        "flash": "FlashAttention-4 is the fastest there is for it, and its gradients passed their check here",
        "sdpa": "everything before a query is seen",
        "flex_flash": "FlashAttention-4 skips the tiles that nobody sees, and its gradients passed their check here",
        "flex": "FlexAttention skips the tiles that nobody sees",
        "triton": "lg's own kernels skip the tiles that nobody sees",
    },
    "cpu": {
        "sdpa": "everything before a query is seen",
        "gather": "it trains on a CPU, in time linear in what is seen",
    },
}

# Of patterns that are chosen by content, anywhere.
_ROUTED = {
    "triton": "lg's kernels take tiles that are chosen on the device",
    "dense": "tiles are chosen by content, and without a GPU there are no kernels for that",
}


def attend(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, impl: str = "auto", scale: float | None = None) -> Tensor:
    """Attention of ``q`` over ``k`` and ``v``, each query seeing what the tiles' pattern lets it see.

    Args:
        q: queries [B, H, Lq, D]: those of ``tiles.queries``, by default all L.
        k: keys [B, G, L, D]; H is a multiple of G, and query head ``h`` reads KV head ``h // (H // G)``.
        v: values [B, G, L, D].
        tiles: a pattern on the documents of the sequence, from ``pattern.tiles(documents, num_kv_heads=G)``; it holds
            for every row of the batch.
        impl: "auto", or one of `IMPLEMENTATIONS` by name. A named one runs or raises; it never falls back.
        scale: what scores are multiplied by; ``D ** -0.5`` by default.

    Returns:
        [B, H, Lq, D] in the type of ``q``. A query that sees nothing gives 0.

    Raises:
        ValueError: if shapes do not fit, or the named implementation cannot compute this; with the reason.
    """
    implementation = chosen(q, k, v, tiles, impl)
    if isinstance(tiles.pattern, Routed):
        tiles = RoutedTiles(tiles, q, k)
    return implementation.run(q, k, v, tiles, q.shape[-1] ** -0.5 if scale is None else scale)


def chosen(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, impl: str = "auto") -> Implementation:
    """The implementation that `attend` takes; arguments and errors are the same.

    >>> import torch
    >>> from lg.attention import Documents, Window
    >>> q, k = torch.empty(1, 4, 100, 16), torch.empty(1, 2, 100, 16)
    >>> chosen(q, k, k, Window(8).tiles(Documents(100))) is IMPLEMENTATIONS["gather"]
    True
    """
    _check(q, k, v, tiles)
    return _best(q, k, v, tiles) if impl == "auto" else _named(impl, q, k, v, tiles)


def candidates(kind: str, pattern: Pattern) -> tuple[str, ...]:
    """The implementations that "auto" chooses among for a pattern on this kind of device, by name.

    >>> from lg.attention import Window
    >>> candidates("cpu", Window(8))
    ('sdpa', 'gather')
    """
    return tuple(_ROUTED if isinstance(pattern, Routed) else _CHOICE.get(kind, _CHOICE["cpu"]))


def _named(name: str, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> Implementation:
    if name not in IMPLEMENTATIONS:
        raise ValueError(
            f"attention implementation {name!r} is unknown; allowed are auto, {', '.join(IMPLEMENTATIONS)} "
            "(YAML: model.init_args.attention)"
        )
    refusal = _refusal(name, q, k, v, tiles)
    if refusal:
        raise ValueError(f"attention implementation {name!r} cannot compute this: {refusal}")
    return IMPLEMENTATIONS[name]


def _best(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> Implementation:
    refusals = []
    for name, reason in _order(q, k, tiles).items():
        refusal = _refusal(name, q, k, v, tiles)
        if refusal is None:
            _tell(name, str(tiles.pattern), q.device.type, reason)
            return IMPLEMENTATIONS[name]
        refusals.append(f"{name}: {refusal}")
    raise ValueError(f"no attention implementation takes {tiles.pattern} on {q.device}: {'; '.join(refusals)}")


def _order(q: Tensor, k: Tensor, tiles: Tiles) -> dict[str, str]:
    """What `auto` tries, and why each would be taken."""
    if isinstance(tiles.pattern, Routed):
        return _ROUTED
    allowed = _CHOICE.get(q.device.type, _CHOICE["cpu"])
    measured = {name: reason for name, reason in ranked(q, k, tiles) if name in allowed}
    return measured | {name: reason for name, reason in allowed.items() if name not in measured}


def _refusal(name: str, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> str | None:
    if isinstance(tiles.pattern, Routed) and name not in _ROUTED:
        return f"{tiles.pattern} is chosen by content, which only {' and '.join(_ROUTED)} compute"
    return IMPLEMENTATIONS[name].refusal(q, k, v, tiles) or refused(name, q, k, v, tiles)


@cache
def _tell(name: str, pattern: str, device: str, reason: str) -> None:
    """Says a choice once."""
    log.info("attention of %s on %s: %s, since %s", pattern, device, name, reason)


def _check(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> None:
    if not isinstance(tiles, Tiles):
        raise ValueError(f"{tiles!r} is not allowed as tiles; they are pattern.tiles(documents, num_kv_heads)")
    if not q.ndim == k.ndim == v.ndim == 4:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"q, k and v of shapes {shapes} are not allowed; they are [batch, heads, tokens, width]")
    (batch, heads, num_queries, width), (heads_kv, length) = q.shape, k.shape[1:3]
    if k.shape != v.shape or k.shape != (batch, heads_kv, length, width) or heads % heads_kv:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit: q must be [B, H, Lq, D] and "
            "k and v [B, G, L, D] with H a multiple of G"
        )
    if not (q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        raise ValueError(
            f"q of {q.dtype} on {q.device}, k of {k.dtype} on {k.device} and v of {v.dtype} on {v.device} do not fit: "
            "they must be of one type, on one device"
        )
    if (num_queries, length) != (tiles.num_queries, tiles.num_keys):
        raise ValueError(
            f"the tiles are of {tiles.num_queries} queries on {tiles.num_keys} tokens, "
            f"but q has {num_queries} and k and v have {length}"
        )
    if tiles.heads not in (1, heads_kv):
        raise ValueError(f"the tiles are of {tiles.heads} KV heads, but k and v have {heads_kv}")
