"""Attention over a sequence that several ranks share: fetches the keys and values that a layer's pattern needs.

`ContextAttend` stands in for `lg.attention.attend`. Forward, keys and values travel in their own type to the ranks
whose queries see them, by the `Plan` of the pattern on the batch. Backward, their gradients travel back, and their
owner adds them up in float32, always in one order.

What was fetched is not kept for the backward pass, where it would be as large as the whole sequence in each layer: its
memory is given up after the forward pass, as FSDP does with gathered weights, and it is fetched again. Keys and values
may go by groups of heads: one group travels while the one before it computes, in both directions.

Shapes: H query heads, G KV heads, D head width; on this rank n tokens, r received, m sent.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lg.attention import Tiles, attend
from lg.attention.part import Part
from lg.parallel.plan import Plan, plan_of


class ContextAttend:
    """`attend` for one layer of a decoder whose sequences lie on the ranks of a group.

    Args:
        group: ranks that share each sequence; rank i of the group is rank i of a batch's `Split`.
        num_groups: groups of KV heads that travel one after the other, where much travels. Heads that see different
            keys go as one.

    Attributes:
        received_bytes: what other ranks have sent here for this layer, forward and backward; set it to 0 at will.
    """

    def __init__(self, group: dist.ProcessGroup, num_groups: int = 1) -> None:
        assert num_groups >= 1
        self.group = group
        self.num_groups = num_groups
        self.received_bytes = 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, impl: str = "auto") -> Tensor:
        """Attention [1, H, n, D] of the tokens that are held.

        All ranks of the group must ask, and go backward if one does.

        Args:
            q: [1, H, n, D].
            k, v: [1, G, n, D], of the same tokens.
            tiles: of these queries against all keys: a part that knows who holds what. Tiles of a sequence that is not
                shared go to `attend` as they are.
            impl: as in `attend`.

        Raises:
            ValueError: as `attend`.
        """
        if not isinstance(tiles, Part) or tiles.held is None:
            return attend(q, k, v, tiles, impl)
        assert tiles.held.split.num_ranks == self.group.size() and tiles.held.rank == self.group.rank()
        assert q.shape[0] == 1 and q.shape[2] == k.shape[2] == tiles.num_queries
        plan = plan_of(tiles)
        if not plan.tokens.any():
            return attend(q, k, v, plan.part, impl)
        num_groups = min(self.num_groups, k.shape[1]) if plan.by_heads else 1
        return self._by_groups(q, k, v, plan, impl, -(-k.shape[1] // num_groups))

    def _by_groups(self, q: Tensor, k: Tensor, v: Tensor, plan: Plan, impl: str, heads: int) -> Tensor:
        """As many KV heads at a time; those of each group leave before the group ahead of it computes."""
        queries = torch.split(q, heads * (q.shape[1] // k.shape[1]), 1)
        own = list(zip(torch.split(k, heads, 1), torch.split(v, heads, 1), strict=True))
        trips = [_Trip(self, plan, k.device) for _ in own]
        outs, coming = [], [_depart(*own[0], trips[0])]
        for n, trip in enumerate(trips):
            if n + 1 < len(trips):
                coming.append(_depart(*own[n + 1], trips[n + 1]))
            # Popped, so that the buffer's memory is free while attention computes.
            fetched = _arrive(coming.pop(0), trip)
            keys, values = (x.transpose(0, 1).unsqueeze(0) for x in fetched.unbind(1))
            out = attend(queries[n], keys, values, plan.part, impl)
            if out.requires_grad:
                before, near = (trips[n - 1], own[n - 1 : n + 1]) if n else (None, own[:1])
                saved = [x.detach() for pair in reversed(near) for x in pair]
                out = _GivenUp.apply(out, fetched.detach(), trip, before, *saved)  # type: ignore[no-untyped-call]
            outs.append(out)
        return torch.cat(outs, 1) if len(outs) > 1 else outs[0]

    def travel(self, rows: Tensor, into: Tensor, sent: list[int], received: list[int]) -> dist.Work:
        """Starts an exchange of ``rows`` for what comes ``into`` another tensor: so many to and from each rank."""
        self.received_bytes += into.nbytes
        work: dist.Work = dist.all_to_all_single(into, rows, received, sent, group=self.group, async_op=True)
        return work


class _Trip:
    """The keys and values of some heads in one forward and backward pass, in which one thing travels at a time.

    On their way they are rows of a buffer [n + r, 2, G, D], as `Places` has them. No tensor is held here that lives
    from the forward to the backward pass: autograd saves those, and whoever recomputes a layer must be able to drop
    them.
    """

    def __init__(self, exchange: ContextAttend, plan: Plan, device: torch.device) -> None:
        self.exchange, self.plan = exchange, plan
        self.places = plan.places(device)
        self.again: Tensor | None = None

    def depart(self, k: Tensor, v: Tensor) -> Tensor:
        """Sends what others need of k and v [1, G, n, D]. The buffer; what is received is not in it yet."""
        plan, num_held = self.plan, k.shape[2]
        buffer = k.new_empty(num_held + sum(plan.received), 2, k.shape[1], k.shape[3])
        torch.stack((k[0].transpose(0, 1), v[0].transpose(0, 1)), 1, out=buffer[:num_held])
        self.sent = buffer.index_select(0, self.places.sent)
        self.work = self.exchange.travel(self.sent, buffer[num_held:], plan.sent, plan.received)
        return buffer

    def arrive(self, buffer: Tensor) -> Tensor:
        """What the buffer holds once all has come, in the order of the sequence: [n + r, 2, G, D]."""
        self.work.wait()
        del self.sent
        return buffer.index_select(0, self.places.ascending)

    def arrive_again(self, fetched: Tensor) -> None:
        """Puts the same into ``fetched``, whose memory was given up."""
        assert self.again is not None
        buffer, self.again = self.again, None
        self.work.wait()
        del self.sent
        fetched.untyped_storage().resize_(fetched.nbytes)
        # Autograd must take it for what it saved: written through `data`, it is of the same version.
        torch.index_select(buffer, 0, self.places.ascending, out=fetched.data)

    def turn_back(self, grad: Tensor) -> Tensor:
        """Sends the gradients [n + r, 2, G, D] of what was fetched to their owners; they as rows of a buffer."""
        plan = self.plan
        rows = grad.index_select(0, self.places.back)
        self.returned = rows.new_empty(sum(plan.sent), *rows.shape[1:])
        self.work = self.exchange.travel(rows[plan.num_held :], self.returned, plan.received, plan.sent)
        return rows

    def sum_up(self, rows: Tensor) -> Tensor:
        """The gradients of own keys and values: own ones [n, 2, G, D] and those that came back, rank after rank."""
        self.work.wait()
        if not self.returned.numel():
            return rows
        total = rows.to(torch.promote_types(rows.dtype, torch.float32), copy=True)
        places, parts = torch.split(self.places.sent, self.plan.sent), torch.split(self.returned, self.plan.sent)
        for place, part in zip(places, parts, strict=True):
            # A rank receives a token once: no two of these rows are added to one, so none waits for another.
            total.index_add_(0, place, part.to(total.dtype))
        del self.returned
        return total.to(rows.dtype)


class _Depart(torch.autograd.Function):
    """Keys and values leave; backward, their gradients have come back."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, trip: _Trip) -> Tensor:
        ctx.trip = trip
        return trip.depart(k, v)

    @staticmethod
    def backward(ctx: Any, rows: Tensor) -> tuple[Tensor, Tensor, None]:
        total = ctx.trip.sum_up(rows[: ctx.trip.plan.num_held])
        dk, dv = (x.transpose(0, 1).unsqueeze(0) for x in total.unbind(1))
        return dk, dv, None


