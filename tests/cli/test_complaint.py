"""Each mistake a user can make in YAML is told as key, value and what is allowed."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from dataclasses import dataclass

import pytest
from jsonargparse import ArgumentParser

from lg.cli.complaint import explain
from lg.cli.configuration import as_argument
from lg.cli.given import overlay


class Shape(ABC):
    @abstractmethod
    def area(self) -> int: ...


@dataclass(frozen=True)
class Square(Shape):
    side: int

    def area(self) -> int:
        return self.side**2


@dataclass(frozen=True)
class Disc(Shape):
    radius: int
    grain: int = 1

    def area(self) -> int:
        return 3 * self.radius**2


class Drawing:
    def __init__(
        self,
        shapes: dict[str, Shape],
        frame: str | Shape = "thin",
        layers: list[Shape] | None = None,
        scale: float = 1.0,
        sizes: dict[str, int | bool] | None = None,
    ) -> None: ...


class Trainer:
    def __init__(self, max_steps: int = 1, shapes: list[Shape] | Shape | None = None) -> None: ...


GOOD = {
    "model": {
        "class_path": "Drawing",
        "init_args": {"shapes": {"big": {"class_path": "Disc", "init_args": {"radius": 3}}}},
    }
}
ROOTS = {"model": Drawing, "trainer": Trainer}


def complaint(*options: str) -> str:
    fit = ArgumentParser(exit_on_error=False)
    fit.add_argument("--config", action="config")
    fit.add_class_arguments(Trainer, "trainer")
    fit.add_subclass_arguments(Drawing, "model", required=True)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subcommands().add_subcommand("fit", fit)
    with pytest.raises(argparse.ArgumentError) as caught:
        parser.parse_args(["fit", "--config", as_argument(GOOD), *options])
    return explain(caught.value.message, overlay(GOOD, list(options)), ROOTS)


CASES = {
    "class in a dict": (
        "--model.shapes.big=Dics",
        "model.init_args.shapes.big: 'Dics' is not a known Shape; did you mean Disc? "
        "allowed: Disc, Square or the dotted path of a class of yours",
    ),
    "class with arguments": (
        '--model.shapes={"big": {"class_path": "Dics", "init_args": {"radius": 1}}}',
        "model.init_args.shapes.big: 'Dics' is not a known Shape; did you mean Disc? "
        "allowed: Disc, Square or the dotted path of a class of yours",
    ),
    "class or text": (
        '--model.frame={"class_path": "Squar"}',
        "model.init_args.frame: 'Squar' is not a known Shape; did you mean Square? "
        "allowed: Disc, Square, the dotted path of a class of yours or str",
    ),
    "class in a list": (
        '--model.layers=[{"class_path": "Disc", "init_args": {"radius": 1}}, "Dics"]',
        "model.init_args.layers.1: 'Dics' is not a known Shape; did you mean Disc? "
        "allowed: Disc, Square or the dotted path of a class of yours",
    ),
    "class at the top": (
        "--model=Drawin",
        "model: 'Drawin' is not a known Drawing; did you mean Drawing? "
        "allowed: Drawing or the dotted path of a class of yours",
    ),
    "number for a class": (
        '--model.shapes={"big": 3}',
        "model.init_args.shapes.big: '3' is not a known Shape; "
        "allowed: Disc, Square or the dotted path of a class of yours",
    ),
    "class of another kind": (
        "--model.shapes.big=argparse.ArgumentParser",
        "model.init_args.shapes.big: 'argparse.ArgumentParser' is not a known Shape; "
        "allowed: Disc, Square or the dotted path of a class of yours",
    ),
    "module that is not there": (
        "--model.shapes.big=nowhere.Disc",
        "model.init_args.shapes.big: 'nowhere.Disc' cannot be used: No module named 'nowhere'",
    ),
    "key of a nested class": (
        "--model.shapes.big.init_args.radios=3",
        "model.init_args.shapes.big.init_args.radios: not a known key; did you mean radius? allowed: radius, grain",
    ),
    "key of a class": (
        "--model.scal=3",
        "model.init_args.scal: not a known key; did you mean scale? allowed: shapes, frame, layers, scale, sizes",
    ),
    "key of a section": (
        '--config={"trainer": {"max_step": 3}}',
        "trainer.max_step: not a known key; did you mean max_steps? allowed: max_steps, shapes",
    ),
    "section": (
        "--trainr.max_steps=3",
        "trainr: not a known key; did you mean trainer? allowed: model, trainer",
    ),
    "missing argument": (
        '--model.shapes={"small": {"class_path": "Disc"}}',
        "model.init_args.shapes.small.init_args.radius: missing; Disc needs it",
    ),
    "type": (
        "--model.scale=big",
        "model.init_args.scale: 'big' is not allowed; it must be float",
    ),
    "type in a nested class": (
        "--model.shapes.big.init_args.radius=x",
        "model.init_args.shapes.big.init_args.radius: 'x' is not allowed; it must be int",
    ),
    "types in a dict": (
        '--model.sizes={"a": 1, "b": "x"}',
        "model.init_args.sizes.b: 'x' is not allowed; it must be int or bool",
    ),
    "type in a section": (
        "--trainer.max_steps=many",
        "trainer.max_steps: 'many' is not allowed; it must be int",
    ),
    "class in a section": (
        '--trainer.shapes=[{"class_path": "Dics"}]',
        "trainer.shapes.0: 'Dics' is not a known Shape; did you mean Disc? "
        "allowed: Disc, Square or the dotted path of a class of yours",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_sentence(case: str) -> None:
    option, sentence = CASES[case]
    assert complaint(option) == sentence


def test_words_it_does_not_know_come_through_on_one_line() -> None:
    assert explain("something\n  new", {}, ROOTS) == "something"
    assert explain("", {}, ROOTS) == ""
