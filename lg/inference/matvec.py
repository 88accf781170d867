"""Products of one token with the weights, at the memory's speed: an operator, and a pass that puts it into graphs.

Libraries are made for products of matrices; a product with one row takes as long as the matrix takes to be read. What
is multiplied with the same row (queries, keys and values; the MLP's gate and up) is one launch here.

Shapes: K columns, N rows of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node
from torch.nn import functional as F

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Matrices that a launch takes.
_MOST = 4


class Launch(NamedTuple):
    """How the kernel is launched.

    Attributes:
        rows: of a matrix that a program takes, and
        columns: that it takes at a time: powers of two.
        num_warps: Triton's.
        num_stages: parts that are copied to shared memory ahead; with 1 the next part is in registers.
    """

    rows: int
    columns: int
    num_warps: int
    num_stages: int = 1


@cache
def launch_of(num_columns: int) -> Launch:
    """How matrices of so many columns are launched.

    In 16 bits a thread has 4 loads of 16 bytes of weights under way, or twice that. Of 17 launches that were timed on
    an H100 this one was the fastest, or nearly so, for every matrix of Llama 2 7B and Llama 3 8B.
    """
    columns = min(2048, max(256, 1 << (num_columns - 1).bit_length()))
    return Launch(4, columns, columns // 256)


def launched(x: Tensor, weights: Sequence[Tensor], launch: Launch | None = None) -> Tensor:
    """The kernel's `matvec`.

    Args:
        x, weights: as there.
        launch: another than lg's own.
    """
    from lg.inference import matvec_kernel

    assert 1 <= len(weights) <= _MOST and x.dtype in DTYPES
    assert all(w.is_contiguous() and w.shape[1] == x.shape[1] and w.dtype == x.dtype for w in weights)
    rows = [w.shape[0] for w in weights]
    how = launch or launch_of(x.shape[1])
    out, missing = x.new_empty(1, sum(rows)), _MOST - len(weights)
    grid = (sum(-(-n // how.rows) for n in rows),)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        matvec_kernel.products[grid](
            x.contiguous(), *weights, *[weights[0]] * missing, out, *rows, *[0] * missing,
            K=x.shape[1], ROWS=how.rows, COLUMNS=how.columns, WIDE=16 // x.element_size(),
            STAGES=how.num_stages,
            num_warps=how.num_warps,
        )  # fmt: skip
    return out


@torch.library.custom_op("lg::matvec", mutates_args=(), device_types="cuda")
def matvec(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The products of a row with up to 4 matrices, side by side.

    Args:
        x: [1, K].
        weights: [N, K] each, contiguous, in the type of ``x``: bfloat16, float16 or float32.

    Returns:
        [1, sum of N], summed in float32.
    """
    return launched(x, weights)


@matvec.register_kernel("cpu")
def _(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return torch.cat([F.linear(x, w) for w in weights], -1)


@matvec.register_fake
def _(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return x.new_empty(1, sum(w.shape[0] for w in weights))


class Matvecs(CustomGraphPass):
    """Puts `matvec` in the place of a graph's products of one row with weights.

    For torch's compiler, as its ``joint_custom_pre_pass``: there products are what they were written as.

    Args:
        device_types: of the products that are meant.
    """

    def __init__(self, device_types: frozenset[str] = frozenset({"cuda"})) -> None:
        self._device_types = device_types

    def __call__(self, graph: Graph) -> None:
        of_row: dict[Node, list[_Product]] = {}
        for product in self._products(graph):
            of_row.setdefault(product.x, []).append(product)
        for products in of_row.values():
            for first in range(0, len(products), _MOST):
                _replace(graph, products[first : first + _MOST])

    # Graphs that are compiled with a pass of the same kind serve whoever asks with another.

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._device_types == self._device_types

    def __hash__(self) -> int:
        return hash(self._device_types)

    def uuid(self) -> bytes:
        """By what the compiler knows its kept graphs."""
        return get_hash_for_files((__file__,), " ".join(sorted(self._device_types)))

    def _products(self, graph: Graph) -> Iterator[_Product]:
        for op, has_bias in ((torch.ops.aten.mm.default, False), (torch.ops.aten.addmm.default, True)):
            for node in graph.find_nodes(op="call_function", target=op):
                x, turned = node.args[-2:]
                # Weights lie there from the beginning; what is computed first stays with the library.
                if node.kwargs or turned.target is not torch.ops.aten.permute.default or list(turned.args[1]) != [1, 0]:
                    continue
                weight = turned.args[0]
                if weight.op != "placeholder" or not self._takes(x.meta["val"], weight.meta["val"]):
                    continue
                yield _Product(node, weight, has_bias)

    def _takes(self, x: Tensor, weight: Tensor) -> bool:
        same = x.device.type in self._device_types and x.dtype == weight.dtype and x.dtype in DTYPES
        # A size that is not known yet is no int.
        known = all(isinstance(n, int) for n in (*x.shape, *weight.shape))
        return same and known and x.shape[0] == 1 and weight.numel() > 0 and weight.is_contiguous()


class _Product(NamedTuple):
    """A product in a graph: of a row with ``weight``, and perhaps a bias added to it."""

    node: Node
    weight: Node
    has_bias: bool

    @property
    def x(self) -> Node:
        """The row, which may be a product itself: another node once that is replaced."""
        return cast("Node", self.node.args[-2])

    @property
    def bias(self) -> Node | None:
        """Likewise."""
        return cast("Node", self.node.args[0]) if self.has_bias else None


def _replace(graph: Graph, products: Sequence[_Product]) -> None:
    def call(op: torch._ops.OpOverload, *args: object) -> Node:
        node = graph.call_function(op, args)  # type: ignore[arg-type]
        node.meta["val"] = op(*torch.fx.map_arg(node.args, lambda arg: arg.meta["val"]))
        return node

    # The first of them in the graph: all that it takes is there.
    nodes = {product.node for product in products}
    with graph.inserting_before(next(node for node in graph.nodes if node in nodes)):
        together = call(torch.ops.lg.matvec.default, products[0].x, [product.weight for product in products])
    first = 0
    for product in products:
        node, bias = product.node, product.bias
        end = first + product.weight.meta["val"].shape[0]
        with graph.inserting_before(node):
            one = call(torch.ops.aten.slice.Tensor, together, 1, first, end) if len(products) > 1 else together
            if bias is not None:
                one = call(torch.ops.aten.add.Tensor, one, bias)
        node.replace_all_uses_with(one)
        graph.erase_node(node)
        first = end
