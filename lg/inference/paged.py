"""Attention over pages: a token alone reads them where they lie; many tokens read them as a part of the sequence.

Shapes: N tokens of a step, H query heads, G KV heads, g KV heads of a group, D head width, n keys at hand.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lg.attention import Tiles, attend
from lg.attention.impl.triton import paged
from lg.attention.part import GRID, Part, merged, tokens_of
from lg.attention.tiles import Ranges, TileTable
from lg.inference.cache import Cache, Kind
from lg.inference.formats import Format
from lg.inference.lifetime import PAGE
from lg.inference.pages import Group
from lg.inference.state import Piece, State, Step
from lg.inference.tables import Rows
from lg.models.rope import rotate


def asked(table: TileTable, length: int) -> Ranges:
    """The keys that some query of a table may see, in whole blocks of a sequence of ``length`` tokens."""
    change = torch.zeros(table.num_columns + 1, dtype=torch.int64)
    for first, end in (
        (table.run_first, table.run_first + table.run_count),
        (table.partial_index, table.partial_index + 1),
    ):
        change.index_add_(0, first, torch.ones_like(first))
        change.index_add_(0, end, -torch.ones_like(end))
    blocks = change.cumsum(0).nonzero().squeeze(1).tolist()
    return merged([(block * table.block_k, min((block + 1) * table.block_k, length)) for block in blocks])


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
            own = q[:, alone], k[:, alone], v[:, alone]
            out[:, alone] = self.together(*own, self._rows(step)).transpose(0, 1)
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
        self._keep(piece, k, v)
        out = torch.empty_like(q)
        per_kv = len(q) // len(k)
        doc = self.cache.documents(piece.slot, piece.first + 1)
        at = torch.tensor([piece.first], device=q.device)
        exact = torch.promote_types(q.dtype, torch.float32)
        for number, group in enumerate(self.kind.groups):
            tokens = self._tokens(group, piece.slot).to(q.device)
            keys, values = self._read(number, piece.slot, q.dtype)
            there = tokens <= piece.first
            heads = torch.tensor(group.heads, device=q.device)
            of_group = (heads[:, None] * per_kv + torch.arange(per_kv, device=q.device)).flatten()
            query = q[of_group]
            if not self.rotated:
                keys = rotate(keys, *step.angles(tokens, piece.first + 1))
                query = rotate(query, *step.angles(at, piece.first + 1))
            seen = group.pattern.mask(at, tokens, 0, doc.doc(group.pattern.attributes, torch.zeros_like(at))) & there
            query, keys, values = (x.to(exact) for x in (query, keys, values))
            scores = query.view(len(heads), per_kv, -1) @ keys.transpose(1, 2) * q.shape[-1] ** -0.5
            # A token that sees nothing gathers nothing.
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()
            # What lies where nothing was written may be anything.
            values = values.masked_fill(~seen[:, None], 0.0)
            out[of_group] = (weights @ values).view_as(query).to(q.dtype)
        return out

    # Many tokens

    def _many(self, piece: Piece, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        """Attention of tokens that come together, q [H, count, D]: of their own keys only those seen later are kept."""
        out = torch.empty_like(q)
        per_kv = len(q) // len(k)
        end = piece.first + piece.count
        # Whose queries begin on the grid; those before the first stand empty.
        start = piece.first // GRID * GRID
        if not self.rotated:
            q = rotate(q, *step.angles(torch.arange(piece.first, end, device=q.device), end))
        query = torch.nn.functional.pad(q, (0, 0, piece.first - start, 0))
        for number, group in enumerate(self.kind.groups):
            heads = torch.tensor(group.heads, device=q.device)
            documents = self.cache.documents(piece.slot, end)
            ranges = asked(Tiles(group.pattern, documents, len(heads), (start, end)).table(GRID, GRID), end)
            of_group = (heads[:, None] * per_kv + torch.arange(per_kv, device=q.device)).flatten()
            if not ranges:
                out[of_group] = 0
                continue
            places = tokens_of(ranges)
            tokens = self._tokens(group, piece.slot)
            tokens = torch.cat((tokens.masked_fill(tokens >= piece.first, -1), torch.arange(piece.first, end)))
            # What nobody asks for is left out; what only the empty queries ask for is not there, and stays 0.
            at = torch.searchsorted(places, tokens).clamp(max=len(places) - 1)
            rows = (places[at] == tokens).nonzero().squeeze(1)
            columns, rows = at[rows].to(q.device), rows.to(q.device)
            both = []
            for held, own in zip(self._read(number, piece.slot, q.dtype), (k, v), strict=True):
                laid = q.new_zeros(len(heads), len(places), q.shape[-1])
                laid[:, columns] = torch.cat((held, own[heads]), 1)[:, rows]
                both.append(laid)
            if not self.rotated:
                both[0] = rotate(both[0], *step.angles(places.to(q.device), end))
            part = Part(group.pattern.tiles(documents, len(heads)), ((start, end),), ranges)
            seen = attend(query[of_group][None], both[0][None], both[1][None], part, self.impl)
            out[of_group] = seen[0, :, piece.first - start :]
        self._keep(piece, k, v)
        return out

    # Pages

    def _tokens(self, group: Group, slot: int) -> Tensor:
        """The tokens of a sequence's pages, those to come included: int64 [n], on the host."""
        logical = torch.from_numpy(group.tables[slot].logical)
        return (logical[:, None] * PAGE + torch.arange(PAGE)).flatten()

    def _numbers(self, number: int, physical: Tensor) -> Tensor:
        """Pages of each head of a group: [g, n]."""
        group = self.kind.groups[number]
        return self.kind.base[number] + physical * len(group.heads) + torch.arange(len(group.heads))[:, None]

    def _read(self, number: int, slot: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of a sequence's pages: each [g, n, D]."""
        table = self.kind.groups[number].tables[slot]
        device = self.kind.keys[0].device
        pages = self._numbers(number, torch.from_numpy(table.physical)).to(device)
        forms: tuple[Format, Format] = self.kind.formats
        keys = forms[0].read(self.kind.keys, self.layer, pages.flatten(), dtype)
        values = forms[1].read(self.kind.values, self.layer, pages.flatten(), dtype)
        width = keys.shape[-1]
        return keys.view(len(pages), -1, width), values.view(len(pages), -1, width)

    def _keep(self, piece: Piece, k: Tensor, v: Tensor) -> None:
        """Writes the tokens whose pages are there."""
        tokens = torch.arange(piece.first, piece.first + piece.count)
        for number, group in enumerate(self.kind.groups):
            table = group.tables[piece.slot]
            logical, physical = torch.from_numpy(table.logical), torch.from_numpy(table.physical)
            at = torch.searchsorted(logical, tokens // PAGE).clamp(max=max(len(logical) - 1, 0))
            kept = logical[at] == tokens // PAGE if len(logical) else torch.zeros_like(tokens, dtype=torch.bool)
            if not bool(kept.any()):
                continue
            pages = self._numbers(number, physical[at[kept]]).to(k.device)
            places = (tokens[kept] % PAGE).to(k.device).expand_as(pages)
            rows, heads = kept.to(k.device), torch.tensor(group.heads, device=k.device)
            for room, form, x in zip((self.kind.keys, self.kind.values), self.kind.formats, (k, v), strict=True):
                own = x[heads][:, rows].flatten(0, 1)
                form.write(room, self.layer, pages.flatten(), places.flatten(), own)
