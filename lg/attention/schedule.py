"""Which layer gets which mixer: written out, as in "10*local, 12*full, 10*local", or built to fit any depth.

>>> layers("2*local, full, local", num_layers=4, names=["local", "full"])
['local', 'local', 'full', 'local']
>>> written(MiddleFull(fraction=0.375).layers(32))
'10*local, 12*full, 10*local'
"""

from __future__ import annotations

import itertools
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEY = "model.init_args.schedule"
_TERM = re.compile(r"(?:(\d+)\s*\*\s*)?([A-Za-z_][\w.-]*)")


class Schedule(ABC):
    """Builds a schedule for any depth. Subclass, and name the class in the YAML, for a rule of your own."""

    @abstractmethod
    def layers(self, num_layers: int) -> list[str]:
        """The name of each layer's mixer, from the first layer to the last."""

    def kept(self, num_layers: int) -> Schedule | str:
        """What a checkpoint keeps of it: itself, unless it is built from what may be gone later."""
        return self


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


@dataclass(frozen=True)
class Measured(Schedule):
    """Full layers where `lg probe` found that the context is needed, in the model that it measured.

    Attributes:
        scores: the JSON file of `lg probe`.
        full_layers: how many are full; or else
        keep: the share of the score, above 0 and up to 1, that the fewest full layers are to reach.
        measure: whose ranking is followed, one of those in the file.
        full, sparse: the names of the two mixers.
    """

    scores: str
    full_layers: int | None = None
    keep: float | None = None
    measure: str = "needle_greedy"
    full: str = "full"
    sparse: str = "local"

    def __post_init__(self) -> None:
        key = f"{KEY}.init_args"
        if (self.full_layers is None) == (self.keep is None):
            raise ValueError(
                f"{key}.full_layers: {self.full_layers} with keep {self.keep} is not allowed; one is needed"
            )
        if self.full_layers is not None and (type(self.full_layers) is not int or self.full_layers < 1):
            raise ValueError(
                f"{key}.full_layers: {self.full_layers!r} is not allowed; it must be a whole number of at least 1"
            )
        if self.keep is not None and (type(self.keep) not in (int, float) or not 0 < self.keep <= 1):
            raise ValueError(f"{key}.keep: {self.keep!r} is not allowed; it must be a number above 0 and at most 1")

    def layers(self, num_layers: int) -> list[str]:
        """The name of each layer's mixer.

        Raises:
            ValueError: if the file is no scores, or of a model of another depth, or does not have what is asked for.
        """
        chosen = self._chosen(num_layers)
        return [self.full if layer in chosen else self.sparse for layer in range(num_layers)]

    def kept(self, num_layers: int) -> str:
        """Written out: a checkpoint needs no file of scores."""
        return written(self.layers(num_layers))

    def _chosen(self, num_layers: int) -> Sequence[int]:
        key = f"{KEY}.init_args"
        told = self._read()
        if told["num_layers"] != num_layers:
            raise ValueError(
                f"{key}.scores: {self.scores!r} is of a model of {told['num_layers']} layers, and this one has "
                f"{num_layers}; layers can be chosen only in the model that was measured"
            )
        if self.measure not in told["measures"]:
            raise ValueError(
                f"{key}.measure: {self.measure!r} is not in {self.scores!r}; allowed are {', '.join(told['measures'])}"
            )
        found = told["measures"][self.measure]
        if not _is_finding(found, num_layers):
            raise ValueError(
                f"{key}.scores: {self.measure} in {self.scores!r} is damaged: sets of layers 0 to {num_layers - 1} and "
                "a share for each are needed; `lg probe` writes them"
            )
        sets, share = found["sets"], found["share"]
        if self.full_layers is not None:
            if self.full_layers > len(sets):
                raise ValueError(
                    f"{key}.full_layers: {self.full_layers} is not allowed; {self.measure} in {self.scores!r} goes up "
                    f"to {len(sets)} of {num_layers} layers"
                )
            chosen = sets[self.full_layers - 1]
            if chosen is None:
                sizes = ", ".join(str(size) for size, each in enumerate(sets, 1) if each is not None)
                raise ValueError(
                    f"{key}.full_layers: {self.full_layers} is not allowed; {self.measure} in {self.scores!r} was "
                    f"asked for {sizes} only"
                )
            return list(chosen)
        for each, reached in zip(sets, share, strict=True):
            # Sums of shares end a rounding error beside 1.
            if each is not None and reached >= (self.keep or 0) - 1e-9:
                return list(each)
        most = max(reached for reached in share if reached is not None)
        raise ValueError(
            f"{key}.keep: {self.keep} is not allowed; {self.measure} in {self.scores!r} reaches {most:.3f}, with "
            f"up to {len(sets)} full layers"
        )

    def _read(self) -> dict[str, Any]:
        key = f"{KEY}.init_args.scores"
        try:
            told = json.loads(Path(self.scores).expanduser().read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(
                f"{key}: {self.scores!r} cannot be read: {error.strerror}; `lg probe` writes it"
            ) from error
        except ValueError:
            told = None
        if not isinstance(told, dict) or told.get("lg_probe") != 1:
            raise ValueError(f"{key}: {self.scores!r} is no file of scores; `lg probe` writes one")
        if type(told.get("num_layers")) is not int or not isinstance(told.get("measures"), dict):
            raise ValueError(
                f"{key}: {self.scores!r} is damaged: it has no num_layers or no measures; `lg probe` writes both"
            )
        return told


def _is_finding(found: Any, num_layers: int) -> bool:
    """Whether this is what a measure found in a model of that depth: sets that exist, and the share of each."""
    if not isinstance(found, dict):
        return False
    sets, share = found.get("sets"), found.get("share")
    if not isinstance(sets, list) or not isinstance(share, list) or len(sets) != len(share):
        return False
    asked = [
        (chosen, reached) for chosen, reached in zip(sets, share, strict=True) if (chosen, reached) != (None, None)
    ]
    return bool(asked) and all(
        isinstance(chosen, list)
        and all(type(layer) is int and 0 <= layer < num_layers for layer in chosen)
        and type(reached) in (int, float)
        and math.isfinite(reached)
        for chosen, reached in asked
    )


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
