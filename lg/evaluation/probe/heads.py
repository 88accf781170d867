"""Full KV heads instead of full layers: the best ones, wherever they are, as one `PerHead` pattern for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lg.attention import Pattern, PerHead
from lg.attention.schedule import written


@dataclass(frozen=True)
class PerHeadPlan:
    """Patterns and schedule in which chosen KV heads are full.

    Attributes:
        patterns: by the names that the schedule uses.
        schedule: ready for `model.init_args.schedule`.
    """

    patterns: dict[str, Pattern]
    schedule: str


def per_head(scores: Sequence[Sequence[float]], num_full: int, full: Pattern, local: Pattern) -> PerHeadPlan:
    """The plan in which the KV heads with the highest scores are full; the first of equals first.

    Layers with no full head and with all of them are "local" and "full"; another one is named after its full heads.

    Args:
        scores: of each KV head of each layer.
        num_full: heads that are full, over all layers.
        full, local: what a full head sees, and another.

    Raises:
        ValueError: if there are not so many heads.

    >>> from lg.attention import Causal, Window
    >>> per_head([[0.1, 0.9], [0.2, 0.3], [0.8, 0.7]], 3, Causal(), Window(8)).schedule
    'heads_1, local, full'
    """
    places = [(layer, head) for layer, of_layer in enumerate(scores) for head in range(len(of_layer))]
    if not 1 <= num_full <= len(places):
        raise ValueError(
            f"--full_heads: {num_full} is not allowed; the model has {len(places)} KV heads, over all layers"
        )
    best = set(sorted(places, key=lambda place: -scores[place[0]][place[1]])[:num_full])
    patterns: dict[str, Pattern] = {}
    names = []
    for layer, of_layer in enumerate(scores):
        open_heads = [head for head in range(len(of_layer)) if (layer, head) in best]
        if len(open_heads) in (0, len(of_layer)):
            name, pattern = ("full", full) if open_heads else ("local", local)
        else:
            name = "heads_" + "_".join(map(str, open_heads))
            pattern = PerHead((local, full), tuple(int(head in open_heads) for head in range(len(of_layer))))
        patterns[name] = pattern
        names.append(name)
    return PerHeadPlan(patterns, written(names))
