"""Attention over pages: a token alone reads them where they lie; many tokens read them as a part of the sequence.

Shapes: N tokens of a step, H query heads, G KV heads, g KV heads of a group, D head width, n keys at hand.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from lg.attention import attend
from lg.attention.impl.triton import paged
from lg.inference.cache import Cache, Kind
from lg.inference.formats import Format
from lg.inference.gather import Kept, Laid
from lg.inference.lifetime import PAGE
from lg.inference.state import Piece, State, Step, moved
from lg.inference.tables import Rows
from lg.models.rope import rotate


class PagedAttention(State):
    """Attention of one layer, whose keys and values lie in a cache.

    Args:
        cache: of all layers.
        layer: the number of this one.
        kind: the cache's pages of this layer's pattern.
        rotated: whether keys are kept rotated; if not, they are rotated whenever they are read.
        impl: "triton": lg's kernels; "auto": they where single tokens are read on a CUDA device and they take them, and
            what `attend` finds best where many are read; any other name: PyTorch for single tokens, and that
            implementation of `attend` for many.

    Raises:
        ValueError: if "triton" is asked for and cannot read these pages.
    """

    def __init__(self, cache: Cache, layer: int, kind: Kind, rotated: bool = True, impl: str = "auto") -> None:
        self.cache = cache
        self.kind = kind
        self.layer = kind.layers.index(layer)
        self.rotated = rotated
        self.impl = impl
        if impl == "triton" and (refusal := self._refusal(None)):
            raise ValueError(f"attention implementation 'triton' cannot read pages: {refusal}")

    def mix(self, inputs: tuple[Tensor, ...], step: Step) -> Tensor:
        """Attention of the step's tokens over what their sequences keep, and over each other: [N, H * D]."""
        q, k, v = (x.squeeze(0) for x in inputs)
        kernels = self._takes(q)
        if kernels and all(piece.count == 1 for piece in step.pieces):
            return self.together(q, k, v, self._rows(step)).flatten(1)
        if len(step.pieces) == 1 and step.pieces[0].count > 1:
            return self._many(step.pieces[0], q, k, v, step).transpose(0, 1).flatten(1)
        out, row, alone = torch.empty_like(q), 0, []
        for piece in step.pieces:
            rows = slice(row, row + piece.count)
            own = q[:, rows], k[:, rows], v[:, rows]
            if piece.count > 1:
                out[:, rows] = self._many(piece, *own, step)
            elif kernels:
                alone.append(row)
            else:
                out[:, rows] = self._alone(piece, *own, step)
            row = rows.stop
        if alone:
            # Made once: a list would be copied, and waited for, in every layer.
            at = step.once("alone", lambda: moved(torch.tensor(alone), q.device))
            out[:, at] = self.together(q[:, at], k[:, at], v[:, at], self._rows(step)).transpose(0, 1)
        return out.transpose(0, 1).flatten(1)

    # Kernels

    def _takes(self, q: Tensor) -> bool:
        """Whether kernels read the pages of single tokens."""
        if self.impl == "auto":
            return q.device.type == "cuda" and self._refusal(q.dtype) is None
        if self.impl == "triton" and (refusal := self._refusal(q.dtype)):
            raise ValueError(f"attention implementation 'triton' cannot read pages: {refusal}")
        return self.impl == "triton"

    def _refusal(self, dtype: torch.dtype | None) -> str | None:
        """Why they cannot."""
        if not self.rotated:
            return "keys that are kept before they are rotated are read by PyTorch alone"
        return paged.refusal(dtype, self.cache.head_width, self.kind.keys[0].device, self.kind.pattern.text)

    def kernels_refuse(self, dtype: torch.dtype) -> str | None:
        """Why kernels do not read the pages of single tokens, or are not asked to."""
        if self.impl not in ("auto", "triton"):
            return f"attention implementation {self.impl!r} is asked for"
        return self._refusal(dtype)

    def _rows(self, step: Step) -> Rows:
        return self.kind.tables.rows(step, self.cache.told)

    def together(self, q: Tensor, k: Tensor, v: Tensor, rows: Rows) -> Tensor:
        """Attention of one token of each sequence by kernels, on the device alone; they are kept first.

        Args:
            q: [H, S, D].
            k, v: [G, S, D].
            rows: whose they are.

        Returns:
            [S, H, D].
        """
        tables = self.kind.tables
        keys, values = (tuple(x[self.layer] for x in room) for room in (self.kind.keys, self.kind.values))
        paged.write(k.transpose(0, 1), v.transpose(0, 1), keys, values, tables.heads, rows.pages, rows.tokens)
        pages = paged.Pages(tables.logical, tables.physical, tables.counts, tables.heads, tables.told)
        scale = q.shape[-1] ** -0.5
        text = self.kind.pattern.text
        return paged.attention(q.transpose(0, 1), keys, values, pages, rows.slots, rows.lengths, text, scale)

    # One token

    def _alone(self, piece: Piece, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        """Attention of one token, q [H, 1, D]: its pages hold all that it sees, itself included."""
        self._keep(piece, k, v, step)
        out = torch.empty_like(q)
        per_kv = len(q) // len(k)
        doc = self.cache.documents(piece.slot, piece.first + 1)
        at = torch.tensor([piece.first], device=q.device)
        exact = torch.promote_types(q.dtype, torch.float32)
        for number, group in enumerate(self.kind.groups):
            logical = torch.from_numpy(group.tables[piece.slot].logical).to(q.device)
            tokens = (logical[:, None] * PAGE + torch.arange(PAGE, device=q.device)).flatten()
            keys, values = self._read(number, piece.slot, q.dtype)
            there = tokens <= piece.first
            of_group = self._query_heads(number, per_kv)
            query = q[of_group]
            if not self.rotated:
                keys = rotate(keys, *step.angles(tokens, piece.first + 1))
                query = rotate(query, *step.angles(at, piece.first + 1))
            seen = group.pattern.mask(at, tokens, 0, doc.doc(group.pattern.attributes, torch.zeros_like(at))) & there
            query, keys, values = (x.to(exact) for x in (query, keys, values))
            scores = query.view(len(keys), per_kv, -1) @ keys.transpose(1, 2) * q.shape[-1] ** -0.5
            # A token that sees nothing gathers nothing.
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()
            # What lies where nothing was written may be anything.
            values = values.masked_fill(~seen[:, None], 0.0)
            out[of_group] = (weights @ values).view_as(query).to(q.dtype)
        return out

    # Many tokens

    def _many(self, piece: Piece, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        """Attention of tokens that come together, q [H, count, D]: of their own keys only those seen later are kept."""
        laid = step.once((id(self.kind), piece, "laid"), lambda: self._laid(piece))
        if laid.part is None:
            out = torch.zeros_like(q)
        else:
            keys = laid.of(k, partial(self._lay, self.kind.keys, self.kind.formats[0]))
            values = laid.of(v, partial(self._lay, self.kind.values, self.kind.formats[1]))
            if not self.rotated:
                keys = rotate(keys, *step.angles(moved(laid.part.key_tokens, q.device), piece.end))
                at = torch.arange(piece.first, piece.end, device=q.device)
                q = rotate(q, *step.angles(at, piece.end))
            if laid.before:
                q = torch.nn.functional.pad(q, (0, 0, laid.before, 0))
            out = attend(q[None], keys[None], values[None], laid.part, self.impl)[0, :, laid.before :]
        self._keep(piece, k, v, step)
        return out

    def _laid(self, piece: Piece) -> Laid:
        """The keys that tokens which come together ask for; the same in all layers of the kind."""
        documents = self.cache.documents(piece.slot, piece.end)
        return Laid(self.kind.pattern, self.kind.groups, piece, documents, self._device)

    # Pages

    @property
    def _device(self) -> torch.device:
        return self.kind.keys[0].device

    def _query_heads(self, number: int, per_kv: int) -> Tensor:
        """The query heads of a group's KV heads: int64, on the device."""
        heads = torch.tensor(self.kind.groups[number].heads, device=self._device)
        return (heads[:, None] * per_kv + torch.arange(per_kv, device=self._device)).flatten()

    def _numbers(self, number: int, physical: Tensor) -> Tensor:
        """Pages of each head of a group: [g, n]."""
        size = len(self.kind.groups[number].heads)
        return self.kind.base[number] + physical * size + torch.arange(size, device=physical.device)[:, None]

    def _read(self, number: int, slot: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of a sequence's pages: each [g, n, D]."""
        table = self.kind.groups[number].tables[slot]
        pages = self._numbers(number, torch.from_numpy(table.physical)).to(self._device)
        forms: tuple[Format, Format] = self.kind.formats
        keys = forms[0].read(self.kind.keys, self.layer, pages.flatten(), dtype)
        values = forms[1].read(self.kind.values, self.layer, pages.flatten(), dtype)
        width = keys.shape[-1]
        return keys.view(len(pages), -1, width), values.view(len(pages), -1, width)

    def _lay(self, room: tuple[Tensor, ...], form: Format, pages: Tensor, places: Tensor, out: Tensor) -> None:
        """Reads pages of all groups, each into its place of ``out`` [G, n, D]; what lies beyond is left out."""
        if self._moves(out):
            paged.read(tuple(x[self.layer] for x in room), self.kind.tables.heads, pages, places, out)
            return
        for number, group in enumerate(self.kind.groups):
            of_group = places[number] >= 0
            numbers = self._numbers(number, pages[number, of_group].long())
            x = form.read(room, self.layer, numbers.flatten(), out.dtype).view(len(numbers), -1, out.shape[2])
            rows = (places[number, of_group].long()[:, None] + torch.arange(PAGE, device=out.device)).flatten()
            within = rows < out.shape[1]
            heads = torch.tensor(group.heads, device=out.device)
            out[heads[:, None], rows[within]] = x[:, within]

    def _keep(self, piece: Piece, k: Tensor, v: Tensor, step: Step) -> None:
        """Writes the tokens whose pages are there."""
        kept = step.once((id(self.kind), piece, "kept"), lambda: Kept(self.kind.groups, piece, self._device))
        if kept.first == piece.count:
            return
        k, v = k[:, kept.first :], v[:, kept.first :]
        if self._moves(k):
            keys, values = (tuple(x[self.layer] for x in room) for room in (self.kind.keys, self.kind.values))
            heads = self.kind.tables.heads
            paged.write(k.transpose(0, 1), v.transpose(0, 1), keys, values, heads, kept.pages, kept.tokens)
            return
        for number, group in enumerate(self.kind.groups):
            on = kept.pages[:, number] >= 0
            pages = self._numbers(number, kept.pages[on, number].long())
            places = (kept.tokens[on].long() % PAGE).expand_as(pages)
            for room, form, x in zip((self.kind.keys, self.kind.values), self.kind.formats, (k, v), strict=True):
                own = x[list(group.heads)][:, on].flatten(0, 1)
                form.write(room, self.layer, pages.flatten(), places.flatten(), own)

    def _moves(self, x: Tensor) -> bool:
        """Whether kernels move what is read and written there, whatever computes attention."""
        asked = self.impl == "triton" or x.device.type == "cuda"
        return asked and paged.refusal(x.dtype, self.cache.head_width, x.device) is None
