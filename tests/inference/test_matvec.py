"""One row times several matrices: the kernel, and the pass that puts it into graphs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from lg.attention import Causal
from lg.inference import matvec
from lg.inference.matvec import DTYPES, Launch, Matvecs, launch_of, launched
from lg.models.block import Block, build_mixer
from lg.models.config import DecoderConfig

ON_CPU = Matvecs(frozenset({"cpu"}))
# The interpreter cuts off what it rounds elsewhere.
OFF = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 1e-6}

# Where there is none, Triton's interpreter runs the kernel.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_columns", "rows", "launch"),
    [
        (257, (5,), None),
        (1500, (33, 1, 2, 9), None),
        (512, (16, 7), Launch(8, 256, 4)),
        (640, (3, 17, 8), Launch(16, 256, 1)),
        (700, (9, 4), Launch(4, 128, 1, 3)),
        (100, (9,), Launch(2, 256, 1)),
    ],
)
def test_products_of_a_row_with_matrices(
    dtype: torch.dtype, num_columns: int, rows: tuple[int, ...], launch: Launch | None
) -> None:
    pytest.importorskip("triton")
    generator = torch.Generator().manual_seed(0)
    x, *weights = (torch.randn(n, num_columns, generator=generator).to(dtype) for n in (1, *rows))
    want = torch.cat([x.double() @ w.double().T for w in weights], -1)
    got = launched(x.to(DEVICE), [w.to(DEVICE) for w in weights], launch).cpu()
    assert got.dtype == dtype and got.shape == want.shape
    scale = torch.cat([x.double().abs() @ w.double().abs().T for w in weights], -1)
    # Sums in float32, then one rounding.
    assert ((got - want).abs() <= OFF[dtype] * want.abs() + 2**-22 * scale).all()


def test_launches_fit_the_rows() -> None:
    for num_columns in (1, 32, 300, 4096, 11_008):
        launch = launch_of(num_columns)
        # A thread loads 16 bytes at least of each row, in 16 bits.
        assert launch.columns == 256 * launch.num_warps and launch.num_warps in (1, 2, 4, 8)
        assert num_columns >= launch.columns // 2 or launch.num_warps == 1


def test_the_operator_is_one_of_torch() -> None:
    x, *weights = (torch.randn(n, 24, generator=torch.Generator().manual_seed(n)) for n in (1, 8, 3))
    torch.library.opcheck(matvec.matvec, (x, weights), test_utils=("test_schema", "test_faketensor"))
    torch.testing.assert_close(torch.ops.lg.matvec(x, weights), torch.cat([F.linear(x, w) for w in weights], -1))


def traced(function: Callable[..., Tensor | tuple[Tensor, ...]], *inputs: Tensor, device: str = "cpu") -> GraphModule:
    """The function's graph as torch's compiler has it; on a device that need not be there."""
    with FakeTensorMode(), torch.no_grad():
        fake = [torch.empty(x.shape, dtype=x.dtype, device=device) for x in inputs]
        return make_fx(function, decomposition_table=select_decomp_table())(*fake)


def replaced(function: Callable[..., Tensor | tuple[Tensor, ...]], *inputs: Tensor) -> tuple[GraphModule, list[str]]:
    """The graph with launches in the place of products, and what it calls."""
    graph = traced(function, *inputs)
    ON_CPU(graph.graph)
    graph.graph.lint()
    graph.recompile()
    return graph, targets(graph)


def targets(graph: GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def three(x: Tensor, one: Tensor, two: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    return F.linear(x, one).relu(), F.linear(x, two, bias), F.linear(x + 1, one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_multiplied_with_the_same_row_is_one_launch(dtype: torch.dtype) -> None:
    inputs = [torch.randn(*shape, dtype=dtype) for shape in ((1, 24), (16, 24), (9, 24), (9,))]
    graph, called = replaced(three, *inputs)
    assert called.count("lg.matvec.default") == 2
    assert "aten.mm.default" not in called and "aten.addmm.default" not in called
    for got, want in zip(graph(*inputs), three(*inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)
    for node in graph.graph.nodes:
        assert node.op == "output" or "val" in node.meta


def test_more_matrices_than_a_launch_takes_are_several() -> None:
    x, *weights = (torch.randn(n, 24) for n in (1, *range(2, 8)))
    graph, called = replaced(lambda x, *weights: tuple(F.linear(x, w) for w in weights), x, *weights)
    assert called.count("lg.matvec.default") == 2
    for got, w in zip(graph(x, *weights), weights, strict=True):
        torch.testing.assert_close(got, F.linear(x, w))


@pytest.mark.parametrize(
    ("rows", "dtype", "device", "turned", "count"),
    [
        (1, torch.bfloat16, "cuda", False, 1),
        (1, torch.float16, "cuda", False, 1),
        (2, torch.bfloat16, "cuda", False, 0),
        (1, torch.float64, "cuda", False, 0),
        (1, torch.bfloat16, "cpu", False, 0),
        (1, torch.bfloat16, "cuda", True, 0),
    ],
)
def test_all_else_is_the_librarys(rows: int, dtype: torch.dtype, device: str, turned: bool, count: int) -> None:
    weight = torch.empty(24, 24, dtype=dtype)
    function = (lambda x, w: x @ w) if turned else F.linear
    graph = traced(function, torch.empty(rows, 24, dtype=dtype), weight, device=device)
    Matvecs()(graph.graph)
    assert targets(graph).count("lg.matvec.default") == count
    assert targets(graph).count("aten.mm.default") == 1 - count


def one_after_another(x: Tensor, one: Tensor, a: Tensor, b: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """As a low-rank layer is computed, and a layer without anything between its halves."""
    low = F.linear(x, a)
    return F.linear(x, one) + 2.0 * F.linear(low, b), F.linear(F.linear(low, b, bias), one), low


def test_a_product_may_be_the_row_of_another() -> None:
    inputs = [torch.randn(*shape) for shape in ((1, 24), (24, 24), (5, 24), (24, 5), (24,))]
    graph, called = replaced(one_after_another, *inputs)
    assert called.count("lg.matvec.default") == 3
    assert "aten.mm.default" not in called and "aten.addmm.default" not in called
    for got, want in zip(graph(*inputs), one_after_another(*inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_a_block_is_four_launches(bias: bool) -> None:
    config = DecoderConfig(2, 32, 4, 2, 8, 48, 61, qkv_bias=bias)
    with torch.device("meta"):
        block = Block(config, build_mixer(Causal(), config, 0, "auto"))
    names, parameters = zip(*block.named_parameters(), strict=True)

    class Half(nn.Module):
        def __init__(self, half: str) -> None:
            super().__init__()
            self.block, self.half = block, half

        def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
            return getattr(self.block, self.half)(*inputs)

    def graph(half: str, *inputs: Tensor) -> list[str]:
        def run(*given: Tensor) -> Tensor | tuple[Tensor, ...]:
            named = {f"block.{name}": p for name, p in zip(names, given, strict=False)}
            return torch.func.functional_call(Half(half), named, given[len(names) :])

        made = traced(run, *parameters, *inputs)
        ON_CPU(made.graph)
        return targets(made)

    x, mixed, angles = torch.empty(1, 32), torch.empty(1, 32), torch.empty(1, 4)
    for called, count in ((graph("pre", x, angles, angles), 1), (graph("post", x, mixed), 3)):
        assert called.count("lg.matvec.default") == count
        assert "aten.mm.default" not in called and "aten.addmm.default" not in called


def test_compiled_graphs_give_what_is_written_and_are_kept() -> None:
    x, one, two = (torch.randn(n, 24, generator=torch.Generator().manual_seed(n)) for n in (1, 8, 4))

    def function(x: Tensor, one: Tensor, two: Tensor) -> Tensor:
        return F.silu(F.linear(x, one))[:, :4] * F.linear(x, two)

    seen = []

    class Seen(Matvecs):
        def __call__(self, graph: torch.fx.Graph) -> None:
            super().__call__(graph)
            seen.append([str(node.target) for node in graph.nodes].count("lg.matvec.default"))

    with torch.no_grad():
        options = {"joint_custom_pre_pass": Seen(frozenset({"cpu"})), "fx_graph_cache": False}
        compiled = torch.compile(function, fullgraph=True, dynamic=False, options=options)
        torch.testing.assert_close(compiled(x, one, two), function(x, one, two))
    assert seen == [1]
    assert Matvecs().uuid() == Matvecs().uuid() != ON_CPU.uuid()
    assert Matvecs() == Matvecs() != ON_CPU and hash(Matvecs()) == hash(Matvecs())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_compiled_products_are_recorded_as_a_cuda_graph() -> None:
    x, one, two = (torch.randn(n, 1024, device="cuda", dtype=torch.bfloat16) for n in (1, 300, 70))

    def function(x: Tensor, one: Tensor, two: Tensor) -> Tensor:
        return F.silu(F.linear(x, one))[:, :70] * F.linear(x, two)

    with torch.no_grad():
        options = {"joint_custom_pre_pass": Matvecs()}
        compiled = torch.compile(function, fullgraph=True, dynamic=False, options=options)
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            compiled(x, one, two)
        side.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = compiled(x, one, two)
        x.normal_()
        graph.replay()
        want = function(x.double(), one.double(), two.double())
    torch.testing.assert_close(got.double(), want, rtol=0.05, atol=float(want.abs().max()) * 0.01)


AHEAD = """
import json, re, sys
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from lg.inference.matvec import launch_of
from lg.inference.matvec_kernel import products

