"""Learning rates rise in the warm-up and end where they should."""

import pytest

from lg.models.learning_rate import WSD, Constant, Cosine, LRSchedule


def factors(schedule: LRSchedule, num_steps: int = 100) -> list[float]:
    return [schedule.factor(step, num_steps) for step in range(num_steps)]


@pytest.mark.parametrize("schedule", [Constant(10), Cosine(10), WSD(10)], ids=str)
def test_the_warm_up_is_linear_and_reaches_one(schedule: LRSchedule) -> None:
    assert factors(schedule)[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert factors(schedule)[10] == 1.0


def test_constant_stays() -> None:
    assert set(factors(Constant(10))[10:]) == {1.0}


def test_cosine_is_half_way_in_the_middle_and_ends_at_its_floor() -> None:
    schedule = Cosine(warmup=0, floor=0.2)
    assert schedule.factor(50, 100) == pytest.approx(0.6)
    assert schedule.factor(100, 100) == pytest.approx(0.2)
    assert schedule.factor(130, 100) == pytest.approx(0.2)
    assert factors(schedule) == sorted(factors(schedule), reverse=True)


def test_wsd_is_stable_then_falls_in_a_line() -> None:
    schedule = WSD(warmup=0, decay=0.2, floor=0.1)
    assert set(factors(schedule)[:81]) == {1.0}
    assert schedule.factor(90, 100) == pytest.approx(0.55)
    assert schedule.factor(100, 100) == pytest.approx(0.1)


def test_a_warm_up_longer_than_the_run_only_rises() -> None:
    rising = factors(Cosine(warmup=500), 100)
    assert rising == sorted(rising) and rising[-1] == pytest.approx(0.2)


@pytest.mark.parametrize("build", [lambda: Cosine(-1), lambda: Cosine(floor=2.0), lambda: WSD(decay=-0.1)])
def test_numbers_out_of_range_are_refused_with_their_key(build: object) -> None:
    with pytest.raises(ValueError, match=r"model\.init_args\.lr_schedule\.init_args\.\w+: .* is not allowed"):
        build()  # type: ignore[operator]
