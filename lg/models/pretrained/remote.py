"""Decoders whose layers see what transformers cannot say: as a small model file beside the weights, and read again.

The file is `modeling_lg`, with the family's classes and the patterns' predicates put in place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lg.attention import Pattern, SinkWindow, Window
from lg.attention.pattern import NAMES
from lg.attention.routed import Routed
from lg.models.checkpoint import plain
from lg.models.config import DecoderConfig

FILE = "modeling_lg.py"
PREFIX = "lg_"
"""What a ``model_type`` of such a folder begins with; the family follows."""

_TEMPLATE = Path(__file__).with_name(FILE)
_BEGIN, _END = "# <patterns>\n", "# </patterns>\n"


def remote(told: Mapping[str, Any], config: DecoderConfig, sees: Sequence[Pattern]) -> tuple[dict[str, Any], str]:
    """A folder's config.json and model file.

    Args:
        told: the config.json of the family whose layers see everything.
        config: the decoder's shape.
        sees: the pattern of each layer.

    Raises:
        ValueError: naming a pattern that cannot be written so, and why.
    """
    patterns = list(dict.fromkeys(sees))
    for pattern in patterns:
        _check(pattern, config, told["max_position_embeddings"])
    names = {pattern: f"{type(pattern).__name__}_{n}" for n, pattern in enumerate(patterns)}
    own = {
        "patterns": plain(**{name: pattern for pattern, name in names.items()}),
        "schedule": [names[pattern] for pattern in sees],
        "sees": [pattern.text for pattern in sees],
    }
    module = FILE.removesuffix(".py")
    changed = {
        "model_type": PREFIX + told["model_type"],
        "architectures": ["LgForCausalLM"],
        "auto_map": {"AutoConfig": f"{module}.LgConfig", "AutoModelForCausalLM": f"{module}.LgForCausalLM"},
        "lg": own,
    }
    family = told["architectures"][0].removesuffix("ForCausalLM")
    layers = [patterns.index(pattern) for pattern in sees]
    return {**told, **changed}, _file(told["model_type"], family, patterns, layers)


def patterns_of(own: Mapping[str, Any]) -> tuple[Pattern, ...]:
    """What each layer of such a folder sees, from the key "lg" of its config.json.

    Raises:
        ValueError: naming a pattern whose class is not known here. None is imported for a file's sake.
    """
    try:
        found = {name: _built(told) for name, told in own["patterns"].items()}
        return tuple(found[name] for name in own["schedule"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"config.json: lg: {json.dumps(own)[:200]} is not as `lg export` writes it: {error}"
        ) from error


def _built(told: Any) -> Any:
    if isinstance(told, list):
        return [_built(one) for one in told]
    if not isinstance(told, dict):
        return told
    path = told["class_path"]
    kind = NAMES.get(path.rpartition(".")[2])
    if kind is None or f"{kind.__module__}.{kind.__qualname__}" != path:
        raise ValueError(
            f"config.json: lg.patterns: {path!r} is not known; it must be a pattern of lg's, or one of yours whose "
            "module is imported before"
        )
    return kind(**{name: _built(value) for name, value in told["init_args"].items()})


def _check(pattern: Pattern, config: DecoderConfig, longest: int) -> None:
    """Refuses what a mask that is made anew at every token cannot be."""
    heads = config.num_kv_heads
    if isinstance(pattern, Routed):
        raise _refusal(pattern, "it is chosen by content, which no mask says")
    if pattern.attributes:
        why = (
            "the length is not known while text is generated" if pattern.attributes == ("length",) else "unknown there"
        )
        raise _refusal(pattern, f"it asks for doc.{pattern.attributes[0]}: {why}")
    if pattern.made_for not in (None, heads):
        raise _refusal(pattern, f"it is made for {pattern.made_for} KV heads, and the decoder has {heads}")
    if not pattern.symbol.causal and pattern.sees_later(longest, heads):
        raise _refusal(pattern, "it lets a query see later keys; write `& Causal()` into it")


def _refusal(pattern: Pattern, why: str) -> ValueError:
    return ValueError(f"model.init_args.patterns: {pattern} cannot be exported; {why}")


def _file(family: str, classes: str, patterns: Sequence[Pattern], layers: Sequence[int]) -> str:
    template = _TEMPLATE.read_text(encoding="utf-8").replace("# mypy: ignore-errors\n", "")
    before, _, rest = template.replace("Llama", classes).replace("llama", family).partition(_BEGIN)
    _, _, after = rest.partition(_END)
    lines = []
    for pattern in patterns:
        text = pattern.text
        lines.append(f"    Pattern({text!r}, lambda q, k, h: {text}, {_kept(pattern)}),")
    said = "\n".join(("PATTERNS = (", *lines, ")", f"LAYERS = {(*layers,)}", ""))
    return f"{before}{_BEGIN}{said}{_END}{after}"


def _kept(pattern: Pattern) -> tuple[int, int] | None:
    """Sinks and window, where nothing else is ever seen again."""
    if isinstance(pattern, SinkWindow):
        return pattern.sinks, pattern.window
    return (0, pattern.window) if isinstance(pattern, Window) else None
