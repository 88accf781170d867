"""The kernels compile for every device that lg names, without one, in a process in which Triton compiles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton.language")


def run(arguments: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    """A Python process that compiles kernels, and keeps them in a cache of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_sample_of_the_kernels_compiles_and_fits_every_device(tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    ran = run(["-W", "error", "-m", "lg.attention.impl.triton.ahead", "--json", str(told)], tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    reports = json.loads(told.read_text())
    assert not ran.stderr
    for capability in (80, 90, 100):
        kernels = {report["kernel"] for report in reports if report["case"].startswith(f"sm_{capability},")}
        assert kernels >= {"attention_forward", "attention_backward_query", "attention_backward_key"}
    kernels = {report["kernel"] for report in reports}
    assert kernels >= {"sum_of_shares", "write_pages", "paged_attention", "join_shares"}
    for report in reports:
        assert report["error"] is None
        assert report["registers"] > 0
        attention = "attention" in report["kernel"]
        # On the tensor cores, and in float32 on the others; and with copies that overlap with them.
        assert (report["products"] > 0) == (attention and "float32" not in report["case"])
        assert (report["copies"] + report["bulk_copies"] > 0) == attention


PREDICATES = """
import sys
sys.path.insert(0, sys.argv[1])
import triton
import triton.language as tl
from examples import COMPOSED, PATTERNS
from lg.attention import Causal, PerHead, Window
from lg.attention.impl.triton.predicate import function
from triton.backends.compiler import GPUTarget

@triton.jit
def counts(OUT, ATTRIBUTES, stride, SEES: tl.constexpr, N: tl.constexpr):
    query, key = tl.program_id(0) * N + tl.arange(0, N), tl.arange(0, N)
    seen = SEES(query[:, None], key[None, :], tl.program_id(1), ATTRIBUTES, stride, query[:, None])
    tl.store(OUT + query, tl.sum(seen.to(tl.int32), 1))

signature = {"OUT": "*i32", "ATTRIBUTES": "*i32", "stride": "i32", "SEES": "constexpr", "N": "constexpr"}
many = PerHead(patterns=(Causal(), Window(5)), heads=(0, 1) * 100)
texts = {pattern.text for pattern in (*PATTERNS, *COMPOSED, many)} | {"True", "q < 3", "(q - k) // (k + 1) < -2"}
kernels = set()
for text in sorted(texts):
    source = triton.compiler.ASTSource(counts, signature, {"SEES": function(text), "N": 32})
    options = {"num_warps": 1, "enable_fp_fusion": True}
    kernels.add(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).hash)
assert len(kernels) == len(texts), "two predicates are one kernel to Triton's cache"
"""


@pytest.mark.slow
def test_every_predicate_compiles_and_is_a_kernel_of_its_own(tmp_path: Path) -> None:
    # Triton reads functions from files.
    script = tmp_path / "predicates.py"
    script.write_text(PREDICATES)
    ran = run(["-W", "error", str(script), str(Path(__file__).parents[1])], tmp_path / "cache")
    assert ran.returncode == 0, ran.stderr


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    script = """
import torch
from lg.attention import Causal
from lg.attention.impl.triton import ahead
from lg.attention.impl.triton.options import Launch, Options

ahead.SHARED[80], ahead.SPILLED = 5000, -1
small = Launch(16, 16, 1, 2)
reports = ahead.compiled(ahead.Case(80, Causal(), torch.bfloat16, 64, 1, False), Options(small, small, small))
assert [report.kernel for report in reports[:2]] == ["attention_forward", "attention_backward_query"]
for report in reports[:3]:
    assert f"{report.shared} bytes of shared memory; there are 5000" in report.error
    assert f"a thread spills {report.spilled} bytes; -1 are allowed" in report.error

[report] = ahead.compiled(ahead.Case(90, Causal(), torch.float64, 64, 1, False), Options(small, small, small))
assert "Error: " in report.error, report
"""
    ran = run(["-c", script], tmp_path)
    assert ran.returncode == 0, ran.stderr


def test_in_the_interpreter_nothing_is_compiled() -> None:
    command = [sys.executable, "-m", "lg.attention.impl.triton.ahead"]
    ran = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert ran.returncode == 2
    assert "TRITON_INTERPRET is set" in ran.stderr
