"""Schedules resolve to one mixer a layer, or say which layer is wrong."""

import pytest

from lg.attention.schedule import Interleave, MiddleFull, Schedule, layers, written

NAMES = ["local", "full"]


def test_a_written_schedule_is_read_from_the_first_layer() -> None:
    assert layers("2*local, full,local", 4, NAMES) == ["local", "local", "full", "local"]


@pytest.mark.parametrize(
    ("num_layers", "short"),
    [
        (32, "10*local, 12*full, 10*local"),
        (6, "2*local, 2*full, 2*local"),
        (1, "local"),
        (30, "9*local, 11*full, 10*local"),
    ],
)
def test_middle_full_fits_any_depth(num_layers: int, short: str) -> None:
    assert written(layers(MiddleFull(), num_layers, NAMES)) == short


def test_interleave_repeats_its_unit() -> None:
    assert written(layers(Interleave("3*local, full"), 9, NAMES)) == "3*local, full, 3*local, full, local"


@pytest.mark.parametrize("num_layers", [1, 5, 32])
def test_writing_and_reading_are_inverse(num_layers: int) -> None:
    resolved = layers(MiddleFull(0.5), num_layers, NAMES)
    assert layers(written(resolved), num_layers, NAMES) == resolved


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        ("2*local, 2*full", r"schedule: .* gives 4 layers to a model of 6: layer 4 gets none"),
        ("8*local", r"gives 8 layers to a model of 6: there is no layer 6"),
        ("2*local, 2*fll, 2*local", r"layer 2 is 'fll', .* allowed are local, full"),
        ("2*local,, 4*full", r"'' in '2\*local,, 4\*full' is not allowed"),
        ("0*local, 6*full", r"'0\*local'"),
        ("local 6", r"'local 6'"),
        (Interleave("wide, full"), r"layer 0 is 'wide'"),
    ],
)
def test_a_schedule_that_does_not_fit_names_the_layer(schedule: str | Schedule, says: str) -> None:
    with pytest.raises(ValueError, match=r"model.init_args.schedule.*" + says if "schedule" not in says else says):
        layers(schedule, 6, NAMES)


def test_a_fraction_beyond_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fraction: 1\.5 is not allowed"):
        MiddleFull(1.5)