class _Arrive(torch.autograd.Function):
    """Keys and values have come; backward, their gradients leave."""

    @staticmethod
    def forward(ctx: Any, buffer: Tensor, trip: _Trip) -> Tensor:
        ctx.trip = trip
        return trip.arrive(buffer)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.trip.turn_back(grad), None


class _GivenUp(torch.autograd.Function):
    """What was fetched is given up once attention has computed; before its backward pass it is fetched again.

    Backward, the group before this one leaves now, so that it travels while this one computes.
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, fetched: Tensor, trip: _Trip, before: _Trip | None, *own: Tensor) -> Tensor:
        # Of `own`, keys and values of this group come first, then those of the one before.
        ctx.trip, ctx.before = trip, before
        ctx.save_for_backward(fetched, *own)
        fetched.untyped_storage().resize_(0)
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        fetched, k, v, *before = ctx.saved_tensors
        if ctx.trip.again is None:
            ctx.trip.again = ctx.trip.depart(k, v)
        if ctx.before is not None:
            ctx.before.again = ctx.before.depart(*before)
        ctx.trip.arrive_again(fetched)
        return grad, *[None] * (5 + len(before))


def _depart(k: Tensor, v: Tensor, trip: _Trip) -> Tensor:
    buffer: Tensor = _Depart.apply(k, v, trip)  # type: ignore[no-untyped-call]
    return buffer


def _arrive(buffer: Tensor, trip: _Trip) -> Tensor:
    fetched: Tensor = _Arrive.apply(buffer, trip)  # type: ignore[no-untyped-call]
    return fetched
