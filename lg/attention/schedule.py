"""Which layer gets which mixer: written out, as in "10*local, 12*full, 10*local", or built to fit any depth.

>>> layers("2*local, full, local", num_layers=4, names=["local", "full"])
['local', 'local', 'full', 'local']
>>> written(MiddleFull(fraction=0.375).layers(32))
'10*local, 12*full, 10*local'
"""

from __future__ import annotations

import itertools
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass

KEY = "model.init_args.schedule"
_TERM = re.compile(r"(?:(\d+)\s*\*\s*)?([A-Za-z_][\w.-]*)")


class Schedule(ABC):
    """Builds a schedule for any depth. Subclass, and name the class in the YAML, for a rule of your own."""

    @abstractmethod
    def layers(self, num_layers: int) -> list[str]:
        """The name of each layer's mixer, from the first layer to the last."""


@dataclass(frozen=True)
class MiddleFull(Schedule):
    """Full layers in the middle, the rest around them: LongGen's layout (Ge et al. 2024, arXiv 2410.01485, figure 1).

    Attributes:
        fraction: the share of layers that are full, rounded to whole layers; LongGen's memory figures fit 12 of 32.
        full, sparse: the names of the two mixers.
    """

    fraction: float = 0.375
    full: str = "full"
    sparse: str = "local"

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"{KEY}.init_args.fraction: {self.fraction} is not allowed; it must be between 0 and 1")

    def layers(self, num_layers: int) -> list[str]:
        num_full = round(self.fraction * num_layers)
        before = (num_layers - num_full) // 2
        after = num_layers - num_full - before
        return [self.sparse] * before + [self.full] * num_full + [self.sparse] * after


@dataclass(frozen=True)
class Interleave(Schedule):
    """A unit such as "3*local, full", repeated to the depth of the model; the last repetition may be cut short."""

    unit: str

    def layers(self, num_layers: int) -> list[str]:
        return list(itertools.islice(itertools.cycle(_parse(self.unit, f"{KEY}.init_args.unit")), num_layers))


def layers(schedule: str | Schedule, num_layers: int, names: Collection[str]) -> list[str]:
    """The name of each layer's mixer.

    Args:
        schedule: terms "name" or "count*name" separated by commas, or a builder.
        num_layers: the depth that it must fit.
        names: the mixers that there are.

    Raises:
        ValueError: naming the layer, if the schedule does not fit the depth, or names a mixer that there is not.
    """
    resolved = _parse(schedule, KEY) if isinstance(schedule, str) else schedule.layers(num_layers)
    for layer, name in enumerate(resolved):
        if name not in names:
            raise ValueError(
                f"{KEY}: layer {layer} is {name!r}, which is not among the patterns; "
                f"allowed are {', '.join(names)} (model.init_args.patterns)"
            )
    if len(resolved) != num_layers:
        short = len(resolved) < num_layers
        what = f"layer {len(resolved)} gets none" if short else f"there is no layer {num_layers}"
        text = schedule if isinstance(schedule, str) else written(resolved)
        raise ValueError(
            f"{KEY}: {text!r} gives {len(resolved)} layers to a model of {num_layers}: {what}; "
            "write a schedule of that length, or a builder that fits any depth, such as MiddleFull"
        )
    return resolved


def written(resolved: Sequence[str]) -> str:
    """A resolved schedule in its short form."""
    runs = [(name, len(list(group))) for name, group in itertools.groupby(resolved)]
    return ", ".join(f"{count}*{name}" if count > 1 else name for name, count in runs)


def _parse(text: str, key: str) -> list[str]:
    resolved: list[str] = []
    for term in text.split(","):
        match = _TERM.fullmatch(term.strip())
        count = int(match[1] or 1) if match else 0
        if match is None or count < 1:
            raise ValueError(
                f"{key}: {term.strip()!r} in {text!r} is not allowed; write terms such as 'full' or '10*local', "
                "separated by commas"
            )
        resolved += [match[2]] * count
    return resolved
