"""A null where a class takes none is found; where one is allowed, or nobody says, it is left alone."""

from __future__ import annotations

import pytest
from jsonargparse import Namespace
from lightning.pytorch import Trainer

from lg.cli.nulls import misplaced_null

ROOTS = {"data": object, "trainer": Trainer}


def node(name: str, **arguments: object) -> Namespace:
    return Namespace(class_path=name, init_args=Namespace(**arguments))


@pytest.mark.parametrize(
    ("parsed", "place"),
    [
        (node("lg.data.TextData", seed=None), "data.init_args.seed"),
        (node("lg.data.TextData", processes=None, source=None), None),
        (node("lg.data.TextData", source=node("lg.data.Folder", path=None)), "data.init_args.source.init_args.path"),
        (node("lg.data.Mixture", sources={"a": node("lg.data.Stdlib", exclude=None)}),
         "data.init_args.sources.a.init_args.exclude"),
        (node("builtins.dict", a=None), None),
    ],
)  # fmt: skip
def test_a_class(parsed: Namespace, place: str | None) -> None:
    found = misplaced_null(Namespace(data=parsed), ROOTS)
    assert (None if found is None else ".".join(found)) == place


def test_lists_and_sections() -> None:
    callbacks = [node("lg.monitor.Checkpoints", every=None)]
    parsed = Namespace(trainer=Namespace(callbacks=callbacks, max_epochs=None, precision=None))
    assert misplaced_null(parsed, ROOTS) == ("trainer", "callbacks", "0", "init_args", "every")
    assert misplaced_null(Namespace(trainer=Namespace(max_steps=None)), ROOTS) == ("trainer", "max_steps")
