"""Writes measured tables of the README and of pages of docs/ from benchmarks/results/*.json, and draws the README's
picture: nothing is made by hand.

python benchmarks/readme.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import frontier

HERE = Path(__file__).parent
README, DOCS = HERE.parent / "README.md", HERE.parent / "docs"
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


SCHEDULES = {"full": "full", "hybrid": "12 of 32 layers full", "hybrid_4_full": "4 of 32 full"}


_SHOWN = ("llama-2-7b", "NVIDIA H200", "1")


def inference(result: dict[str, Any]) -> str:
    """A long prompt read and written after, in short."""
    rows = [row for row in written(result) if (row["model"], row["device"], row["asked_batch"]) == _SHOWN]
    parts = [
        "Reading 131,072 tokens and writing on, the llama-2-7b shape (random weights, bf16) on one GPU, in one run\n"
        "([more](docs/inference.md)).\n",
        table(
            ["", "until the first token", "a token", "of the bandwidth", "keys and values"],
            [[name_of(row), *figures(row)] for row in rows if row["local"] != "strided_2k"],
        ),
        source({**result, "device": _SHOWN[1]}),
    ]
    return "\n".join(parts)


def written(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that have figures or say why they have none, transformers last."""
    return sorted(result["rows"], key=lambda row: row["impl"] != "lg")


def name_of(row: dict[str, Any]) -> str:
    """What a row of inference.json is."""
    if row["impl"] != "lg":
        return row["impl"].replace("transformers-", "transformers, SDPA, cache: ")
    kept = "" if row["kv"] == "auto" else f", {row['kv']}"
    others = {None: "", "sink_window_2k": ", window and sinks", "strided_2k": ", strided blocks"}[row["local"]]
    return f"lg {SCHEDULES[row['schedule']]}{others}{kept}"


def figures(row: dict[str, Any]) -> list[str]:
    """Its measured columns; empty where there is nothing."""
    units = {"prefill_s": "{:.2f} s", "decode_ms_per_token": "{:.2f} ms", "kv_gib": "{:.1f} GiB"}
    told = {name: unit.format(row[name]) if name in row else "" for name, unit in units.items()}
    share = f"{100 * row['bandwidth_share']:.0f}%" if "bandwidth_share" in row else ""
    return [told["prefill_s"], told["decode_ms_per_token"], share, told["kv_gib"]]


def all_inference(result: dict[str, Any]) -> str:
    """Every row: a table for each shape, length and batch."""
    rows = written(result)
    parts = ["Measured by several calls, on several GPUs of the kinds that are named.\n"]
    for model, length, batch, device in dict.fromkeys(
        (row["model"], row["length"], row["asked_batch"] == "most", row["device"]) for row in rows
    ):
        group = [
            row for row in rows
            if (row["model"], row["length"], row["asked_batch"] == "most", row["device"])
            == (model, length, batch, device)
        ]  # fmt: skip
        lines = [[name_of(row), str(row.get("batch", 1)), *figures(row)] for row in group if "error" not in row]
        lines += [[name_of(row), row["error"], "", "", "", ""] for row in group if "error" in row]
        many = ", as many sequences as fit" if batch else ""
        parts.append(
            f"{model}, {length:,} tokens{many}, {device}:\n\n"
            + table(["", "sequences", "first token", "a step", "of the bandwidth", "keys and values"], lines)
        )
    return "\n".join([*parts, source(result)])


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
    parts = [
        "Milliseconds forward / backward, 32 query heads of 128, bf16. `sdpa` and `auto` of packed_causal are one "
        "packing\nover and over by cuDNN, to which `sdpa` no longer leaves documents whose lengths do not come again.\n"
    ]
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


def round_trips(result: dict[str, Any]) -> str:
    """A line a family, a column a schedule: the larger difference of whole and cached."""
    schedules = list(dict.fromkeys(row["schedule"] for row in result["rows"]))
    lines = []
    for family in dict.fromkeys(row["family"] for row in result["rows"]):
        own = {row["schedule"]: row for row in result["rows"] if row["family"] == family}
        told = [f"{max(own[name]['out'], own[name]['out_cached']):.1e}" for name in schedules]
        lines.append([family, f"{own[schedules[0]]['in']:.1e}", *told])
    most = max(row["largest_logit"] for row in result["rows"])
    return (
        "The largest difference of logits, which are up to "
        f"{most:.0f}: of what comes in, and of what goes out under each schedule, whole\n"
        "and by transformers' cache, whichever is more. Random weights, float32.\n\n"
        + table(["family", "in", *(f"out: {name}" for name in schedules)], lines)
        + f"\n{source(result)}"
    )


def rewritten(text: str) -> str:
    """The README with its measured part made anew."""
    results = _results()
    parts = laptop(results["laptop"]), gpu(results["first_light"]), inference(results["inference"])
    return _filled(text, "\n".join(parts))