told = []
for dtype, size in (("bf16", 2), ("fp16", 2), ("fp32", 4)):
    for num_columns in (4096, 11_008):
        launch = launch_of(num_columns)
        compiled_in = dict(
            K=num_columns, ROWS=launch.rows, COLUMNS=launch.columns, WIDE=16 // size, STAGES=launch.num_stages
        )
        pointers = dict.fromkeys(("X", "W0", "W1", "W2", "W3", "OUT"), "*" + dtype)
        signature = {**pointers, **dict.fromkeys(("n0", "n1", "n2", "n3"), "i32"),
                     **dict.fromkeys(compiled_in, "constexpr")}
        of_16 = {(place,): [["tt.divisibility", 16]] for place in range(len(pointers))}
        source = ASTSource(products, signature, compiled_in, of_16)
        made = compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options={"num_warps": launch.num_warps})
        told.append([re.findall(r"ld[.]global[.A-Za-z0-9:_]*", made.asm["ptx"]), made.metadata.shared])
print(json.dumps(told))
"""


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernel_compiles_for_gpus_and_loads_16_bytes(capability: int, tmp_path: Path) -> None:
    pytest.importorskip("triton.language")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", AHEAD, str(capability)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert len(told) == 6
    for loads, shared in told:
        assert loads and all(".v4.b32" in load for load in loads)
        assert shared < 1024
