"""Writes measured tables of the README and of docs/kernels.md from benchmarks/results/*.json, and draws the README's
picture: nothing is made by hand.

python benchmarks/readme.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README, PAGE = HERE.parent / "README.md", HERE.parent / "docs" / "kernels.md"
BEGIN, END = "<!-- measured: benchmarks/readme.py -->\n", "<!-- end of measured -->\n"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown, figures to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def source(result: dict[str, Any]) -> str:
    """Device, versions, date and command."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"{result['device']}; {versions}; {result['date']}; `{result['command']}`.\n"


def laptop(result: dict[str, Any]) -> str:
    """The default run on a CPU."""
    rows = [
        [row["case"], f"{row['bits_per_byte']:.3f}", f"{row['step_s']:.2f} s", f"{row['whole_run_s']} s"]
        for row in result["rows"]
    ]
    counted = result["rows"][0]["count_model_bits_per_byte"]
    steps = result["rows"][0]["steps"]
    rows.append(["counting the last 2 bytes", f"{counted:.3f}", "", ""])
    return (
        f"On a CPU: `make fit` with each configuration, {steps} steps; held-out bits per byte.\n\n"
        + table(["", "bits per byte", "a step", "whole run"], rows)
        + f"\n{source(result)}"
    )


def gpu(result: dict[str, Any]) -> str:
    """The 1B shape on one GPU."""
    peer = result["rows"][-1]["tokens_per_s"]
    rows = [
        [row["case"], f"{row['tokens_per_s']:,}", f"{row['tokens_per_s'] / peer:.2f}x", f"{row['peak_GiB']:.1f} GiB"]
        for row in result["rows"]
    ]
    return (
        "On one GPU: training the llama-3.2-1b shape (random weights, bf16) at 32,768 tokens.\n\n"
        + table(["", "tokens/s", "against transformers", "peak memory"], rows)
        + f"\n{source(result)}"
    )


def attention(result: dict[str, Any]) -> str:
    """Attention alone at its longest, in short."""
    cases = {
        "causal": "full causal",
        "sink_window_2k": "window of 1,984 and 64 sinks",
        "strided_2k": "blocks: 16 local, every 128th",
        "packed_sink_window_2k": "the window and sinks, packed documents",
    }
    return (
        "Attention alone on one GPU, 131,072 tokens, 32 query and 8 KV heads of 128, bf16: ms forward / backward\n"
        "([more](docs/kernels.md)).\n\n"
        + milliseconds(result, cases, 131_072, 8, ("triton", "flash", "sdpa", "flex_flash", "flex"))
        + f"\n{source(result)}"
    )


def milliseconds(
    result: dict[str, Any], cases: Mapping[str, str], length: int, kv_heads: int, impls: Sequence[str]
) -> str:
    """A line a case, a column an implementation."""
    of = {
        (row["case"], row["impl"]): f"{row['fwd_ms']:.1f} / {row['bwd_ms']:.1f}"
        for row in result["rows"]
        if (row["length"], row["kv_heads"]) == (length, kv_heads) and "fwd_ms" in row
    }
    shown = [impl for impl in impls if any((case, impl) in of for case in cases)]
    return table(["", *shown], [[what, *(of.get((case, impl), "") for impl in shown)] for case, what in cases.items()])


def kernels(result: dict[str, Any]) -> str:
    """Every case that was timed: one table a length and number of KV heads, then rates, memory, and agreement."""
    timed = [row for row in result["rows"] if "fwd_ms" in row]
    parts = ["Milliseconds forward / backward, 32 query heads of 128, bf16.\n"]
    for length, kv_heads in dict.fromkeys((row["length"], row["kv_heads"]) for row in timed):
        cases = dict.fromkeys(row["case"] for row in timed if (row["length"], row["kv_heads"]) == (length, kv_heads))
        impls = ("triton", "flash", "sdpa", "flex_flash", "flex", "flex_best", "auto")
        told = milliseconds(result, {case: case for case in cases}, length, kv_heads, impls)
        parts.append(f"{length:,} tokens, {kv_heads} KV heads:\n\n{told}")
    rates = [
        [
            f"{row['case']}, {row['impl']}",
            f"{row['fwd_tflops']:.0f} / {row['bwd_tflops']:.0f}",
            f"{row['fwd_executed_tflops']:.0f} / {row['bwd_executed_tflops']:.0f}",
            f"{row['peak_MiB']:,.0f}",
            f"{max(row['errors'].values()):.4f}" if "errors" in row else "",
        ]
        for row in timed
        if (row["length"], row["kv_heads"]) == (131_072, 8) and row["impl"] != "auto"
    ]
    parts.append(
        "TFLOP/s forward / backward at 131,072 tokens and 8 KV heads, peak memory, and the greatest relative error of "
        "output\nand gradients against the first of each case:\n\n"
        + table(["", "useful", "executed", "MiB", "error"], rates)
    )
    return "\n".join([*parts, source(result)])


def rewritten(text: str) -> str:
    """The README with its measured part made anew."""
    results = _results()
    parts = laptop(results["laptop"]), gpu(results["first_light"]), attention(results["attention"])
    return _filled(text, "\n".join(parts))


def page_rewritten(text: str) -> str:
    """docs/kernels.md with its measured part made anew."""
    results = _results()
    beside = "In another run, beside flash-attn-4. "
    return _filled(text, "\n".join((kernels(results["attention"]), beside + kernels(results["attention_flash"]))))


def _results() -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in (HERE / "results").glob("*.json")}


def _filled(text: str, body: str) -> str:
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}{body}{END}", text, flags=re.DOTALL)


def picture() -> None:
    """What each layer of the flagship sees."""
    import yaml

    from lg.attention.pattern import NAMES
    from lg.attention.picture import sheet
    from lg.attention.schedule import layers

    model = yaml.safe_load((HERE.parent / "configs" / "hybrid.yaml").read_text())["model"]["init_args"]
    patterns = {
        name: NAMES[said]() if isinstance(said, str) else NAMES[said["class_path"]](**said["init_args"])
        for name, said in model["patterns"].items()
    }
    image = sheet(layers(model["schedule"], 6, list(patterns)), patterns, length=4096)
    image.save(HERE.parent / "docs" / "images" / "layers.png")


if __name__ == "__main__":
    picture()
    README.write_text(rewritten(README.read_text()))
    PAGE.write_text(page_rewritten(PAGE.read_text()))
