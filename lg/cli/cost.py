"""``lg cost``: what a model costs at any length, beside full attention, as a table, a curve and a file of figures.

No data is read and no decoder built: pairs are counted from the patterns.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lg.attention.schedule import written
from lg.cli.commands import Refused
from lg.cli.curve import curve, tokens
from lg.cli.lengths import tokens_in
from lg.cli.model_part import model_parser, read_model
from lg.models.cost import Comparison, LayerKind, ModelCost, compare
from lg.models.hybrid import HybridLM


def run(args: list[str]) -> None:
    """Reads the model's part of the configuration, counts, prints and draws.

    Args:
        args: "cost", and the words after it.

    Raises:
        Refused: when the input is at fault.
    """
    parser = model_parser("cost", "Counts what a model costs at any length, beside full attention in every layer.")
    for option, default, what in (
        ("--lengths", "8K,32K,128K,1M", "tokens of one document; K is 1024, M 1048576"),
        ("--out", "cost.png", "where the curve is drawn; empty for nowhere"),
        ("--json", "", "a file for the figures; empty for none"),
    ):
        parser.add_argument(option, type=str, default=default, help=what)
    model, options = read_model(parser, args[1:], ["lengths", "out", "json"])
    lengths = [tokens_in(word, "lengths") for word in options.lengths.split(",")]
    png, figures = _file(options.out, "out", ".png"), _file(options.json, "json", ".json")
    with _one_thread():
        asked = {length: _gain(model, length) for length in lengths}
        print(table(list(asked.values()), f"{_name(model)}: {written(model.schedule)}"))
        if figures:
            text = json.dumps([_plain(gain) for gain in asked.values()], indent=2)
            _save(figures, f"{text}\n".encode())
        if png:
            drawn = {**{length: _gain(model, length) for length in _between(lengths)}, **asked}
            image = io.BytesIO()
            title = f"{_name(model)}, {written(model.schedule)}, beside full attention"
            curve([drawn[length] for length in sorted(drawn)], title).save(image, "PNG")
            _save(png, image.getvalue())


def table(gains: Sequence[Comparison], title: str) -> str:
    """Full attention against the hybrid, one line a length; then what a layer of each kind does at the longest.

    Args:
        gains: the model at each length.
        title: what stands above.
    """
    config = gains[0].full.config
    lines = [
        title,
        f"{config.num_layers} layers, width {config.width}, {config.num_heads} query heads on {config.num_kv_heads} "
        f"KV heads of {config.head_width}; one document, batch 1",
        "",
        "          attention, TFLOP   of forward work      speed-up at most           KV cache, GiB",
        "  tokens     full   hybrid     full   hybrid   train prefill decode      full   hybrid  share",
    ]
    for gain in gains:
        full, hybrid = gain.full, gain.hybrid
        lines.append(
            f"{tokens(full.length):>8} {_figure(full.attention_flops / 1e12):>8} "
            f"{_figure(hybrid.attention_flops / 1e12):>8} {full.attention_share:8.1%} {hybrid.attention_share:8.1%}  "
            f"{gain.training:5.2f}x  {gain.prefill:5.2f}x {gain.decode:5.2f}x  "
            f"{_figure(full.kv_bytes() / 2**30):>8} {_figure(hybrid.kv_bytes() / 2**30):>8} {gain.kv_share:6.1%}"
        )
    longest = max(gains, key=lambda gain: gain.full.length)
    (causal,) = longest.full.kinds
    lines += [
        "",
        f"one layer at {tokens(longest.full.length)}, pairs of query and key over all query heads, tiles of 128 x 128:",
        "",
        "  layers               visible             executed  executed/visible  of causal   grid",
    ]
    for kind in longest.hybrid.kinds:
        one = kind.attention
        lines.append(
            f"{kind.num_layers:>8} {one.visible:>21,} {one.executed:>20,} {one.executed / max(one.visible, 1):>17.2f} "
            f"{one.visible / causal.attention.visible:>10.1%} {one.pattern.grid:>6}  {kind.name}"
        )
    lines += ["", *(f"  {kind.name}: {kind.attention.pattern.text}" for kind in longest.hybrid.kinds)]
    return "\n".join(lines)


def _between(lengths: Sequence[int]) -> list[int]:
    """Powers of two from the shortest to the longest, for the curve; of a single length, those below it."""
    least, most = min(lengths), max(lengths)
    least = least if least < most else max(most // 16, 1)
    powers = [2**n for n in range(least.bit_length() - 1, most.bit_length()) if least <= 2**n <= most]
    return powers if len({*powers, *lengths}) > 1 else [2 * most]


def _name(model: HybridLM) -> str:
    changed = ", ".join(f"{field} {value}" for field, value in model.config["decoder"].items())
    return f"{model.config['preset']} with {changed}" if changed else str(model.config["preset"])


@contextmanager
def _one_thread() -> Iterator[None]:
    """Counting is many small steps: beside other work on the machine, threads that wait for one another are a brake."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _gain(model: HybridLM, length: int) -> Comparison:
    return compare(model.decoder_config, model.schedule, model.patterns, length)


def _figure(value: float) -> str:
    """Three digits that count, never an exponent."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.{max(0, 2 - _magnitude(value))}f}"


def _magnitude(value: float) -> int:
    return int(f"{value:e}".partition("e")[2]) if value else 0


def _file(name: str, key: str, suffix: str) -> Path | None:
    """The file to write, None if there is to be none."""
    if not name:
        return None
    path = Path(name)
    if path.suffix != suffix or not path.parent.is_dir() or path.is_dir():
        raise Refused(f"{key}: {name!r} is not allowed; it must be a {suffix} file in a folder that exists")
    return path


def _save(path: Path, content: bytes) -> None:
    # Written aside: whoever reads the file meanwhile sees the old one.
    aside = path.with_name(f"{path.name}.part")
    aside.write_bytes(content)
    aside.replace(path)
    print(f"\nwritten  {path}")


def _plain(gain: Comparison) -> dict[str, Any]:
    """The figures of one length: FLOPs, bytes, pairs and ratios."""
    return {
        "length": gain.full.length,
        "training_speed_up_at_most": gain.training,
        "prefill_speed_up_at_most": gain.prefill,
        "decode_speed_up_at_most": gain.decode,
        "kv_share": gain.kv_share,
        "hybrid": _plain_model(gain.hybrid),
        "full": _plain_model(gain.full),
    }


def _plain_model(cost: ModelCost) -> dict[str, Any]:
    return {
        "linear_forward_flops": cost.linear_flops,
        "attention_forward_flops": cost.attention_flops,
        "forward_flops": cost.forward_flops,
        "training_flops": cost.training_flops,
        "prefill_flops": cost.prefill_flops,
        "attention_share": cost.attention_share,
        "kv_bytes": cost.kv_bytes(),
        "decode_bytes": cost.decode_bytes(),
        "layers": [_plain_kind(kind) for kind in cost.kinds],
    }


def _plain_kind(kind: LayerKind) -> dict[str, Any]:
    one = kind.attention
    return {
        "name": kind.name,
        "num_layers": kind.num_layers,
        "sees": one.pattern.text,
        "visible_pairs": one.visible,
        "executed_pairs": one.executed,
        "forward_flops": one.flops.forward,
        "backward_flops": one.flops.backward,
        "backward_flops_executed": one.flops.backward_executed,
        "kept_tokens": one.kept,
        "kv_bytes": one.kv_bytes(),
    }