def recipes(result: dict[str, Any]) -> str:
    """A line a twin: the run, and what context is worth afterwards."""
    (first, *twins) = sorted(result["rows"], key=lambda row: row["case"] != "pretrained")
    against = first["context"]["against"]
    contexts = [n for n in first["context"]["loss_nats"] if int(n) != against]
    runs = [
        [
            row["case"],
            f"{row['tokens']:,.0f}",
            f"{row['tokens_per_s']:,.0f}",
            f"{row['wall_s']:.0f} s",
            f"{row['peak_gib']:.1f} GiB",
            f"{row['largest_logit_difference']:.0e}",
        ]
        for row in twins
    ]
    losses = []
    for row in (first, *twins):
        told = row["context"]["difference_nats"]
        worth = [f"{told[n]['mean']:+.3f} ({told[n]['low']:+.3f} to {told[n]['high']:+.3f})" for n in contexts]
        losses.append([row["case"], f"{row['context']['loss_nats'][str(against)]:.3f}", *worth])
    head = ["", "tokens", "tokens/s", "whole run", "peak memory", "logits of the export off by"]
    return (
        "The twins on one H100, from start to export and reload; whole runs begin with Python and end with the last\n"
        "checkpoint.\n\n"
        + table(head, runs)
        + f"\nThe same {first['context']['texts']} times 1,024 tokens, of the Bible and of Milton, which no twin "
        f"has read: the loss given {against:,}\ntokens before them, and what it changes by given others, with 95% "
        "intervals, in nats a token.\n\n"
        + table(["", f"loss given {against:,}", *(f"given {int(n):,}" for n in contexts)], losses)
        + f"\n{source(result)}"
    )


def groups(result: dict[str, Any]) -> str:
    """A line a length: a step with full attention, and in shifted groups."""
    steps = {(row["length"], row["case"]): row for row in result["rows"]}
    rows = []
    for length in dict.fromkeys(row["length"] for row in result["rows"]):
        full, grouped = steps[length, "full"], steps[length, "groups"]
        gain = f"{full['step_s'] / grouped['step_s']:.2f}x"
        peaks = f"{full['peak_gib']:.1f} / {grouped['peak_gib']:.1f} GiB"
        rows.append([f"{length:,} tokens", f"{full['step_s']:.2f} s", f"{grouped['step_s']:.2f} s", gain, peaks])
    layers = result["rows"][0]["layers"]
    return (
        f"A step of LoRA, rank 8, on {layers} layers of the Llama-2-7B shape, random weights and tokens; groups are a "
        "quarter\nof the row.\n\n"
        + table(["", "full attention", "in groups", "gain", "peak memory, full / groups"], rows)
        + f"\n{source(result)}"
    )


def serving(result: dict[str, Any]) -> str:
    """A line a model and device."""
    rows = [
        [
            f"{row['model']}, {row['dtype']}, {row['device']}",
            f"{row['answers']:,}",
            f"{row['cancelled']} / {row['broken']}",
            f"{row['wrong']} / {row['failed']} / {row['pages_leaked']}",
            f"{row['new_tokens_per_s']:,.0f} + {row['prompt_tokens_per_s']:,.0f}",
            f"{row['first_token_p50_s']:.2f} / {row['first_token_p99_s']:.2f} s",
            f"{row['answer_p50_s']:.1f} / {row['answer_p99_s']:.1f} s",
        ]
        for row in result["rows"]
    ]
    clients, minutes = result["rows"][-1]["clients"], round(result["rows"][-1]["seconds"] / 60)
    head = ["", "answers", "cancelled / malformed", "wrong / failed / pages left", "tokens/s written + read"]
    return (
        f"{clients} clients for {minutes} minutes, 16 requests at once; prompts of 1 to 50% of the longest, 8 to 128 "
        "new tokens, greedy.\n\n"
        + table([*head, "first token, p50 / p99", "answer, p50 / p99"], rows)
        + f"\n{source(result)}"
    )


def schedules(results: dict[str, Any]) -> str:
    """What `lg probe` proposes, and what that is worth once trained."""
    told = frontier.proposals(results["probe"], table)
    trained = results.get("measured_schedule")
    return f"{told}\n{frontier.page(results, table, source(trained))}" if trained else told


PAGES: dict[str, Callable[[dict[str, Any]], str]] = {
    "adapters.md": lambda results: groups(results["longlora"]),
    "kernels.md": lambda results: "\n".join(
        (kernels(results["attention"]), "In another run, beside flash-attn-4. " + kernels(results["attention_flash"]))
    ),
    "inference.md": lambda results: all_inference(results["inference"]),
    "measured.md": lambda results: schedules(results),
    "pretrained.md": lambda results: round_trips(results["round_trips"]),
    "recipes.md": lambda results: recipes(results["recipes"]),
    "serve.md": lambda results: serving(results["serve"]),
}
"""The measured part of each page of docs/."""


def page_rewritten(page: str, text: str) -> str:
    """A page of docs/ with its measured part made anew."""
    return _filled(text, PAGES[page](_results()))


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
    frontier.layers_picture(_results()["probe"], DOCS / "images" / "probe.png")
    if "measured_schedule" in _results():
        frontier.picture(_results()["measured_schedule"], DOCS / "images" / "frontier.png")
    README.write_text(rewritten(README.read_text()))
    for page in PAGES:
        (DOCS / page).write_text(page_rewritten(page, (DOCS / page).read_text()))
