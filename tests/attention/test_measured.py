"""Schedules built from the scores of a probe, and what is said where they cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lg.attention.schedule import Measured, layers, written

NAMES = ["local", "full"]
FOUND = {
    "needle_greedy": {"sets": [[3], [1, 4], [1, 3, 4]], "share": [0.1, 0.9, 0.98]},
    "mass": {"sets": [[2], [1, 2]], "share": [0.7, 0.9999999999]},
}


@pytest.fixture
def scores(tmp_path: Path) -> str:
    path = tmp_path / "probe.json"
    path.write_text(json.dumps({"lg_probe": 1, "num_layers": 6, "measures": FOUND}))
    return str(path)


@pytest.mark.parametrize(
    ("asked", "short"),
    [
        ({"full_layers": 1}, "3*local, full, 2*local"),
        ({"full_layers": 2}, "local, full, 2*local, full, local"),
        ({"full_layers": 2, "measure": "mass"}, "local, 2*full, 3*local"),
        ({"keep": 0.9}, "local, full, 2*local, full, local"),
        ({"keep": 0.97}, "local, full, local, 2*full, local"),
        ({"keep": 1.0, "measure": "mass"}, "local, 2*full, 3*local"),
    ],
)
def test_full_layers_are_where_the_scores_say(scores: str, asked: dict[str, Any], short: str) -> None:
    built = Measured(scores, **asked)
    assert written(layers(built, 6, NAMES)) == short
    assert built.kept(6) == short
    assert layers(built.kept(6), 6, NAMES) == layers(built, 6, NAMES)


@pytest.mark.parametrize(
    ("asked", "depth", "says"),
    [
        ({"full_layers": 2}, 8, r"scores: .* is of a model of 6 layers, and this one has 8"),
        ({"full_layers": 4}, 6, r"full_layers: 4 is not allowed; needle_greedy in .* goes up to 3 of 6 layers"),
        (
            {"keep": 0.99},
            6,
            r"keep: 0\.99 is not allowed; needle_greedy in .* reaches 0\.980, with up to 3 full layers",
        ),
        ({"keep": 0.9, "measure": "gates"}, 6, r"measure: 'gates' is not in .*; allowed are needle_greedy, mass"),
        ({"keep": 1.5}, 6, r"keep: 1\.5 is not allowed; it must be a number above 0 and at most 1"),
        ({"full_layers": 0}, 6, r"full_layers: 0 is not allowed; it must be a whole number of at least 1"),
        ({"full_layers": True}, 6, r"full_layers: True is not allowed; it must be a whole number of at least 1"),
        ({"keep": True}, 6, r"keep: True is not allowed; it must be a number above 0 and at most 1"),
        ({}, 6, r"full_layers: None with keep None is not allowed; one is needed"),
        ({"full_layers": 1, "keep": 0.5}, 6, r"full_layers: 1 with keep 0\.5 is not allowed; one is needed"),
        ({"full_layers": 1, "full": "wide"}, 6, r"layer 3 is 'wide', which is not among the patterns"),
    ],
)
def test_what_cannot_be_built_is_named(scores: str, asked: dict[str, Any], depth: int, says: str) -> None:
    with pytest.raises(ValueError, match="model.init_args.schedule.*" + says):
        layers(Measured(scores, **asked), depth, NAMES)


WHOLE = {"lg_probe": 1, "num_layers": 6, "measures": {}}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"lg_probe": 1}, "is damaged: it has no num_layers or no measures; `lg probe` writes both"),
        ({**WHOLE, "num_layers": None}, "is damaged: it has no num_layers or no measures"),
        ({**WHOLE, "measures": []}, "is damaged: it has no num_layers or no measures"),
        *(
            ({**WHOLE, "measures": {"needle_greedy": found}}, "is damaged: sets of layers 0 to 5 and a share for each")
            for found in (
                None,
                {},
                {"sets": [[0]]},
                {"sets": [], "share": []},
                {"sets": [None], "share": [None]},
                {"sets": [[0], [0, 6]], "share": [0.5, 0.7]},
                {"sets": [[-1]], "share": [0.5]},
                {"sets": [["0"]], "share": [0.5]},
                {"sets": [0], "share": [0.5]},
                {"sets": [[0]], "share": [float("nan")]},
                {"sets": [[0]], "share": [None]},
                {"sets": [[0], [0, 1]], "share": [0.5]},
            )
        ),
    ],
)
@pytest.mark.parametrize("asked", [{"full_layers": 1}, {"keep": 0.5}])
def test_damaged_scores(asked: dict[str, Any], content: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"model.init_args.schedule.init_args.scores: .*probe.json' " + says):
        Measured(str(path), **asked).layers(6)


@pytest.mark.parametrize("content", [None, "no JSON", "[]", '{"measures": {}}'])
def test_a_file_that_is_no_scores(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "probe.json"
    if content is not None:
        path.write_text(content)
    says = r"scores: .*probe.json' " + ("cannot be read: No such file" if content is None else "is no file of scores")
    with pytest.raises(ValueError, match=says):
        Measured(str(path), full_layers=1).layers(6)
