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

from lg.attention import Pattern
from lg.attention.schedule import written
from lg.cli.configuration import Config
from lg.cli.curve import curve, tokens
from lg.cli.figures import figure, percent
from lg.cli.lengths import tokens_in
from lg.cli.model_part import model_parser, read_model
from lg.cli.trouble import Refused
from lg.cli.written import file_for, write
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
        ("--prefix", "", "share of the document that is its prefix, for PrefixLM; by default the data's own"),
        ("--out", "cost.png", "where the curve is drawn; empty for nowhere"),
        ("--json", "", "a file for the figures; empty for none"),
    ):
        parser.add_argument(option, type=str, default=default, help=what)
    model, options, unread = read_model(parser, args[1:], ["lengths", "prefix", "out", "json"])
    lengths = [tokens_in(word, "lengths") for word in options.lengths.split(",")]
    png, figures = file_for(options.out, "out", ".png"), file_for(options.json, "json", ".json")
    prefix = _prefix(model, options.prefix, unread)
    assumed = "" if prefix is None else f", the prefix {prefix:g} of the document"
    with _one_thread():
        asked = {length: _gain(model, length, prefix) for length in lengths}
        print(table(list(asked.values()), f"{model.name}: {written(model.schedule)}", assumed))
        if figures:
            text = json.dumps([_plain(gain) for gain in asked.values()], indent=2)
            _save(figures, f"{text}\n".encode(), "json")
        if png:
            between = {length: _gain(model, length, prefix) for length in _between(lengths) if length not in asked}
            drawn = {**asked, **between}
            image = io.BytesIO()
            title = f"{model.name}, {written(model.schedule)}, beside full attention{assumed}"
            curve([drawn[length] for length in sorted(drawn)], title).save(image, "PNG")
            _save(png, image.getvalue(), "out")


def table(gains: Sequence[Comparison], title: str, assumed: str = "") -> str:
    """Full attention against the hybrid, one line a length; then what a layer of each kind does at the longest.

    Args:
        gains: the model at each length.
        title: what stands above.
        assumed: what else the document is taken to be.
    """
    config = gains[0].full.config
    lines = [
        title,
        f"{config.num_layers} layers, width {config.width}, {config.num_heads} query heads on {config.num_kv_heads} "
        f"KV heads of {config.head_width}; one document, batch 1{assumed}",
        "",
        "          attention, TFLOP   of forward work      speed-up at most           KV cache, GiB",
        "  tokens     full   hybrid     full   hybrid   train prefill decode      full   hybrid  share",
    ]
    for gain in gains:
        full, hybrid = gain.full, gain.hybrid
        lines.append(
            f"{tokens(full.length):>8} {figure(full.attention_flops / 1e12):>8} "
            f"{figure(hybrid.attention_flops / 1e12):>8} {percent(full.attention_share):>8} "
            f"{percent(hybrid.attention_share):>8}  "
            f"{gain.training:5.2f}x  {gain.prefill:5.2f}x {gain.decode:5.2f}x  "
            f"{figure(full.kv_bytes() / 2**30):>8} {figure(hybrid.kv_bytes() / 2**30):>8} {percent(gain.kv_share):>6}"
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
            f"{percent(one.visible / causal.attention.visible):>10} {one.pattern.grid:>6}  {kind.name}"
        )
    lines += ["", *(f"  {kind.name}: {kind.attention.pattern.text}" for kind in longest.hybrid.kinds)]
    return "\n".join(lines)


def _between(lengths: Sequence[int]) -> list[int]:
    """Powers of two from the shortest to the longest, for the curve; of a single length, those below it."""
    least, most = min(lengths), max(lengths)
    least = least if least < most else max(most // 16, 1)
    powers = [2**n for n in range(least.bit_length() - 1, most.bit_length()) if least <= 2**n <= most]
    return powers if len({*powers, *lengths}) > 1 else [2 * most]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Counting is many small steps: beside other work on the machine, threads that wait for one another are a brake."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _gain(model: HybridLM, length: int, prefix: float | None) -> Comparison:
    # As the data module counts it.
    attributes = {} if prefix is None else {"prefix": int(prefix * length)}
    return compare(model.decoder_config, model.schedule, model.patterns, length, attributes)


def _prefix(model: HybridLM, option: str, unread: Config) -> float | None:
    """The share of the document that is its prefix: the option's, else the data's; None if no layer asks for it.

    Raises:
        Refused: if a layer asks and neither says.
    """
    asks = [
        name
        for name in dict.fromkeys(model.schedule)
        if isinstance(pattern := model.patterns[name], Pattern) and "prefix" in pattern.attributes
    ]
    if option:
        share = _share(option, "prefix")
        return share if asks else None
    if not asks:
        return None
    data = unread.get("data")
    arguments = data.get("init_args") if isinstance(data, dict) else None
    told = arguments.get("prefix", 0) if isinstance(arguments, dict) else 0
    share = _share(str(told), "data.init_args.prefix")
    if not share:  # which is how data says that documents have none
        raise Refused(
            f"model.init_args.patterns.{asks[0]}: {model.patterns[asks[0]]} asks for doc.prefix; say how much of the "
            "document it is, as in --prefix 0.3, or in the configuration (data.init_args.prefix)"
        )
    return share


def _share(word: str, key: str) -> float:
    try:
        share = float(word)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise Refused(f"{key}: {word!r} is not allowed; it must be a share of the document from 0 to 1, such as 0.3")
    return share


def _save(path: Path, content: bytes, key: str) -> None:
    write(path, content, key)
    print(f"\nwritten  {path}")


def _plain(gain: Comparison) -> dict[str, Any]:
    """The figures of one length: FLOPs, bytes, pairs and ratios."""
    return {
        "length": gain.full.length,
        "attributes": dict(gain.hybrid.kinds[0].attention.attributes),
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
