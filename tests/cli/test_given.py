"""The user's words in one tree: the command line on top of the files, and the way back to a key."""

from __future__ import annotations

from lg.cli.given import fill_names, locate, overlay

FILES = {
    "model": {
        "class_path": "HybridLM",
        "init_args": {
            "patterns": {
                "full": "Causal",
                "near": {"class_path": "Window", "init_args": {"window": 8}},
                "local": {"class_path": "Window", "init_args": {"window": 0}},
            }
        },
    },
    "trainer": {"callbacks": [{"class_path": "ModelCheckpoint"}]},
}
MESSAGE = "Window.window={} is not allowed (YAML: model.init_args.patterns.<name>.init_args.window)"


def test_overlay_understands_every_way_to_write_an_option() -> None:
    given = overlay(
        FILES,
        ["--model.lr=3e-4", "--trainer.max_steps", "5", "--flag", "--model.patterns.full.window=2"],
    )
    init_args = given["model"]["init_args"]
    assert init_args["lr"] == 3e-4
    assert given["trainer"]["max_steps"] == 5
    assert init_args["patterns"]["full"] == {"class_path": "Causal", "init_args": {"window": 2}}
    assert "lr" not in FILES["model"]["init_args"]


def test_overlay_takes_text_that_is_no_yaml() -> None:
    assert overlay({}, ["--a.b={"]) == {"a": {"b": "{"}}
    assert overlay({}, []) == {}


def test_locate_finds_the_names_that_the_parser_leaves_out() -> None:
    trail = ("model", "init_args", "patterns", "init_args", "window")
    place, value = locate(FILES, trail, lambda value: value == 0)
    assert place == ("model", "init_args", "patterns", "local", "init_args", "window")
    assert value == 0


def test_locate_names_the_class_not_its_class_path() -> None:
    place, _ = locate(FILES, ("trainer", "callbacks"), lambda value: value == "ModelCheckpoint")
    assert place == ("trainer", "callbacks", "0")


def test_locate_gives_the_trail_back_when_the_value_came_from_elsewhere() -> None:
    assert locate(FILES, ("data", "seed"), lambda value: True) == (("data", "seed"), None)


def test_fill_names() -> None:
    told = "Window.window=0 is not allowed (YAML: model.init_args.patterns.local.init_args.window)"
    assert fill_names(MESSAGE.format(0), FILES) == told
    assert fill_names(MESSAGE.format(7), FILES) == MESSAGE.format(7)
    assert fill_names("nothing to fill", FILES) == "nothing to fill"
