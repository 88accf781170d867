"""What transformers says of who sees whom in a batch, as lg's patterns and documents: padding, packing and caches.

transformers calls one function for each kind of mask and forward pass, and hands what it returns to every layer of that
kind. lg returns a `Mask`: no tensor, but the rows' documents, and the tiles of each pattern once they are asked for.

Shapes: B batch, L keys, Lq queries, H query heads, G KV heads, D head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lg.attention import Causal, Documents, Pattern, Tiles, Window, attend


@dataclass(frozen=True, eq=False)
class Mask:
    """Where the documents of each row lie, and what the model's configuration lets its layers see.

    Attributes:
        pattern: what the model's own mask says; None if lg has no pattern for it: such a layer must be given one.
        rows: the starts of each row's documents, counted from its first key; a single entry if all rows are alike.
            Padding is a document of its own.
        length: keys of a row, the queries' own at their end included.
        num_queries: queries of a row.
        dropped: keys before those, which a sliding cache has let go.
    """

    pattern: Pattern | None
    rows: tuple[tuple[int, ...], ...]
    length: int
    num_queries: int
    dropped: int = 0
    _tiles: dict[tuple[Pattern, int], list[Tiles]] = field(default_factory=dict)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, impl: str, scale: float | None) -> Tensor:
        """Attention of q [B, H, Lq, D] over k and v [B, G, L, D] under a pattern: [B, H, Lq, D].

        Raises:
            ValueError: if keys and queries are not those that the mask was made for, a sliding cache has dropped what
                the pattern sees, or the pattern is not causal.
        """
        if (q.shape[2], k.shape[2]) != (self.num_queries, self.length):
            raise ValueError(
                f"the mask is of {self.num_queries} queries on {self.length} keys, but the layer has {q.shape[2]} "
                f"queries and {k.shape[2]} keys: cross attention and caches that keep other keys than they say are not "
                "computed by lg"
            )
        tiles = self.tiles(pattern, k.shape[1])
        if len(self.rows) == 1:
            return attend(q, k, v, tiles[0], impl, scale)
        if len(tiles) == 1:
            packed = attend(_end_to_end(q), _end_to_end(k), _end_to_end(v), tiles[0], impl, scale)
            return packed.view(q.shape[1], *q.shape[::2], -1).transpose(0, 1)
        rows = [slice(row, row + 1) for row in range(len(tiles))]
        return torch.cat([attend(q[i], k[i], v[i], own, impl, scale) for i, own in zip(rows, tiles, strict=True)])

    def tiles(self, pattern: Pattern, num_kv_heads: int) -> list[Tiles]:
        """The pattern on the batch: one entry for all rows, or one for each. Built once for all layers of a pass.

        Rows that differ are laid end to end as one packed sequence if every key asks; queries of several rows that
        follow a cache are no single chunk of such a sequence.
        """
        key = (pattern, num_kv_heads)
        if key not in self._tiles:
            self._refuse(pattern, num_kv_heads)
            self._tiles[key] = self._built(pattern, num_kv_heads)
        return self._tiles[key]

    def _built(self, pattern: Pattern, num_kv_heads: int) -> list[Tiles]:
        if len(self.rows) > 1 and self.num_queries == self.length:
            starts = [row * self.length + start for row, starts in enumerate(self.rows) for start in starts]
            return [pattern.tiles(Documents(len(self.rows) * self.length, starts), num_kv_heads)]
        queries = (self.length - self.num_queries, self.length)
        return [pattern.tiles(Documents(self.length, starts), num_kv_heads, queries) for starts in self.rows]

    def _refuse(self, pattern: Pattern, num_kv_heads: int) -> None:
        before = self.length - self.num_queries
        # Only a window reads the same when keys are counted from another start.
        if self.dropped and not (isinstance(pattern, Window) and pattern.window - 1 <= before):
            raise ValueError(
                f"{pattern} may see keys that the sliding cache has dropped (it keeps {before} of "
                f"{self.dropped + before}); hand the model a cache that keeps all: "
                "past_key_values=transformers.DynamicCache()"
            )
        # Few lengths are looked at, so that decoding does not look again at every token.
        longest = 1 << (self.dropped + self.length - 1).bit_length()
        if sees_later(pattern, num_kv_heads, longest):
            raise ValueError(
                f"{pattern} lets a query see later keys, which training would leak and a cache has not yet; "
                "write `& Causal()` into it"
            )


def _end_to_end(x: Tensor) -> Tensor:
    """Rows [B, heads, L, D] as one: [1, heads, B * L, D]."""
    return x.transpose(0, 1).flatten(1, 2)[None]


@lru_cache(maxsize=256)
def sees_later(pattern: Pattern, num_kv_heads: int, length: int) -> bool:
    """`Pattern.sees_later`, asked once for all passes."""
    return pattern.sees_later(length, num_kv_heads)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def mask(
    *,
    batch_size: int,
    kv_length: int,
    kv_offset: int,
    mask_function: Callable[..., Any],
    attention_mask: Tensor | None = None,
    q_length: int | None = None,
    q_offset: int | Tensor = 0,
    cache_position: Tensor | None = None,
    **ignored: Any,
) -> Mask:
    """The mask of one forward pass: what transformers' mask interface calls.

    Args:
        batch_size: rows B.
        kv_length: keys of a row.
        kv_offset: keys before them that the cache has dropped.
        mask_function: transformers' own predicate of batch, head, query and key.
        attention_mask: True where a key is no padding, bool [B, at least kv_offset + kv_length].
        q_length: queries of a row.
        q_offset: tokens before the first query.
        cache_position: the tokens that ask, by their index; from transformers below 5, which says neither of these.
        ignored: how the libraries that transformers knows want their masks.

    Raises:
        ValueError: naming what lg does not compute: other masks than causal ones, padding amid a row, static caches.
    """
    if cache_position is not None:
        q_length, q_offset = cache_position.numel(), int(cache_position[0])
    assert q_length is not None
    if kv_offset + kv_length != int(q_offset) + q_length:
        raise ValueError(
            f"queries {int(q_offset)} to {int(q_offset) + q_length} on keys {kv_offset} to {kv_offset + kv_length}: "
            'lg needs keys that end where queries end; static caches (cache_implementation="static") and prefix tuning '
            "are not allowed"
        )
    said = _Said()
    said.read(mask_function)
    if said.packed is not None:
        rows = _packed(said.packed)
    elif attention_mask is not None:
        rows = _padded(attention_mask, kv_offset, kv_length)
    else:
        rows = ((0,),)
    return Mask(said.pattern, rows if len(set(rows)) > 1 else rows[:1], kv_length, q_length, kv_offset)


@dataclass
class _Said:
    """What transformers' predicate says, read off the functions that it is made of.

    They are closures; a part that is not known here is refused, so nothing is left out when there are new ones.
    """

    pattern: Pattern | None = field(default_factory=Causal)
    packed: Tensor | None = None

    def read(self, function: Callable[..., Any]) -> None:
        name = function.__qualname__.split(".")[0]
        own = function.__module__ == "transformers.masking_utils"
        holds = inspect.getclosurevars(function).nonlocals
        match name if own else None:
            case "causal_mask_function":
                pass
            case "and_masks":
                for part in holds["mask_functions"]:
                    self.read(part)
            case "remap_positions_for_packed_sequence":
                self.read(holds["mask_function"])
            case "packed_sequence_mask_function":
                self.packed = holds["packed_sequence_mask"]
            case "sliding_window_overlay":
                # 0 in configurations that make this mask and use it in no layer (Qwen2-MoE).
                self.pattern = Window(holds["sliding_window"]) if holds["sliding_window"] else None
            case "chunked_overlay":
                self.pattern = None
            case _:
                raise ValueError(
                    f"the model's mask has a part that lg does not compute: {function.__module__}."
                    f"{function.__qualname__}; allowed are causal masks, sliding windows, packing and padding, not "
                    "encoders, bidirectional blocks or functions of your own"
                )


def _packed(sequence: Tensor) -> tuple[tuple[int, ...], ...]:
    """Starts of documents, from the number of each token's [B, L]."""
    begins = (sequence.diff(dim=1) != 0).cpu()
    return tuple((0, *(row.nonzero().flatten() + 1).tolist()) for row in begins)


def _padded(attention_mask: Tensor, offset: int, length: int) -> tuple[tuple[int, ...], ...]:
    """Starts of documents, of which one is no padding: [B, at least offset + length]."""
    if attention_mask.ndim != 2 or attention_mask.shape[1] < offset + length:
        raise ValueError(
            f"attention_mask of shape {tuple(attention_mask.shape)} is not allowed; it must be [B, {offset + length}]: "
            "the tokens in the cache, and those of this pass"
        )
    real = attention_mask[:, offset : offset + length].bool()
    begins = real[:, :1].int().sum(1) + (real[:, 1:] & ~real[:, :-1]).sum(1)
    rows = []
    for row, (runs, first, count) in enumerate(torch.stack((begins, real.int().argmax(1), real.sum(1)), 1).tolist()):
        if runs > 1:
            raise ValueError(
                f"attention_mask has padding between the tokens of row {row}; only padding before or after all tokens "
                "is allowed (for generation, pad on the left)"
            )
        rows.append(tuple(sorted({0, first, first + count} - {length})))
    return tuple(rows)
