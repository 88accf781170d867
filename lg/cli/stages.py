"""Several stages of one training in one YAML file: what each says besides the file, and which one a command means.

The list ``stages`` stands beside ``model``, ``data`` and ``trainer``. An entry has a name and the sections in which it
differs, merged over the file's as a file's are over its base.

>>> config = {"trainer": {"max_steps": 9}, "stages": [{"name": "4k"}, {"name": "8k", "trainer": {"max_steps": 3}}]}
>>> stages = take_stages(config)
>>> [stage.over(config) for stage in stages]
[{'trainer': {'max_steps': 9}}, {'trainer': {'max_steps': 3}}]
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lg.cli.configuration import Config, gather, merge

SECTIONS = ("model", "data", "trainer", "seed_everything")
"""What a stage may change."""

OPTIMIZERS = ("reset", "kept")
"""What becomes of the optimizer's state when a stage begins from the one before."""

_KEYS = ("name", "optimizer", *SECTIONS)


@dataclass(frozen=True)
class Stage:
    """One entry of ``stages``.

    Attributes:
        number: its place in the list, from 0.
        name: what its folder is called.
        optimizer: one of `OPTIMIZERS`.
        sections: what it says besides the file.
    """

    number: int
    name: str
    optimizer: str
    sections: Mapping[str, Any]

    def over(self, config: Config) -> Config:
        """The configuration of this stage: the file's, with what the stage says on top."""
        return merge(config, dict(self.sections))

    def placed(self, said: str) -> str:
        """A complaint that begins with a key, with the key as the file has it, where it is the stage that has it."""
        node: Any = self.sections
        for key in said.partition(":")[0].split("."):
            if not isinstance(node, Mapping) or key not in node:
                return said
            node = node[key]
        return f"stages.{self.number}.{said}"


def take_stages(config: Config) -> list[Stage]:
    """Takes ``stages`` out of a configuration; an empty list if there are none.

    Raises:
        ValueError: if an entry is no stage.
    """
    if "stages" not in config:
        return []
    entries = config.pop("stages")
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"stages: {entries!r:.60} is not allowed; it must list at least one stage, each with a name")
    stages: list[Stage] = []
    for number, entry in enumerate(entries):
        stage = _stage(number, entry)
        if same := [other.number for other in stages if other.name == stage.name]:
            raise ValueError(
                f"stages.{number}.name: {stage.name!r} is not allowed; stages.{same[0]} has that name, and names of "
                "stages must differ"
            )
        stages.append(stage)
    return stages


def option(words: list[str], name: str) -> tuple[str | None, list[str]]:
    """Takes ``--name VALUE`` or ``--name=VALUE`` out of a command's words; of several, the last counts.

    Raises:
        ValueError: if it has no value.
    """
    value, rest = None, []
    left = iter(words)
    for word in left:
        flag, equals, text = word.partition("=")
        if flag != f"--{name}":
            rest.append(word)
            continue
        value = text if equals else next(left, "")
        if not value or value.startswith("--"):
            raise ValueError(f"--{name}: needs a value, as in --{name} NAME")
    return value, rest


def chosen(stages: Sequence[Stage], name: str | None) -> Stage | None:
    """The stage of that name, by default the last; None if there are no stages, and none is asked for.

    Raises:
        ValueError: if there is none of that name.
    """
    for stage in stages:
        if stage.name == name:
            return stage
    if name is not None:
        known = ", ".join(stage.name for stage in stages)
        what = f"the configuration has {known}" if stages else "the configuration has no stages"
        raise ValueError(f"--stage: {name!r} is not there; {what}")
    return stages[-1] if stages else None


def gather_stage(args: list[str]) -> tuple[Config, list[str]]:
    """As `gather`, of a configuration with stages that of one: of ``--stage NAME``, or of the last.

    Raises:
        ValueError: as `gather` does, and if there is no such stage.
    """
    name, words = option(args, "stage")
    config, rest = gather(words)
    stage = chosen(take_stages(config), name)
    return (config if stage is None else stage.over(config)), rest


def _stage(number: int, entry: Any) -> Stage:
    key = f"stages.{number}"
    if not isinstance(entry, dict):
        raise ValueError(f"{key}: {entry!r:.60} is not allowed; a stage must map keys to values, and have a name")
    if unknown := [str(name) for name in entry if name not in _KEYS]:
        raise ValueError(f"{key}.{unknown[0]}: not a known key; allowed: {', '.join(_KEYS)}")
    name = entry.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise ValueError(
            f"{key}.name: {name!r} is not allowed; a stage needs a name, a text of letters, digits, '.', '_' and '-'"
        )
    optimizer = entry.get("optimizer", "reset")
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"{key}.optimizer: {optimizer!r} is not allowed; allowed are {', '.join(OPTIMIZERS)}")
    if optimizer == "kept" and number == 0:
        raise ValueError(f"{key}.optimizer: 'kept' is not allowed; before the first stage there is no optimizer")
    for section in ("model", "data", "trainer"):
        if section in entry and not isinstance(entry[section], dict):
            raise ValueError(
                f"{key}.{section}: {entry[section]!r:.60} is not allowed; it must map the keys that differ to values"
            )
    model = entry.get("model", {})
    if number > 0 and "pretrained" in (model.get("init_args") or model):
        raise ValueError(
            f"{key}.model.init_args.pretrained: not allowed; a stage begins with the weights of the one before, and "
            "only stages.0 may name others"
        )
    return Stage(number, name, optimizer, {name: entry[name] for name in SECTIONS if name in entry})
